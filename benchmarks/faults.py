"""Kills and failing writes at every change of the file system: `python benchmarks/faults.py [--json FILE]`.

Every command that writes is killed before its N-th change of the file system, for every N, or while it writes its N-th
file, or that change fails as on a full disk or in a folder that may not be written; then it runs again, and its folder
is compared byte for byte with one that was never disturbed. The points are tried in rounds that come ever closer, so
that it can be stopped at any time: `--minutes 30` ends with the round in which they have passed, `--every 8` with each
eighth point, `--only NAME` tries one command. `--add FILE` keeps what an earlier JSON says of other commands and
faults, so that the points can be tried in several runs; with `--rest` a command and fault continues after the rounds
that the JSON says were tried.
"""

import importlib.util
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measuring import make_parser, report, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.faults import FAULTS, Harness, Outcome, chosen

MOST_STEP = 64
LONG_STEP = 32
"""Of a command whose every point takes many seconds, unless `--only` names it: with Ray, where it is installed."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--every", type=int, default=1, help="try each so-manieth point")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after a round when they have passed")
    parser.add_argument("--only", action="append", default=[], help="names of commands; repeatable")
    parser.add_argument("--add", action="append", default=[], type=Path, help="keep these figures too; repeatable")
    parser.add_argument("--rest", action="store_true", help="continue after the rounds that --add says were tried")
    parser.add_argument("--fault", action="append", default=[], help=f"{', '.join(FAULTS)}; repeatable")
    args = parser.parse_args()
    began, failures = time.monotonic(), []
    earlier = [json.loads(path.read_text()) for path in args.add]
    found = {}
    has_ray = importlib.util.find_spec("ray") is not None
    with tempfile.TemporaryDirectory() as scratch:
        harness = Harness(Path(scratch))
        for first, step in rounds(args.every):
            for fault, command in itertools.product(args.fault or FAULTS, chosen(args.only)):
                if command.is_long and not (has_ray and (args.only or step >= LONG_STEP)):
                    continue
                harness.state(command.name)
                outcomes = found.setdefault((command.name, fault), [])
                if args.rest and not outcomes:
                    before = tried_before(place_of(command.name, fault), earlier)
                    outcomes += [Outcome(*before)] if before[0] == len(harness.list_points(command, fault)) else []
                if outcomes and has_tried(first, step, outcomes):
                    continue
                outcome = harness.try_points(command, fault, every=step, first=first)
                outcomes.append(outcome)
                failures += outcome.failures
                print(
                    f"{command.name}, {fault}, each {step}th: {outcome.num_tried} of {outcome.num_points} points "
                    f"({outcome.num_equal} left what another one did), {len(outcome.failures)} failed",
                    *outcome.failures,
                    sep="\n",
                    flush=True,
                )
                if args.json is not None:
                    write(figures_of(found, earlier, began), args.json)
            if time.monotonic() - began > 60 * args.minutes:
                break
    report(figures_of(found, earlier, began), args.json)
    sys.exit(bool(failures))


def rounds(every: int) -> Iterator[tuple[int, int]]:
    """(first, step) of rounds over all points that come ever closer, the last so that each so-manieth was tried."""
    step = MOST_STEP
    yield 0, step
    while step > every:
        yield step // 2, step
        step //= 2


def place_of(command: str, fault: str) -> str:
    """The end of the names of the figures of a command and fault."""
    return f"{command.replace(' --', '_').replace(' ', '_')}_{fault}".lower()


def tried_before(place: str, earlier: list[dict[str, int]]) -> tuple[int, int]:
    """(points, points tried) of the last of these figures; none if one failed, so that all are tried again."""
    known = [figures for figures in earlier if f"tried_{place}" in figures]
    if not known or known[-1].get(f"failed_{place}"):
        return 0, 0
    num_tried = known[-1][f"tried_{place}"]
    return num_tried + known[-1].get(f"left_{place}", 0), num_tried


def has_tried(first: int, step: int, outcomes: list[Outcome]) -> bool:
    """Whether as many points were tried as the rounds up to this one have."""
    return sum(one.num_tried for one in outcomes) >= len(range(0, outcomes[0].num_points, first or step))


def figures_of(
    found: dict[tuple[str, str], list[Outcome]], earlier: list[dict[str, int]], began: float
) -> dict[str, int]:
    """What is written: the summary and the seconds of all runs."""
    seconds = round(time.monotonic() - began) + sum(figures["seconds"] for figures in earlier)
    return summarise(found, earlier) | {"seconds": seconds}


def summarise(found: dict[tuple[str, str], list[Outcome]], earlier: list[dict[str, int]]) -> dict[str, int]:
    """Points tried, failed and not tried: all of them, and those of each command and fault.

    Args:
        earlier: figures of earlier runs; for a command and fault the last one counts.
    """
    kept: dict[str, dict[str, int]] = {"tried": {}, "failed": {}, "left": {}}
    places = [
        (figures, name.removeprefix("tried_")) for figures in earlier for name in figures if name.startswith("tried_")
    ]
    for (figures, place), part in itertools.product(places, kept):
        kept[part][f"{part}_{place}"] = figures.get(f"{part}_{place}", 0)
    for (command, fault), outcomes in found.items():
        place = place_of(command, fault)
        num_tried = sum(one.num_tried for one in outcomes)
        kept["tried"][f"tried_{place}"] = num_tried
        kept["failed"][f"failed_{place}"] = sum(len(one.failures) for one in outcomes)
        kept["left"][f"left_{place}"] = outcomes[0].num_points - num_tried
    totals = {part: sum(numbers.values()) for part, numbers in kept.items()}
    return {
        "points_tried": totals["tried"],
        "points_failed": totals["failed"],
        "points_left": totals["left"],
        **kept["tried"],
        **{name: number for part in ("failed", "left") for name, number in kept[part].items() if number},
    }


if __name__ == "__main__":
    main()
