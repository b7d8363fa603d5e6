"""A knob: its type, range and help text, and how text becomes a value of it.

Text is cast by the declared type wherever it comes from, because sweep agents pass
`--update=False` and YAML reads `1e-4` as text.
"""

import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field
from typing import Any, Literal

from emaae.system.errors import UserError


@dataclass(frozen=True)
class Knob:
    """One field of `emaae.config.Config`."""

    name: str
    kind: type  # bool, int, float or str
    optional: bool  # whether None is a value of it
    default: Any
    text: str
    group: str
    choices: tuple[str, ...]  # all of them; () when any value of the kind may be given
    limits: Mapping[str, float]  # "at least", "above", "at most", "below"
    path: bool  # of a file or folder, in which ~ is the home

    def cast(self, value: Any) -> Any:
        """The value as this kind of thing. Raises UserError."""
        text = value.strip() if isinstance(value, str) else value
        if self.optional and (text is None or str(text).lower() in ("none", "null")):
            return None
        if text is None:
            raise UserError(f"--{self.name} needs a value: expected {self._wording}, got None")
        try:
            value = _CASTS[self.kind](text)
            return os.path.expanduser(value) if self.path else value
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"--{self.name} must be {self._wording}, got {value!r}") from None

    def check(self, value: Any) -> None:
        """Raise UserError unless the value is one of the choices and within the limits."""
        if self.choices and value not in self.choices:
            raise UserError(
                f"--{self.name} must be one of {', '.join(self.choices)}, got {value!r}"
                + nearest(str(value), self.choices)
            )
        if value is not None and not all(_FINE[w](value, lim) for w, lim in self.limits.items()):
            expected = " and ".join(f"{word} {limit:g}" for word, limit in self.limits.items())
            raise UserError(f"--{self.name} must be {expected}, got {value}")

    @property
    def _wording(self) -> str:
        return _WORDINGS[self.kind]


def knob(
    group: str,
    default: Any,
    text: str,
    *,
    choices: Sequence[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field with its help text and its range; a Literal type gives choices too."""
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    limits = {word: limit for word, limit in limits.items() if limit is not None}
    metadata: dict[str, Any] = {"group": group, "text": text, "limits": limits, "path": path}
    metadata["choices"] = tuple(choices)
    return field(default=default, metadata=metadata)


def knob_of(f: "Field[Any]") -> Knob:
    """What was declared by `knob` and by the field's type."""
    declared, choices = f.type, f.metadata["choices"]
    optional = isinstance(declared, types.UnionType)
    if optional:
        declared = next(t for t in typing.get_args(declared) if t is not types.NoneType)
    if typing.get_origin(declared) is Literal:
        declared, choices = str, typing.get_args(declared)
    metadata = {name: f.metadata[name] for name in ("text", "group", "limits", "path")}
    assert isinstance(declared, type)
    return Knob(f.name, declared, optional, f.default, choices=choices, **metadata)


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out of a misspelling: "; did you mean ...?" or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _to_bool(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueError from None


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    try:
        return int(value) if isinstance(value, (int, str)) else _whole(value)
    except ValueError:
        return _whole(float(value))  # quantised sweep distributions give 32.0


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_str(value: Any) -> str:
    # Empty text is an unset variable of some script, never a path or a name.
    if isinstance(value, (dict, list, tuple)) or value == "":
        raise ValueError
    return str(value)


_CASTS: dict[type, Any] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}
_WORDINGS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text that is not empty",
}
_FINE: dict[str, Any] = {
    "at least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "at most": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}
