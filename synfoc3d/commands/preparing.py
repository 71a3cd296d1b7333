"""demo, import, preprocess, split."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from synfoc3d.commands.common import (
    Commands,
    add_dataset,
    add_device,
    add_output,
    command,
    device,
)
from synfoc3d.errors import UserError

if TYPE_CHECKING:  # the commands' help needs neither torch nor nnU-Net
    from synfoc3d.files.splits import Split
    from synfoc3d.preprocessing.split_cases import SplitCases


def _demo(commands: Commands) -> None:
    parser = command(commands, "demo", "the whole pipeline on generated data, minutes on a CPU", _run_demo)
    add_output(parser, "default: ./synfoc3d_demo", required=False, default=Path("synfoc3d_demo"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated data, the split and both trainings")
    add_device(parser)


def _run_demo(args: argparse.Namespace) -> None:
    from synfoc3d.commands.demo import run_demo

    run_demo(args.output, device(args.device), args.seed)


def _import(commands: Commands) -> None:
    parser = command(commands, "import", "labeled and unlabeled scans -> an nnU-Net raw dataset", _run_import)
    parser.add_argument("-d", dest="dataset", type=int, required=True, metavar="ID", help="new dataset id, 1 to 999")
    parser.add_argument("-n", dest="name", required=True, help="new dataset name")
    parser.add_argument(
        "--labeled", type=Path, required=True, help="folder with images/ and labels/, or imagesTr/ and labelsTr/"
    )
    parser.add_argument("--unlabeled", type=Path, help="folder of unlabeled images")
    parser.add_argument("--domains", type=Path, help="CSV with the columns case,domain")
    parser.add_argument(
        "--annotated",
        type=Path,
        metavar="FILE",
        help="CSV with a line case,CLASS,CLASS... per case in which not every class was annotated; "
        "default: annotated.csv in the labeled folder",
    )
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="names of classes 1, 2, ...")
    parser.add_argument("--channels", nargs="+", metavar="NAME", help="names of channels, for example T1 FLAIR or CT")


def _run_import(args: argparse.Namespace) -> None:
    from synfoc3d.preprocessing.importing import import_dataset

    folder = import_dataset(
        args.dataset,
        args.name,
        args.labeled,
        args.unlabeled,
        domains=args.domains,
        annotated=args.annotated,
        label_names=args.labels,
        channel_names=args.channels,
    )
    print(f"Imported into {folder}\nNext: synfoc3d preprocess -d {args.dataset}")


def _preprocess(commands: Commands) -> None:
    parser = command(
        commands, "preprocess", "nnU-Net's planning and preprocessing, then the unlabeled scans", _run_preprocess
    )
    add_dataset(parser)
    parser.add_argument("-c", dest="configurations", nargs="+", help="default: 2d and, where planned, 3d_fullres")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier, default: nnUNetPlans")
    parser.add_argument("-np", dest="processes", type=int, default=min(4, os.cpu_count() or 1), help="worker processes")


def _run_preprocess(args: argparse.Namespace) -> None:
    from synfoc3d.preprocessing.unlabeled import preprocess_dataset

    preprocess_dataset(args.dataset, args.configurations, args.plans, args.processes)
    print(f"Preprocessed. Next: synfoc3d split -d {args.dataset}")


def _split(commands: Commands) -> None:
    parser = command(commands, "split", "choose labeled, unlabeled and validation cases per fold", _run_split)
    add_dataset(parser)
    parser.add_argument(
        "--num-labeled", type=int, metavar="N", help="labeled patients (scans, where a patient has one)"
    )
    parser.add_argument("--labeled-domain", metavar="X", help="take the labeled cases from this domain only")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="validation folds, default: 5")
    parser.add_argument("--seed", type=int, default=12345, help="same seed, same split; default: 12345")
    parser.add_argument("--labeled-ids", metavar="FILE", help="case ids, one per line, or file.json:key")
    parser.add_argument("--unlabeled-ids", metavar="FILE", help="ids likewise; default: every other case")
    parser.add_argument("--val-ids", metavar="FILE", help="ids likewise; default: none")
    parser.add_argument(
        "--no-also-unlabeled",
        dest="also_unlabeled",
        action="store_false",
        help="do not let labeled cases that are sparsely or partly annotated be unlabeled ones, too",
    )
    parser.add_argument("--patient-pattern", metavar="REGEX", help="its first group names a case's patient")


def _run_split(args: argparse.Namespace) -> None:
    from synfoc3d.preprocessing.datasets import prepared_configuration
    from synfoc3d.preprocessing.incomplete import add_incomplete
    from synfoc3d.preprocessing.split_cases import read_split_cases
    from synfoc3d.preprocessing.split_rules import describe_splits, split_by_count, write_splits

    _check_ways_to_split(args)
    cases = read_split_cases(args.dataset, args.patient_pattern)
    if args.labeled_ids:
        splits = _split_by_lists(cases, args)
    else:
        splits = split_by_count(cases, args.num_labeled, args.labeled_domain, folds=args.folds, seed=args.seed)
    splits = add_incomplete(cases, splits, args.also_unlabeled)
    file = write_splits(cases, splits)
    print(describe_splits(cases, splits))
    configuration = prepared_configuration(file.parent)
    if configuration is None:
        print(f"Written to {file}\nNext: synfoc3d preprocess -d {args.dataset}")
    else:
        print(f"Written to {file}\nNext: synfoc3d train {args.dataset} {configuration} 0")


def _check_ways_to_split(args: argparse.Namespace) -> None:
    """Refuse options of the two ways to split, by number and by list, that exclude each other."""
    by_count = (args.num_labeled, args.labeled_domain)
    if args.labeled_ids and any(value is not None for value in by_count):
        raise UserError("--labeled-ids lists the labeled cases: leave out --num-labeled and --labeled-domain.")
    if not args.labeled_ids and (args.unlabeled_ids or args.val_ids):
        raise UserError("--unlabeled-ids and --val-ids need --labeled-ids.")


def _split_by_lists(cases: "SplitCases", args: argparse.Namespace) -> "list[Split]":
    """Return the one split whose cases the given files list."""
    from synfoc3d.preprocessing.split_rules import read_ids, split_by_ids

    sources = (args.labeled_ids, args.unlabeled_ids, args.val_ids)
    labeled, unlabeled, val = (read_ids(source, cases.all) if source else None for source in sources)
    return split_by_ids(cases, labeled or [], unlabeled, val or ())


COMMANDS = (_demo, _import, _preprocess, _split)
