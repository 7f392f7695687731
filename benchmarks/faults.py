"""Kills and failing writes at every change of the file system: `python benchmarks/faults.py [--json FILE]`.

Every command that writes is killed before its N-th change of the file system, for every N, or that change fails as on a
full disk or in a folder that may not be written; then it runs again, and its folder is compared byte for byte with one
that was never disturbed. `--every 10` tries each tenth point only, `--only NAME` one command.
"""

import sys
import tempfile
import time
from pathlib import Path

from measuring import make_parser, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.faults import ERRORS, Harness, chosen


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--every", type=int, default=1, help="try each so-manieth point")
    parser.add_argument("--only", action="append", default=[], help="names of commands; repeatable")
    parser.add_argument("--fault", action="append", default=[], help=f"kill, {', '.join(ERRORS)}; repeatable")
    args = parser.parse_args()
    began, figures, failures = time.monotonic(), {"points_tried": 0, "points_failed": 0, "every": args.every}, []
    with tempfile.TemporaryDirectory() as scratch:
        harness = Harness(Path(scratch))
        for command in chosen(args.only):
            harness.state(command.name)
            for fault in args.fault or ("kill", *ERRORS):
                found = harness.try_points(command, fault, every=args.every)
                key = f"{command.name.replace(' --', '_').replace(' ', '_')}_{fault.lower()}"
                figures[f"points_{key}"] = found.num_tried
                figures["points_tried"] += found.num_tried
                figures["points_failed"] += len(found.failures)
                failures += found.failures
                print(
                    f"{key}: {found.num_tried} of {found.num_points} points, {len(found.failures)} failed", flush=True
                )
    for line in failures:
        print(line)
    report(figures | {"seconds": round(time.monotonic() - began)}, args.json)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
