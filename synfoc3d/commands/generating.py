"""generate; and how many scans the demo has, which are its defaults."""

import argparse
import shlex

from synfoc3d.commands.common import Commands, add_output, command
from synfoc3d.files.layout import DOMAINS_FILE

DATASET = "501"  # in the commands that are shown
LABELED_SCANNER = "A"
TRAIN_PER_SCANNER, LABELED, TEST_PER_SCANNER = 8, 6, 4


def _generate(commands: Commands) -> None:
    from synfoc3d.preprocessing.generated.kinds import KINDS

    text = "scans of four generated scanners, to try everything without a scan of one's own"
    parser = command(commands, "generate", text, _run_generate)
    add_output(parser, "receives the scans; new or empty")
    parser.add_argument(
        "--labels", choices=tuple(KINDS), default="plain",
        help="; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items()) + "; default: plain",
    )  # fmt: skip
    for option, default, counted in (
        ("--num-cases", TRAIN_PER_SCANNER, "training scans of each scanner"),
        ("--num-labeled", LABELED, f"how many of scanner {LABELED_SCANNER}'s are labeled"),
        ("--num-test", TEST_PER_SCANNER, "test scans of each scanner, with labels"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{counted}, default: {default}")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same voxels; default: 0")


def _run_generate(args: argparse.Namespace) -> None:
    from synfoc3d.preprocessing.generated.generate import generate_dataset
    from synfoc3d.preprocessing.generated.kinds import KINDS

    cases = generate_dataset(
        args.output,
        args.num_cases,
        {LABELED_SCANNER: args.num_labeled},
        test_per_scanner=args.num_test,
        seed=args.seed,
        labels=args.labels,
    )
    print(
        f"Generated {len(cases)} scans of 4 scanners in {args.output}; labels: {args.num_labeled} scans of scanner "
        f"{LABELED_SCANNER}, {args.labels} ({KINDS[args.labels]})."
    )
    names = "labeled", "unlabeled", DOMAINS_FILE
    labeled, unlabeled, domains = (shlex.quote(str(args.output / name)) for name in names)
    print(
        f"Next: synfoc3d import -d {DATASET} -n Generated --labeled {labeled} --unlabeled {unlabeled} "
        f"--domains {domains}\n"
        f"      synfoc3d preprocess -d {DATASET} -c 2d\n"
        f"      synfoc3d split -d {DATASET} --folds 1\n"
        f"      synfoc3d train {DATASET} 2d 0 --config demo"
    )


COMMANDS = (_generate,)
