"""doctor."""

import argparse
import sys

from synfoc3d.commands.common import Commands, command


def _doctor(commands: Commands) -> None:
    parser = command(commands, "doctor", "what is missing or wrong here, and how to mend it", _run_doctor)
    parser.add_argument("-d", dest="dataset", metavar="ID", help="also look at this dataset (id or name)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run_doctor(args: argparse.Namespace) -> None:
    from synfoc3d.doctor.examination import count, examine, to_json, to_text

    report = examine(args.dataset)
    print(to_json(report) if args.json else to_text(report))
    if count(report, "error"):
        sys.exit(1)


COMMANDS = (_doctor,)
