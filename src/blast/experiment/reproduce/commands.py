"""The verbs `blast repeat` and `blast reproduce`."""

from __future__ import annotations

import argparse
from pathlib import Path

from blast.experiment.plan.options import AddVerb, recorded_option
from blast.experiment.plan.paths import GridFolder, in_checkout

CALCULATED = " (calculated from sizes, so it is neither met nor not met)"


def repeat(options: argparse.Namespace) -> int:
    """Runs the point of a record again, and says whether the results are equal or by how much they differ.

    First it compares code, lock file, packages and data with those of the record. The exit code is 1 if a result
    differs by more than noise.

    Example: blast repeat results/default/records/vit-nano-wide.mnist.dense.seed0.json
    """
    from blast.experiment.reproduce.repeat import checks, describe, find_record, judge, run_again

    record, source = find_record(options.record, options.results)
    name, grid = record["point"]["id"], record["point"]["grid"]
    own = GridFolder(options.out or Path("results", "repeat", grid))
    print(f"{name} of the grid '{grid}', measured {(record['run'].get('started') or 'at an unknown time')[:10]}")
    found = checks(record, own)
    for check in found:
        print(f"  {check}")
    if any(check.same is False and check.name == "code" for check in found):
        print("  the code that decides the numbers is another one: a difference may come from it")
    if options.check:
        return 0 if all(check.same is not False for check in found) else 1
    print(f"runs again in {own.root}; the record took {record['run']['wall_s']:.0f} s", flush=True)
    again = run_again(record, source, own, lambda line: print(line, flush=True))
    done = judge(record, again, source, own)
    for line in describe(done):
        print(line)
    return 0 if done.good else 1


def reproduce(options: argparse.Namespace) -> int:
    """Tries a claim of the paper: runs the points it needs, and shows expected value, tolerance and measured value.

    Without a claim it lists all claims with what each needs. Points that are done are not run again. What this machine
    cannot run is not run: then it shows what was recorded. The exit code is 1 if a claim is not met or was not run.

    Example: blast reproduce sparsity
    """
    from blast.experiment.reproduce.claims import claim_of, described
    from blast.experiment.reproduce.reproduce import NOT_RUN, try_claim

    if options.claim is None:
        for line in described():
            print(line)
        return 0
    value, need = claim_of(options.claim)
    took = "nobody has measured how long" if need.minutes is None else f"about {need.minutes:g} minutes"
    print(f"claim:     {value.id}: {value.claim}")
    print(f"expected:  {value.shown} ({value.known}; {value.setting})")
    print(f"tolerance: {need.tolerance}")
    print(f"needs:     {need.hardware}, {took}{'; ' + need.remark if need.remark else ''}", flush=True)
    tried = try_claim(value, need, options.out, options.recorded, lambda line: print(line, flush=True), options.records)
    where = "measured: " if tried.measured_here else "recorded: "
    for found in tried.findings:
        print(f"{where} {found['ours']} ({found['verdict']}; {found['setting']})")
    print(f"time:      {tried.seconds:.0f} s")
    if not tried.measured_here:
        print(f"verdict:   not run here (needs {need.hardware}); by the records: {tried.verdict}")
        return 1
    print(f"verdict:   {tried.verdict}{CALCULATED if tried.verdict == 'projected' else ''}")
    return 1 if tried.verdict in ("not met", NOT_RUN) else 0


def add_verbs(verb: AddVerb) -> None:
    """Adds the verbs that measure again.

    Args:
        verb: Adds one verb.
    """
    made = verb("repeat", repeat)
    made.add_argument("record", metavar="RECORD", help="the file of a record, or the id of its point")
    made.add_argument(
        "--check", action="store_true", help="only compare code, lock file, packages and data; run nothing"
    )
    made.add_argument("--out", type=Path, help="folder for the new record (default: results/repeat/<grid>)")
    made.add_argument(
        "--results", type=Path, default=in_checkout("results"), help="folder of the grids (default: results)"
    )
    made = verb("reproduce", reproduce)
    made.add_argument("claim", metavar="CLAIM", nargs="?", help="id of a claim (default: list them)")
    made.add_argument("--records", action="store_true", help="run nothing; judge the records that are there")
    made.add_argument("--out", type=Path, help="folder of the grid (default: results/<grid>)")
    made.add_argument("--recorded", **recorded_option())
