"""Our results beside the paper's values: `blast compare paper`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blast.experiment.analysis.judged_claims import Claim


def describe_claims(claims: Iterable[Claim]) -> Iterator[str]:
    """The lines of `blast compare paper`."""
    claims = list(claims)
    for claim in claims:
        yield f"{claim['id']}: {claim['claim']}; paper: {claim['paper']} ({claim['known']}; {claim['setting']})"
        for finding in claim["findings"]:
            yield f"  {finding['verdict']:<10} {finding['ours']:<10}  {finding['setting']}"
    if claims and claims[0]["not_counted"]:
        yield f"Of the local results none counts: {claims[0]['not_counted']}"
    verdicts = [finding["verdict"] for claim in claims for finding in claim["findings"]]
    found = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    yield f"{len(claims)} claims, {len(verdicts)} findings: {found}; docs/compare.md says how each is judged"
