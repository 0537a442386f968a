"""What `blast compare A B` prints, and writes as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blast.experiment.columns import columns, counted
from blast.experiment.compare.code import changed_definitions
from blast.experiment.compare.pairs import (
    OF_CODE,
    OF_MACHINE,
    Difference,
    Pair,
    paired,
    runs_that_differ,
    settings_that_differ,
    shown,
    versions_that_differ,
)
from blast.experiment.compare.results import Overall, Result, overall, results_of
from blast.experiment.compare.sides import Side
from blast.experiment.compare.significance import holm

# Lines of a part, without --all.
MOST = 12


@dataclass(frozen=True)
class Compared:
    """Two sides, compared."""

    first: Side
    second: Side
    by: str
    pairs: list[Pair]
    settings: list[Difference]
    code: list[Difference]
    machine: list[Difference]
    definitions: dict[str, list[str]] | None
    results: list[Result]
    overall: list[Overall]
    significant: list[bool]

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        results = [
            _plain(asdict(result))
            | {"relative": _finite(result.relative), "significant": sure, "test": str(result.test)}
            | {"p": result.test.p, "n": result.test.n}
            for result, sure in zip(self.results, self.significant, strict=True)
        ]  # fmt: skip
        return {
            "first": {"name": self.first.name, "kind": self.first.kind, "points": len(self.first.entries)},
            "second": {"name": self.second.name, "kind": self.second.kind, "points": len(self.second.entries)},
            "paired": {"by": self.by, "points": [[one.id, other.id] for one, other in self.pairs]},
            "settings": [asdict(each) for each in self.settings],
            "code": [asdict(each) for each in self.code],
            "machine": [asdict(each) for each in self.machine],
            "changed_definitions": self.definitions,
            "results": results,
            "overall": [_plain(asdict(each)) | {"test": str(each.test)} for each in self.overall],
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, float) else value for key, value in values.items()}


def compare_sides(first: Side, second: Side) -> Compared:
    """Compares two sides: their settings, their code and machine, and their results."""
    pairs, by = paired(first, second)
    done = [pair for pair in pairs if pair[0].status == pair[1].status == "ok"]
    results = results_of(done)
    tested = [result.test.p for result in results if result.test.p is not None]
    sure = iter(holm(tested))
    return Compared(
        first=first,
        second=second,
        by=by,
        pairs=pairs,
        settings=settings_that_differ(pairs),
        code=runs_that_differ(pairs, OF_CODE),
        machine=[*runs_that_differ(pairs, OF_MACHINE), *versions_that_differ(pairs)],
        definitions=_definitions(pairs),
        results=results,
        overall=overall(results) if len(pairs) > 1 else [],
        significant=[result.test.p is not None and next(sure) for result in results],
    )


def _definitions(pairs: Sequence[Pair]) -> dict[str, list[str]] | None:
    """The definitions that changed for the first pair whose fingerprints differ; None if that cannot be told."""
    for first, second in pairs:
        whole = first.point or second.point
        commits = [entry.run.get("commit") for entry in (first, second)]
        if whole and all(commits) and first.run.get("fingerprint") != second.run.get("fingerprint"):
            return changed_definitions(str(commits[0]), str(commits[1]), whole) if commits[0] != commits[1] else None
    return None


def describe(found: Compared, everything: bool = False) -> Iterator[str]:
    """The lines of a comparison.

    Args:
        found: From `compare_sides`.
        everything: Whether to leave nothing out of long parts.
    """
    most = None if everything else MOST
    first, second = found.first, found.second
    for letter, side in (("A", first), ("B", second)):
        yield f"{letter}: {side.kind} {side.name} ({counted(len(side.entries), 'point')})"
    alone = [len(side.entries) - len(found.pairs) for side in (first, second)]
    yield (
        f"{counted(len(found.pairs), 'pair')} of points, {found.by}; {max(alone[0], 0)} only in A, "
        f"{max(alone[1], 0)} only in B"
    )
    if not found.pairs:
        yield "nothing to compare: no point of A has a counterpart in B"
        return
    failed = [(one, other) for one, other in found.pairs if one.status != "ok" or other.status != "ok"]
    for one, other in failed[:most]:
        yield f"  {one.id}: A {one.status}, B {other.status}; {one.cause or other.cause or 'no cause was recorded'}"
    yield from _differences("Settings", found.settings, len(found.pairs), most)
    if not all(entry.whole for pair in found.pairs for entry in pair):
        yield f"  (recorded rows hold part of the settings; {_by_digest(found.pairs)})"
    yield from _code(found, most)
    yield from _differences("Machine and packages", found.machine, len(found.pairs), most)
    yield from _results(found, most)


def _by_digest(pairs: Sequence[Pair]) -> str:
    known = [one.digest == other.digest for one, other in pairs if one.digest and other.digest]
    return f"by their digests all settings are equal in {sum(known)} of {counted(len(known), 'pair')}"


def _differences(title: str, found: Sequence[Difference], pairs: int, most: int | None) -> Iterator[str]:
    if not found:
        yield f"{title}: no difference"
        return
    yield f"{title}:"
    rows = [["key", "A", "B", "pairs"]]
    rows += [[each.key, each.first, each.second, f"{each.pairs} of {pairs}"] for each in found[:most]]
    yield from columns(rows, right=[3])
    yield from _more(len(found), most)


def _more(number: int, most: int | None) -> Iterator[str]:
    if most is not None and number > most:
        yield f"  … and {number - most} more; --all shows them"


def _code(found: Compared, most: int | None) -> Iterator[str]:
    yield from _differences("Code", found.code, len(found.pairs), most)
    same = sum(one.run.get("fingerprint") == other.run.get("fingerprint") is not None for one, other in found.pairs)
    yield f"  the code that decides the numbers (fingerprint) is equal in {same} of {counted(len(found.pairs), 'pair')}"
    if same == len(found.pairs):
        return
    if not any(each.key == "commit" for each in found.code):
        dirty = any(entry.run.get("dirty") for pair in found.pairs for entry in pair)
        why = "with uncommitted changes" if dirty else "other points run other code"
        yield f"  both are of the same commit; {why}"
    elif found.definitions is None:
        yield "  which modules changed is unknown: git does not have both commits here"
    elif not found.definitions:
        yield "  between the two commits nothing of it changed; the tree had uncommitted changes"
    else:
        yield "  what changed of it between the two commits:"
        changed = [f"    {module}: {', '.join(names)}" for module, names in found.definitions.items()]
        yield from changed[:most]
        yield from _more(len(changed), most)


def _results(found: Compared, most: int | None) -> Iterator[str]:
    if not found.results:
        yield "Results: no metric that both have"
        return
    equal = sum(result.equal for result in found.results)
    yield f"Results: {equal} of {counted(len(found.results), 'value')} are equal"
    if found.overall:
        rows = [["over all pairs", "pairs", "equal", "B better", "B worse", "median", "sign test"]]
        for each in found.overall:
            worse = each.pairs - each.equal - each.better
            rows.append([each.metric, str(each.pairs), str(each.equal), str(each.better), str(worse),
                         _percent(each.relative), str(each.test)])  # fmt: skip
        yield from columns([rows[0], *rows[1:][: most and 2 * most]], right=[1, 2, 3, 4, 5])
        yield from _more(len(found.overall), most and 2 * most)
    differ = [(result, sure) for result, sure in zip(found.results, found.significant, strict=True) if not result.equal]
    if not differ:
        return
    # What is sure comes first, then the largest.
    differ.sort(key=lambda each: (not each[1], -abs(each[0].relative) if not math.isnan(each[0].relative) else 0))
    single = len({result.config for result in found.results}) == 1
    rows = [["metric" if single else "point, metric", "A", "B", "B-A", "", "test"]]
    for result, sure in differ[:most]:
        name = " ".join(filter(None, (result.metric, result.detail)))
        unit = "" if result.unit in ("", "fraction") else f" {result.unit}"
        rows.append([
            name if single else f"{result.config} {name}", _number(result.first), _number(result.second) + unit,
            _percent(result.relative), "*" if sure else " ", str(result.test),
        ])  # fmt: skip
    yield from columns(rows, right=[1, 3])
    yield from _more(len(differ), most)
    if tests := sum(result.test.p is not None for result in found.results):
        yield f"  * significant at 5 % after Holm's correction for {counted(tests, 'test')}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.5g}"


def _percent(value: float) -> str:
    return shown(None) if math.isnan(value) else f"{value:+.2f} %"
