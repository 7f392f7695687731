"""Kills and failing writes at every change of the file system: `python benchmarks/faults.py [--json FILE]`.

Every command that writes is killed before its N-th change of the file system, for every N, or while it writes its N-th
file, or that change fails as on a full disk or in a folder that may not be written; then it runs again, and its folder
is compared byte for byte with one that was never disturbed. `--every 10` tries each tenth point only, `--only NAME` one
command.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

from measuring import make_parser, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.faults import FAULTS, Harness, chosen

LONG_POINTS = 6
"""Of a command whose every point takes many seconds."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--every", type=int, default=1, help="try each so-manieth point")
    parser.add_argument("--only", action="append", default=[], help="names of commands; repeatable")
    parser.add_argument("--fault", action="append", default=[], help=f"{', '.join(FAULTS)}; repeatable")
    args = parser.parse_args()
    began, failures = time.monotonic(), []
    figures = {"points_tried": 0, "points_failed": 0, "points": 0, "every": args.every}
    with tempfile.TemporaryDirectory() as scratch:
        harness = Harness(Path(scratch))
        for fault, command in itertools.product(args.fault or FAULTS, chosen(args.only)):
            harness.state(command.name)
            every = args.every
            if command.is_long:
                every = max(every, len(harness.list_points(command, fault)) // LONG_POINTS)
            found = harness.try_points(command, fault, every=every)
            key = f"{command.name.replace(' --', '_').replace(' ', '_')}_{fault.lower()}"
            figures[f"points_{key}"] = found.num_tried
            figures["points_tried"] += found.num_tried
            figures["points"] += found.num_points
            figures["points_failed"] += len(found.failures)
            failures += found.failures
            print(
                f"{key}: {found.num_tried} of {found.num_points} points ({found.num_equal} left the same as an "
                f"earlier one), {len(found.failures)} failed, {time.monotonic() - began:.0f} s",
                *found.failures,
                sep="\n",
                flush=True,
            )
    report(figures | {"seconds": round(time.monotonic() - began)}, args.json)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
