"""The one reader of settings: it checks plain values against the annotations of a frozen dataclass.

A field's annotation says what the field may hold:

    steps: Annotated[int, Bounds(ge=1)]
    dtype: Literal["float32", "bfloat16"] = "float32"

The `Attributes:` section of the class docstring describes the fields; `blast.experiment.plan.schema` makes the JSON
schema from both. This file needs the standard library alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from blast.errors import BlastError, one_line, unknown_name

T = TypeVar("T")

# YAML 1.1 reads `1e-3` as text since it has no point, so text that is a number counts as one.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LONGEST_NUMBER = 40
LONGEST_SHOWN = 80
SCALARS = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True)
class Bounds:
    """The range of a number; None is no bound."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        if self.ge is not None:
            end = f" to {self.le}" if self.le is not None else f" to below {self.lt}" if self.lt is not None else ""
            return f"from {self.ge}{end}" if end else f"of at least {self.ge}"
        parts = {"above": self.gt, "at most": self.le, "below": self.lt}
        return " and ".join(f"{word} {bound}" for word, bound in parts.items() if bound is not None)


ANY = Bounds()


@dataclass(frozen=True)
class NotEmpty:
    """The text has a character, or the list an entry."""


@dataclass(frozen=True)
class Pattern:
    """The whole text matches a regular expression.

    Attributes:
        regex: The expression.
        meaning: The same in words, for the error.
        longest: Most characters.
    """

    regex: str
    meaning: str
    longest: int


@dataclass(frozen=True)
class OneOf:
    """The text is one of some names.

    Attributes:
        kind: What the names stand for, for instance `"method"`.
        names: The names.
    """

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ListOrOne:
    """A single entry may be given without the list."""


@dataclass(frozen=True)
class Later:
    """The field came when records already existed: at its default it stays out of the plain form.

    So the digests of older settings, and with them the records, stay valid.
    """


@dataclass(frozen=True)
class PartOf:
    """A mapping with some of the keys of a settings class; the values stay plain.

    Attributes:
        settings: The dataclass.
        set_elsewhere: Keys that may not be given here, with the place that sets them.
    """

    settings: type
    set_elsewhere: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)


Count = Annotated[int, Bounds(ge=1)]
Share = Annotated[float, Bounds(ge=0, le=1)]
Sparsity = Annotated[float, Bounds(ge=0, lt=1)]
Seed = Annotated[int, Bounds(ge=0, le=2**63 - 1)]
Name = Annotated[str, NotEmpty()]


@dataclass(frozen=True)
class Place:
    """Where a value stands, for errors.

    Attributes:
        kind: What the last part of the path is, for instance `"training setting"`.
        path: Keys and list positions from the outside in.
    """

    kind: str = "key"
    path: tuple[str | int, ...] = ()

    def inner(self, key: str | int) -> Place:
        """The place of an entry of this one."""
        return Place(self.kind, (*self.path, key))

    @property
    def dotted(self) -> str:
        """The path as text, for instance `grid.0.sparsity`."""
        return ".".join(map(str, self.path))

    def __str__(self) -> str:
        return f"the {self.kind} '{self.dotted}'" if self.path else f"the mapping of {self.kind}s"

    def fault(self, value: Any, remedy: str) -> BlastError:
        """The error for a value that is wrong here."""
        return BlastError(f"{self} is {_shown(value)}; give {remedy}.")


TOP = Place()


def _shown(value: Any) -> str:
    text = "null" if value is None else one_line(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


@cache
def field_hints(settings: type) -> dict[str, Any]:
    """The annotation of each field of a settings class, in order."""
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def required(settings: type) -> list[str]:
    """Fields of a settings class that have no default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(settings) if f.default is missing and f.default_factory is missing]


def split_hint(hint: Any) -> tuple[Any, dict[type, Any]]:
    """An annotation without its marks, and the marks by class; not to be changed."""
    found = _understood(hint)
    return found.bare, found.marks


class _Hint(NamedTuple):
    """An annotation, understood: without its marks, its marks by class, and what kind of type it is."""

    hint: Any
    bare: Any
    marks: dict[type, Any]
    origin: Any
    union: bool
    settings: bool


def _understood(hint: Any) -> _Hint:
    # By its identity, as marks may be unhashable. It is kept, so that no other annotation gets its identity.
    if (known := _UNDERSTOOD.get(id(hint))) is None:
        bare, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        by_class = {type(mark): mark for mark in marks}
        settings = isinstance(bare, type) and dataclasses.is_dataclass(bare)
        known = _Hint(hint, bare, by_class, get_origin(bare), is_union(bare), settings)
        _UNDERSTOOD[id(hint)] = known
    return known


_UNDERSTOOD: dict[int, _Hint] = {}


def is_union(hint: Any) -> bool:
    """Whether a bare annotation is `A | B`."""
    return get_origin(hint) in (Union, types.UnionType)


def read(settings: type[T], values: Any, place: Place = TOP) -> T:
    """Reads a mapping into a settings class.

    Args:
        settings: A frozen dataclass.
        values: Plain values, for instance from YAML or JSON.
        place: Where the mapping stands.

    Raises:
        BlastError: one sentence for an unknown key (with the nearest), a missing key, or a wrong value.
    """
    checked = read_part(settings, values, place)
    for key in required(settings):
        if key not in checked:
            raise BlastError(f"{place.inner(key)} is missing; add it.")
    return settings(**checked)


def read_part(
    settings: type, values: Any, place: Place = TOP, set_elsewhere: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Checks a mapping that holds some of the keys of a settings class.

    Args:
        settings: A frozen dataclass.
        values: Plain values.
        place: Where the mapping stands.
        set_elsewhere: Keys that may not be given here, with the place that sets them.

    Returns:
        The given keys with checked values.

    Raises:
        BlastError: as `read`, except that no key has to be there.
    """
    hints, elsewhere = field_hints(settings), set_elsewhere or {}
    found = {}
    for key, value in _mapping(values, place).items():
        if key in elsewhere:
            raise BlastError(f"{place.inner(key)} is set by {elsewhere[key]}; remove it here.")
        if key not in hints:
            error = unknown_name(place.kind, key, set(hints) - set(elsewhere))
            raise BlastError(f"in '{place.dotted}': {error}") if place.path else error
        found[key] = check(hints[key], value, place.inner(key))
    return found


def check_fields(settings: object, kind: str) -> None:
    """Checks every field of a frozen dataclass; for its `__post_init__`.

    Raises:
        BlastError: for a wrong value.
    """
    settings_class: type = type(settings)
    for name, hint in field_hints(settings_class).items():
        object.__setattr__(settings, name, check(hint, getattr(settings, name), Place(kind, (name,))))


def updated(defaults: T, given: Mapping[str, Any] | None, place: Place) -> T:
    """Settings with some of their values replaced by the given ones.

    Raises:
        BlastError: for an unknown key or a wrong value.
    """
    return dataclasses.replace(defaults, **read_part(type(defaults), given or {}, place))  # type: ignore[type-var]


def plain(value: Any) -> Any:
    """Settings as JSON or YAML can hold them: mappings, lists and scalars."""
    if type(value) in SCALARS:
        return value
    if type(value) is dict:
        if SCALARS.issuperset(map(type, value.values())):
            return value.copy()
        return {key: entry if type(entry) in SCALARS else plain(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((name, getattr(value, name), left_out) for name, left_out in _shown_fields(type(value)))
        return {name: plain(entry) for name, entry, left_out in fields if entry not in left_out}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


@cache
def _shown_fields(settings: type) -> list[tuple[str, tuple[Any, ...]]]:
    """The fields of a settings class, each with the values at which the plain form leaves it out (`Later`)."""
    hints = field_hints(settings)
    return [
        (field.name, (field.default,) if Later in split_hint(hints[field.name])[1] else ())
        for field in dataclasses.fields(settings)
    ]


def check(hint: Any, value: Any, place: Place) -> Any:
    """Checks one value against an annotation.

    A whole number stays one where any number is wanted; text that is a number becomes one. So does a number of NumPy or
    torch.

    Returns:
        The value, as the annotated type.

    Raises:
        BlastError: one sentence with the place, the value and what to give.
    """
    _, bare, marks, origin, union, settings = _understood(hint)
    value = value if type(value) in SCALARS else _python_scalar(value)
    if union:
        return _check_union(bare, value, place)
    if PartOf in marks:
        return read_part(marks[PartOf].settings, value, place, marks[PartOf].set_elsewhere)
    if settings:
        return value if isinstance(value, bare) else read(bare, value, place)
    if origin is Literal:
        return _check_choice(get_args(bare), value, place)
    if origin is dict:
        kind, entry = get_args(bare)
        return {check(kind, k, place): check(entry, v, place.inner(k)) for k, v in _mapping(value, place).items()}
    if origin in (list, tuple):
        return _check_list(bare, marks, value, place)
    if bare in (int, float):
        return _check_number(bare, marks.get(Bounds, ANY), value, place)
    if bare is bool and not isinstance(value, bool):
        raise place.fault(value, "true or false")
    if bare is str:
        return _check_text(marks, value, place)
    return value


def _python_scalar(value: Any) -> Any:
    """A single number of NumPy or torch as Python's own; anything else as it is."""
    if getattr(value, "shape", None) == () and not getattr(value, "is_meta", False):
        return value.item()
    return value


def _mapping(value: Any, place: Place) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        if not place.path:
            raise BlastError(f"{_shown(value)} is no mapping of {place.kind}s to values; give one.")
        raise place.fault(value, "a mapping of keys to values")
    for key in value:
        if not isinstance(key, str):
            raise BlastError(f"{place} has the key {_shown(key)}, which is no text; write it in quotes or correct it.")
    return value


def _check_union(bare: Any, value: Any, place: Place) -> Any:
    options = [option for option in get_args(bare) if option is not type(None)]
    if value is None and len(options) < len(get_args(bare)):
        return None
    lists = [option for option in options if get_origin(split_hint(option)[0]) in (list, tuple)]
    if isinstance(value, (list, tuple)) and lists:
        return check(lists[0], value, place)
    return check(next((option for option in options if option not in lists), options[0]), value, place)


def _check_choice(choices: tuple[Any, ...], value: Any, place: Place) -> Any:
    if not isinstance(value, str) or value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        known = ", ".join(choices)
        hint = f"did you mean '{near[0]}'?" if near and isinstance(value, str) else f"give one of: {known}."
        raise BlastError(f"{place} is {_shown(value)}; {hint}")
    return value


def _check_list(bare: Any, marks: Mapping[type, Any], value: Any, place: Place) -> Any:
    if ListOrOne in marks and not isinstance(value, (list, tuple)):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        raise place.fault(value, "a list")
    if NotEmpty in marks and not value:
        raise place.fault(value, "a list with at least one entry")
    kinds = get_args(bare)
    if get_origin(bare) is tuple and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise place.fault(value, f"a list of {len(kinds)} entries")
    else:
        kinds = (kinds[0],) * len(value)
    return get_origin(bare)(
        check(kind, entry, place.inner(n)) for n, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _check_number(kind: type, bounds: Bounds, value: Any, place: Place) -> int | float:
    number = value
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER and NUMBER.fullmatch(value.strip()):
        number = float(value) if re.search(r"[.eE]", value) else int(value)
    good = isinstance(number, (int, float)) and not isinstance(number, bool) and _is_finite(number, kind)
    if not good or not bounds.holds(number) or (kind is int and number != int(number)):
        raise place.fault(value, f"{'a whole number' if kind is int else 'a number'} {bounds}".strip())
    return int(number) if kind is int else number


def _is_finite(number: int | float, kind: type) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return kind is int  # a whole number that no float can hold


def _check_text(marks: Mapping[type, Any], value: Any, place: Place) -> str:
    if not isinstance(value, str):
        raise place.fault(value, "text (in quotes, where it looks like something else)")
    if NotEmpty in marks and not value:
        raise place.fault(value, "text that is not empty")
    pattern, names = marks.get(Pattern), marks.get(OneOf)
    if pattern and (len(value) > pattern.longest or not re.fullmatch(pattern.regex, value)):
        raise place.fault(value, f"{pattern.meaning}, {pattern.longest} characters at most")
    if names and value not in names.names:
        raise BlastError(f"in '{place.dotted}': {unknown_name(names.kind, value, names.names)}")
    return value
