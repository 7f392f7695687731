"""Kills and failing writes at every change of the file system: `python benchmarks/faults.py [--json FILE]`.

Every command that writes is killed before its N-th change of the file system, for every N, or while it writes its N-th
file, or that change fails as on a full disk or in a folder that may not be written; then it runs again, and its folder
is compared byte for byte with one that was never disturbed. The points are tried in rounds that come ever closer, so
that it can be stopped at any time: `--minutes 30` ends with the round in which they have passed, `--every 8` with each
eighth point, `--only NAME` tries one command.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measuring import make_parser, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.faults import FAULTS, Harness, Outcome, chosen

MOST_STEP = 64
LONG_STEP = 32
"""Of a command whose every point takes many seconds."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--every", type=int, default=1, help="try each so-manieth point")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after a round when they have passed")
    parser.add_argument("--only", action="append", default=[], help="names of commands; repeatable")
    parser.add_argument("--fault", action="append", default=[], help=f"{', '.join(FAULTS)}; repeatable")
    args = parser.parse_args()
    began, failures = time.monotonic(), []
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        harness = Harness(Path(scratch))
        for first, step in rounds(args.every):
            for fault, command in itertools.product(args.fault or FAULTS, chosen(args.only)):
                if command.is_long and step < LONG_STEP:
                    continue
                harness.state(command.name)
                outcome = harness.try_points(command, fault, every=step, first=first)
                found.setdefault((command.name, fault), []).append(outcome)
                failures += outcome.failures
                print(
                    f"{command.name}, {fault}, each {step}th: {outcome.num_tried} of {outcome.num_points} points "
                    f"({outcome.num_equal} left what another one did), {len(outcome.failures)} failed",
                    *outcome.failures,
                    sep="\n",
                    flush=True,
                )
            report(
                summarise(found, step if first == 0 else step // 2) | {"seconds": round(time.monotonic() - began)},
                args.json,
            )
            if time.monotonic() - began > 60 * args.minutes:
                break
    sys.exit(bool(failures))


def rounds(every: int) -> Iterator[tuple[int, int]]:
    """(first, step) of rounds over all points that come ever closer, the last so that each so-manieth was tried."""
    step = MOST_STEP
    yield 0, step
    while step > every:
        yield step // 2, step
        step //= 2


def summarise(found: dict[tuple[str, str], list[Outcome]], every: int) -> dict[str, int]:
    """Points tried and failed, of all and of each command and fault; each so-manieth point was tried."""
    tried = {
        f"points_{name.replace(' --', '_').replace(' ', '_')}_{fault.lower()}": sum(one.num_tried for one in outcomes)
        for (name, fault), outcomes in found.items()
    }
    outcomes = list(itertools.chain.from_iterable(found.values()))
    return {
        "points_tried": sum(tried.values()),
        "points_failed": sum(len(one.failures) for one in outcomes),
        "points": sum(of_one[0].num_points for of_one in found.values()),
        "every": every,
        **tried,
    }


if __name__ == "__main__":
    main()
