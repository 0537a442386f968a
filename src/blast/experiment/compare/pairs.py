"""Which point of one side is compared with which of the other, and in what their settings and runs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blast.experiment.compare.sides import Entry, Side, flat
from blast.experiment.records.data_versions import DIGEST
from blast.files import canonical_json

# Points of other settings are alike if they agree in these.
ALIKE = ("suite", "stage", "architecture", "model", "dataset", "method", "sparsity", "block", "seed")
# What `run` says of code and machine. Times, process numbers and commands differ each time.
OF_CODE = ("commit", "dirty", "fingerprint", "lock")
OF_MACHINE = ("hardware", "gpu", "driver", "threads", "host")

Pair = tuple[Entry, Entry]
ABSENT = "–"


@dataclass(frozen=True)
class Difference:
    """A key that differs, with both values, and in how many pairs."""

    key: str
    first: str
    second: str
    pairs: int


def paired(first: Side, second: Side) -> tuple[list[Pair], str]:
    """The pairs of points, and by what they were paired.

    Two runs are one pair. Otherwise points of the same grid and id are; where there are none, those of the same id, and
    then those that agree in model, dataset, method, sparsity, block and seed, if only one of each side does.
    """
    ours, theirs = first.entries, second.entries
    if first.kind == second.kind == "run":
        return [(*ours.values(), *theirs.values())], "as given"
    if "run" in (first.kind, second.kind) or {first.kind, second.kind} == {"grid", "machine"}:
        ours, theirs = ({entry.id: entry for entry in side.values()} for side in (ours, theirs))
    if common := [name for name in ours if name in theirs]:
        return [(ours[name], theirs[name]) for name in common], "of the same id"
    alike: list[tuple[Callable[[Entry], str], str]] = [
        (lambda entry: entry.id, "of the same id, in other grids"),
        (_likeness, "with the same model, data, method, sparsity, block and seed"),
    ]
    for key_of, by in alike:
        found, others = _alone(ours.values(), key_of), _alone(theirs.values(), key_of)
        if pairs := [(entry, others[key]) for key, entry in found.items() if key in others]:
            return pairs, by
    return [], alike[-1][1]


def _alone(entries: Iterable[Entry], key_of: Callable[[Entry], str]) -> dict[str, Entry]:
    """The points that no other of their side is like."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(key_of(entry), []).append(entry)
    return {key: alike[0] for key, alike in found.items() if len(alike) == 1}


def _likeness(entry: Entry) -> str:
    return canonical_json([_like(entry, key) for key in ALIKE])


def _like(entry: Entry, key: str) -> Any:
    value = entry.settings.get(key)
    if key == "block" and isinstance(value, list | tuple):
        return "x".join(map(str, value))
    if key == "model":
        return value or entry.settings.get("architecture")
    # A record has its stage and model under other names than a row.
    return None if key in ("suite", "stage", "architecture") else value


def settings_that_differ(pairs: Iterable[Pair]) -> list[Difference]:
    """The settings that differ within pairs, the most frequent first.

    Of two recorded points, or of a record and a recorded point, only keys that both have are compared.
    """
    found: Counter[tuple[str, str, str]] = Counter()
    for first, second in pairs:
        if first.whole and second.whole:
            keys: Iterable[str] = {*first.settings, *second.settings}
        else:
            keys = _rows_settings(first).keys() & _rows_settings(second).keys()
        one, other = (entry.settings if first.whole and second.whole else _rows_settings(entry)
                      for entry in (first, second))  # fmt: skip
        differ = {key for key in keys if one.get(key) != other.get(key)}
        for key in differ:
            part, *_ = key.partition(".")
            # A part that only one of them has is one line.
            lacking = [
                not any(_in(part, name) and value is not None for name, value in side.items()) for side in (one, other)
            ]
            if any(lacking) and "." in key:
                if key == min(name for name in differ if _in(part, name)):
                    found[part, *(ABSENT if lacks else "{…}" for lacks in lacking)] += 1
            else:
                found[key, shown(one.get(key)), shown(other.get(key))] += 1
    return [Difference(*key, pairs=count) for key, count in sorted(found.items(), key=lambda each: (-each[1], each[0]))]


def _in(part: str, key: str) -> bool:
    return key == part or key.startswith(f"{part}.")


def _rows_settings(entry: Entry) -> Mapping[str, Any]:
    """The settings of a point as far as its rows hold them."""
    if not entry.whole or not entry.rows:
        return entry.settings
    row = entry.rows[0]
    named = {name: row[name] for name in ("model", "dataset", "method", "sparsity", "block", "tied", "dtype", "seed")}
    return named | {DIGEST: entry.settings[DIGEST]}


def runs_that_differ(pairs: Iterable[Pair], keys: Iterable[str]) -> list[Difference]:
    """What differs of where and with what the points ran."""
    found: Counter[tuple[str, str, str]] = Counter()
    for first, second in pairs:
        one, other = first.run, second.run
        found.update(
            (key, shown(one.get(key)), shown(other.get(key)))
            for key in keys
            if key in one and key in other and one[key] != other[key]
        )
    return [Difference(*key, pairs=count) for key, count in sorted(found.items(), key=lambda each: (-each[1], each[0]))]


def versions_that_differ(pairs: Iterable[Pair]) -> list[Difference]:
    """The packages whose versions differ."""
    found: Counter[tuple[str, str, str]] = Counter()
    for first, second in pairs:
        one, other = (flat(entry.run.get("versions") or {}) for entry in (first, second))
        if one and other:
            found.update(
                (key, shown(one.get(key)), shown(other.get(key)))
                for key in {*one, *other}
                if one.get(key) != other.get(key)
            )
    return [Difference(*key, pairs=count) for key, count in sorted(found.items(), key=lambda each: (-each[1], each[0]))]


def shown(value: Any) -> str:
    """A value in a line."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else canonical_json(value)
    if text.startswith("sha256:"):
        text = text[7:19]
    elif len(text) == 40 and set(text) <= set("0123456789abcdef"):
        text = text[:12]
    return text if len(text) <= 60 else text[:59] + "…"
