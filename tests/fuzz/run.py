"""Try thousands of bad inputs: ``python tests/fuzz/run.py -n 2000 --seed 0``.

Prints how they were taken, by kind, and every finding with the number that makes it again (``--only NUMBER``). Exit
status 1 if there is one.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from inputs import bad_input  # noqa: E402
from judging import judge  # noqa: E402
from making import make_place, nothing_trains  # noqa: E402


def main() -> None:
    """Run all inputs, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2000, help="number of inputs, default: 2000")
    parser.add_argument("--first", type=int, default=0, help="number of the first, default: 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of one input")
    parser.add_argument(
        "--project", type=Path, help="folder of a project that an earlier run made; made anew if missing"
    )
    parser.add_argument("--verbose", action="store_true", help="print every input and what is said of it")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        root = args.project or Path(temporary) / "project"
        place = _existing(root) or make_place(root)
        numbers = range(args.first, args.first + args.n) if args.only is None else [args.only]
        counts: Counter[tuple[str, str]] = Counter()
        with nothing_trains(place):
            for number in numbers:
                bad = bad_input(number, args.seed, place)
                verdict = judge(bad, place)
                counts[bad.kind, verdict.outcome] += 1
                if verdict.is_finding or args.verbose:
                    print(f"{number} {bad.kind} {verdict.outcome.upper()}: {bad.what}\n    {verdict.said}", flush=True)
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{kind:12} {outcome:10} {count}")
    findings = sum(counts[key] for key in counts if key[1] in ("traceback", "hang", "partial", "accepted"))
    print(f"{sum(counts.values())} inputs, {findings} findings")
    sys.exit(bool(findings))


def _existing(root: Path):  # noqa: ANN202 - a Place
    from making import Project, prepare

    return prepare(Project(root)) if (root / "nnUNet_results").is_dir() else None


if __name__ == "__main__":
    main()
