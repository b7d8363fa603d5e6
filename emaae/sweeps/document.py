"""Reading a YAML file into plain values, with the line of each key and the errors found."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from emaae.system.errors import UserError, one_line
from emaae.system.files import regular_file

MAX_FILE = 1 << 20  # bytes
# Most values in a file, aliases expanded: nine lines of aliases can expand to a billion values.
MAX_VALUES = 200_000
# Most characters of an unquoted scalar: parsing a number of a million digits takes minutes.
MAX_SCALAR = 1000
TAG_PREFIX = "tag:yaml.org,2002:"
ALLOWED_TAGS = ("map", "seq", "str", "int", "float", "bool", "null")
QUOTE_HINT = "quote it if it is text"


class Finding(NamedTuple):
    """An error in a sweep file or, if `warning`, a probable mistake."""

    path: str
    line: int
    key: str
    message: str
    warning: bool = False

    def __str__(self) -> str:
        kind = "warning: " if self.warning else ""
        key = f"{self.key}: " if self.key else ""
        return one_line(f"{self.path}:{self.line}: {kind}{key}{self.message}")


class Document:
    """A YAML file as plain values (`content`), with its errors and warnings (`findings`).

    `content` is {} and `is_mapping` False if the file is not YAML or not a mapping. Raises
    UserError for a file that cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self.findings: list[Finding] = []
        self.lines: dict[tuple, int] = {}
        self.content: dict[str, Any] = {}
        self.is_mapping = False
        try:
            with regular_file(path, MAX_FILE) as file:
                self.text = file.read().decode("utf-8")
            loader = yaml.SafeLoader(self.text)
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                self.report((), "a sweep file must be a mapping, such as `method: grid`")
            elif _n_values(node, {}) > MAX_VALUES:
                self.report((), f"has more than {MAX_VALUES} values after aliases are expanded")
            else:
                self.content, self.is_mapping = self._to_python(loader, node, ()), True
        except UnicodeDecodeError:
            raise UserError(f"{path} is not text in UTF-8: expected a YAML file") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", error)
            self.report((), f"is not YAML: {what}", line=mark and mark.line + 1)
        except (ValueError, OverflowError) as error:  # an escaped character that does not exist
            self.report((), f"is not YAML: {error}")
        except RecursionError:
            self.report((), "contains an alias to itself, or is nested too deeply")

    def report(
        self, key_path: tuple, message: str, *, warning: bool = False, line: int | None = None
    ) -> None:
        """Add a finding for the key at `key_path`; line: replaces the line of that key."""
        located = key_path  # the innermost part of the path whose line is known
        while located and located not in self.lines:
            located = located[:-1]
        key = ".".join(part for part in key_path if isinstance(part, str))
        finding = Finding(self.path, line or self.lines.get(located, 1), key, message, warning)
        if finding not in self.findings:
            self.findings.append(finding)

    def warn(self, key_path: tuple, message: str) -> None:
        """Add a warning for the key at `key_path`."""
        self.report(key_path, message, warning=True)

    def _to_python(self, loader: yaml.SafeLoader, node: yaml.Node, key_path: tuple) -> Any:
        self.lines.setdefault(key_path, node.start_mark.line + 1)
        kind = node.tag.removeprefix(TAG_PREFIX)
        if kind not in ALLOWED_TAGS:
            self.report(key_path, f"has the tag {node.tag}; write a plain value, or {QUOTE_HINT}")
            return ""
        if isinstance(node, yaml.MappingNode):
            within = range(node.start_mark.index, node.end_mark.index)
            loader.flatten_mapping(node)  # puts entries merged by `<<` before the node's own
            out: dict[str, Any] = {}
            own: set[str] = set()
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    self.report((), "a key must be text, not a collection", line=line)
                    continue
                key = str(key_node.value)
                here = (*key_path, key)
                if key in own:
                    first = f"is given twice, first in line {self.lines[here]}"
                    self.report(here, f"{first}; YAML uses the last value", line=line)
                if key_node.start_mark.index in within:  # not merged from elsewhere
                    own.add(key)
                self.lines[here] = line
                out[key] = self._to_python(loader, value_node, here)
            return out
        if isinstance(node, yaml.SequenceNode):
            return [self._to_python(loader, v, (*key_path, i)) for i, v in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        if node.style is None and len(node.value) > MAX_SCALAR:
            self.report(key_path, f"is longer than {MAX_SCALAR} characters; {QUOTE_HINT}")
            return ""
        try:
            value = loader.construct_object(node, deep=True)
        except (ValueError, OverflowError, KeyError, IndexError):
            # PyYAML raises these for text that only looks like a number, or has the tag of one.
            self.report(key_path, f"{node.value[:40]!r} cannot be read as {kind}; {QUOTE_HINT}")
            return ""
        if isinstance(value, int) and abs(value) >= 2**63:
            self.report(key_path, f"{node.value[:40]} is too large for a 64-bit integer")
            return 0
        if node.style is not None:  # quoted
            return value
        number = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+))[eE]([-+]?\d+)", node.value)
        if isinstance(value, str) and number and key_path[0] != "command":  # its items are text
            better = f"{float(number[1])}e{int(number[2]):+}"
            self.report(
                key_path, f"YAML reads {node.value} as text, not as a number; write {better}"
            )
        if isinstance(value, bool) and node.value.lower() != str(value).lower():
            better = f"{str(value).lower()}, or '{node.value}' for the word"
            self.report(key_path, f"YAML reads {node.value} as {value}; write {better}")
        return value


def _n_values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node, aliases expanded. RecursionError if it contains itself."""
    if id(node) not in known:
        parts = []
        if isinstance(node, yaml.MappingNode):
            parts = [value for pair in node.value for value in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_n_values(part, known) for part in parts)
    return known[id(node)]
