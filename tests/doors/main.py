"""The doors of the broker in full numbers: `scripts/doors` calls this. See docs/testing.md."""

import argparse
import signal
import sys
from pathlib import Path

import attack
import browser
import measure
import scan
from report import Report

RUNS = {"attack": attack.run, "browser": browser.run, "scan": scan.run, "measure": measure.run}


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/doors", description=__doc__)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--berth", required=True, help="the program, a release build where its speed counts")
    parser.add_argument("--scale", type=float, default=1.0, help="the part of all counts and times to run (default 1.0)")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    parser.add_argument("--only", action="append", help="run only this attack or measurement; repeatable")
    parser.add_argument("--seconds", type=float, help="attack: length of each window (default 30)")
    parser.add_argument("--rate", type=float, default=400, help="attack: messages a second of the load (default 400)")
    parser.add_argument("--persistent", action="store_true", help="attack: the load's subscribers keep their sessions")
    parser.add_argument("--keep-log", type=Path, help="attack: file for the broker's log")
    parser.add_argument("--mqload", help="measure: the load generator; without it throughput is left out")
    parser.add_argument("--rounds", type=int, default=3, help="measure: runs of each, of which the median is told (default 3)")
    args = parser.parse_args()
    args.berth = str(Path(args.berth).resolve())
    if args.mqload:
        args.mqload = str(Path(args.mqload).resolve())
    return args


def main() -> int:
    args = arguments()
    # What was started here ends with this, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report(f"doors {args.run}, scale {args.scale}")
    RUNS[args.run](args, report)
    return report.finish(args.out)


if __name__ == "__main__":
    sys.exit(main())
