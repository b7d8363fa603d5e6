"""A knob: its type, range and help text, and the cast from text to its type.

Values from any source are cast to the declared type, because sweep agents pass `--update=False` and
YAML reads `1e-4` as text.
"""

import ast
import difflib
import inspect
import itertools
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

from emaae.system.errors import UserError


@dataclass(frozen=True)
class Knob:
    """One field of `emaae.config.Config`, or another value that is given as text."""

    name: str
    kind: type  # bool, int, float or str
    optional: bool = False  # whether None is allowed
    default: Any = None
    text: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()  # the allowed values; () when any value of the kind is allowed
    limits: Mapping[str, float] = field(default_factory=dict)  # at_least, above, at_most, below
    path: bool = False  # whether it is a file or folder; a leading ~ is then the home directory

    @property
    def range(self) -> str:
        """The limits in words, e.g. "at least 0 and below 1"; "" without limits."""
        limits = (f"{word.replace('_', ' ')} {limit:g}" for word, limit in self.limits.items())
        return " and ".join(limits)

    def cast(self, value: Any) -> Any:
        """The value cast to the type of the knob. Raises UserError."""
        text = value.strip() if isinstance(value, str) else value
        if self.optional and str(text).lower() in ("none", "null"):
            return None
        expected, cast = _KINDS[self.kind]
        if text is None:
            raise UserError(f"--{self.name} needs a value: expected {expected}, got None")
        try:
            value = cast(text)
        except (ValueError, TypeError, OverflowError, KeyError):
            raise UserError(f"--{self.name} must be {expected}, got {value!r}") from None
        return os.path.expanduser(value) if self.path else value

    def read(self, value: Any) -> Any:
        """The value cast to the type of the knob, and checked. Raises UserError."""
        value = self.cast(value)
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        """Raise UserError unless the value, already cast, is among the choices and in range."""
        if self.choices and value not in self.choices:
            raise UserError(
                f"--{self.name} must be one of {', '.join(self.choices)}, got {value!r}"
                + did_you_mean(str(value), self.choices)
            )
        within = (WITHIN[word](value, limit) for word, limit in self.limits.items())
        if value is not None and not all(within):
            raise UserError(f"--{self.name} must be {self.range}, got {value}")


def knob(
    group: str, default: Any, *, choices: Sequence[str] = (), path: bool = False, **limits: float
) -> Any:
    """A dataclass field with the metadata of a knob; its help text is the string below the field.

    choices: not needed for a field of a Literal type, which lists them. limits: at_least, above,
    at_most, below.
    """
    metadata = {"group": group, "choices": choices, "limits": limits, "path": path}
    return field(default=default, metadata=metadata)


def knobs_of(config: type) -> dict[str, Knob]:
    """The knobs of a dataclass by name: its fields of `knob`, and the strings below them."""
    try:
        source = ast.parse(inspect.getsource(config)).body[0]
    except OSError:  # compiled code alone: without help texts
        return {f.name: _knob_of(f, "") for f in fields(config)}
    assert isinstance(source, ast.ClassDef)
    texts = {
        ast.unparse(above.target): " ".join(ast.literal_eval(below.value).split())
        for above, below in itertools.pairwise(source.body)
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    lacking = [f.name for f in fields(config) if f.name not in texts]
    if lacking:
        raise TypeError(f"{', '.join(lacking)}: a setting needs its help text as a string below it")
    return {f.name: _knob_of(f, texts[f.name]) for f in fields(config)}


def _knob_of(f: "Field[Any]", text: str) -> Knob:
    kind, declared = f.type, dict(f.metadata)
    optional = isinstance(kind, types.UnionType)
    if optional:
        kind = next(t for t in typing.get_args(kind) if t is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        declared["choices"], kind = typing.get_args(kind), str
    assert isinstance(kind, type)
    return Knob(f.name, kind, optional, f.default, text, **declared)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for the error about an unknown name: "; did you mean ...?", or "" without a match."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _to_bool(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return words[str(value).lower()]


def _to_int(value: Any) -> int:
    number = _to_float(value)  # quantised sweep distributions give 32.0
    if number != int(number):
        raise ValueError
    return int(number)


def _to_float(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _to_str(value: Any) -> str:
    # Empty text usually comes from an unset variable in a script: it is no path and no name.
    if isinstance(value, (dict, list, tuple)) or value == "":
        raise ValueError
    return str(value)


# For each type: its description in messages, and the cast.
_KINDS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("True or False", _to_bool),
    int: ("a whole number", _to_int),
    float: ("a finite number", _to_float),
    str: ("text that is not empty", _to_str),
}
WITHIN: dict[str, Callable[[Any, Any], bool]] = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}
