"""The command line: one thin function per subcommand; heavy imports happen inside it, so that --help is instant."""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from synfoc3d import __version__
from synfoc3d.errors import UserError, cases_failed

DEFAULT_TRAINER = "nnUNetTrainerSynFoC"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; exits with 0 when the job is done, 1 after a failure, 2 for wrong usage."""
    args = _parser().parse_args(arguments)
    # nnU-Net imports all of its trainers to find one, and a library of one of them warns about itself
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.interface")
    # nnU-Net starts 8 processes where it is not told otherwise, far too many for a laptop
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))
    try:
        args.run(args)
    except UserError as error:
        print(f"synfoc3d {args.command}: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output left, for example "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"synfoc3d {args.command}: interrupted", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synfoc3d",
        description="Semi-supervised 3D medical image segmentation inside nnU-Net: SynFoC and its relatives.",
        epilog="Start with 'synfoc3d demo'. Folders are nnU-Net's: nnUNet_raw, nnUNet_preprocessed, nnUNet_results.",
    )
    parser.add_argument("--version", action="version", version=f"synfoc3d {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_demo, _import, _preprocess, _split, _train, _predict, _rank, _evaluate, _trainers):
        add(commands)
    return parser


Run = Callable[[argparse.Namespace], None]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: Commands, name: str, text: str, run: Run) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", dest="dataset", required=True, metavar="ID", help="dataset id or name (501 or Dataset501_X)"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda, else mps, else cpu")


# --- demo ------------------------------------------------------------------------------------------------------------


def _demo(commands: Commands) -> None:
    parser = _command(commands, "demo", "everything below on generated data, minutes on a CPU", _run_demo)
    parser.add_argument("-o", dest="folder", type=Path, default=Path("synfoc3d_demo"), help="default: ./synfoc3d_demo")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated data and of both trainings")
    _add_device(parser)


def _run_demo(args: argparse.Namespace) -> None:
    from synfoc3d.demo import run_demo

    run_demo(args.folder, _device(args.device), args.seed)


# --- data ------------------------------------------------------------------------------------------------------------


def _import(commands: Commands) -> None:
    parser = _command(commands, "import", "labelled and unlabelled scans -> an nnU-Net raw dataset", _run_import)
    parser.add_argument("-d", dest="dataset", type=int, required=True, metavar="ID", help="new dataset id, 1 to 999")
    parser.add_argument("-n", dest="name", required=True, help="new dataset name")
    parser.add_argument("--labeled", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("--unlabeled", type=Path, help="folder of unlabelled images")
    parser.add_argument("--domains", type=Path, help="CSV with the columns case,domain")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="names of classes 1, 2, ...")
    parser.add_argument("--channels", nargs="+", metavar="NAME", help="names of channels, for example T1 FLAIR or CT")


def _run_import(args: argparse.Namespace) -> None:
    from synfoc3d.preprocessing.importing import import_dataset

    folder = import_dataset(
        args.dataset, args.name, args.labeled, args.unlabeled, args.domains, args.labels, args.channels
    )
    print(f"Imported into {folder}\nNext: synfoc3d preprocess -d {args.dataset}")


def _preprocess(commands: Commands) -> None:
    parser = _command(
        commands, "preprocess", "nnU-Net's planning and preprocessing, then the unlabelled scans", _run_preprocess
    )
    _add_dataset(parser)
    parser.add_argument("-c", dest="configurations", nargs="+", help="default: 2d and, where planned, 3d_fullres")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier, default: nnUNetPlans")
    parser.add_argument("-np", dest="processes", type=int, default=min(4, os.cpu_count() or 1), help="worker processes")


def _run_preprocess(args: argparse.Namespace) -> None:
    from synfoc3d.preprocessing.unlabeled import preprocess_dataset

    preprocess_dataset(args.dataset, args.configurations, args.plans, args.processes)
    print(f"Preprocessed. Next: synfoc3d split -d {args.dataset}")


def _split(commands: Commands) -> None:
    parser = _command(commands, "split", "choose labelled, unlabelled and validation cases per fold", _run_split)
    _add_dataset(parser)
    parser.add_argument(
        "--num-labeled", type=int, metavar="N", help="labelled patients (scans, where a patient has one)"
    )
    parser.add_argument("--labeled-domain", metavar="X", help="take the labelled cases from this domain only")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="validation folds, default: 5")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--labeled-ids", metavar="FILE", help="case ids, one per line, or file.json:key")
    parser.add_argument("--unlabeled-ids", metavar="FILE", help="ids likewise; default: every other case")
    parser.add_argument("--val-ids", metavar="FILE", help="ids likewise; default: none")
    parser.add_argument("--patient-pattern", metavar="REGEX", help="its first group names a case's patient")


def _run_split(args: argparse.Namespace) -> None:
    from synfoc3d.preprocessing.split_cases import read_split_cases
    from synfoc3d.preprocessing.splits import describe_splits, read_ids, split_by_count, split_by_ids, write_splits

    by_count = (args.num_labeled, args.labeled_domain)
    if args.labeled_ids and any(value is not None for value in by_count):
        raise UserError("--labeled-ids lists the labelled cases: leave out --num-labeled and --labeled-domain.")
    if not args.labeled_ids and (args.unlabeled_ids or args.val_ids):
        raise UserError("--unlabeled-ids and --val-ids need --labeled-ids.")
    cases = read_split_cases(args.dataset, args.patient_pattern)
    if args.labeled_ids:
        sources = (args.labeled_ids, args.unlabeled_ids, args.val_ids)
        labeled, unlabeled, val = (read_ids(source, cases.all) if source else None for source in sources)
        splits = split_by_ids(cases, labeled or [], unlabeled, val or ())
    else:
        splits = split_by_count(cases, args.num_labeled, args.labeled_domain, args.folds, args.seed)
    file = write_splits(cases, splits)
    print(describe_splits(cases, splits))
    print(f"Written to {file}\nNext: synfoc3d train {args.dataset} 2d 0")


# --- training --------------------------------------------------------------------------------------------------------


def _train(commands: Commands) -> None:
    parser = _command(commands, "train", "train inside nnU-Net", _run_train)
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("configuration", help="2d or 3d_fullres")
    parser.add_argument("fold", help="fold of synfoc3d split, from 0")
    parser.add_argument("-tr", dest="trainer", default=DEFAULT_TRAINER, help=f"default: {DEFAULT_TRAINER}")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier, default: nnUNetPlans")
    parser.add_argument("--config", metavar="NAME|FILE", help="preset or YAML file of settings")
    parser.add_argument("--set", dest="assignments", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--c", dest="resume", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--val", action="store_true", help="only run the final validation")
    parser.add_argument("--npz", action="store_true", help="save the conventional student's validation probabilities")
    _add_device(parser)


def _run_train(args: argparse.Namespace) -> None:
    from synfoc3d import config
    from synfoc3d.training import train

    if args.resume and args.val:
        raise UserError("--c continues a training and --val only validates a finished one: give one of them.")
    before = os.environ.get(config.CONFIG_VARIABLE, "")
    base = args.config or before
    tree = config.override(config.read_partial(base) if base else {}, args.assignments)
    with tempfile.TemporaryDirectory() as folder:
        if tree:
            file = Path(folder) / "settings.yaml"
            file.write_text(config.dump(tree), encoding="utf-8")
            os.environ[config.CONFIG_VARIABLE] = str(file)
        try:
            train(
                args.dataset, args.configuration, args.fold, args.trainer, args.plans, _device(args.device),
                resume=args.resume, only_validate=args.val, save_probabilities=args.npz,
            )  # fmt: skip
        except UserError as error:
            # the user wrote --config or --set, not the file in between
            raise UserError(str(error).replace(str(Path(folder) / "settings.yaml"), args.config or "--set")) from None
        finally:
            os.environ[config.CONFIG_VARIABLE] = before


def _trainers(commands: Commands) -> None:
    _command(commands, "trainers", "the folder for nnUNet_extTrainer, and the trainers in it", _run_trainers)


def _run_trainers(args: argparse.Namespace) -> None:
    from importlib import resources

    folder = Path(str(resources.files("synfoc3d.trainers")))
    print(f"export nnUNet_extTrainer={folder}")
    for file in sorted(folder.glob("nnUNetTrainer*.py")):
        print(f"  {file.stem}")


# --- results ---------------------------------------------------------------------------------------------------------


def _predict(commands: Commands) -> None:
    parser = _command(commands, "predict", "segment scans with a trained model", _run_predict)
    parser.add_argument("-i", dest="source", type=Path, required=True, help="folder of images, or one image file")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder (or file, for one image)")
    _add_model(parser)
    parser.add_argument("--model", choices=("foundation", "conventional", "ensemble"), help="default: all trained")
    parser.add_argument("-step_size", type=float, help="sliding window step, default: 0.5")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring at test time")
    parser.add_argument(
        "--fast", action="store_true", help="no mirroring, steps of 0.75, and bfloat16 on a CPU that is fast in it"
    )
    parser.add_argument("--save_probabilities", action="store_true", help="write case.npz and case.pkl as well")
    parser.add_argument("--continue_prediction", action="store_true", help="leave out cases that are finished")
    parser.add_argument("-num_parts", type=int, default=1, help="calls that share the cases, default: 1")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this one is, from 0")
    workers = min(3, os.cpu_count() or 1)
    parser.add_argument("-npp", type=int, default=workers, help=f"preprocessing processes, default: {workers}")
    parser.add_argument("-nps", type=int, default=workers, help=f"export processes, default: {workers}")
    parser.add_argument("--disable_progress_bar", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="log what happens, and tracebacks of failed cases")
    _add_device(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a trained model, as in nnU-Net."""
    _add_dataset(parser)
    parser.add_argument("-c", dest="configuration", required=True, help="2d or 3d_fullres")
    parser.add_argument("-f", dest="folds", nargs="+", type=_fold, default=[0], help="folds, default: 0")
    parser.add_argument("-tr", dest="trainer", default=DEFAULT_TRAINER, help=f"default: {DEFAULT_TRAINER}")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier, default: nnUNetPlans")
    parser.add_argument("-chk", dest="checkpoint", default="checkpoint_final.pth", help="default: checkpoint_final.pth")


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


def _run_predict(args: argparse.Namespace) -> None:
    import logging

    from synfoc3d.inference.predict import FAST_STEP_SIZE, ModelChoice, PredictOptions, predict

    if args.verbose:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("synfoc3d").setLevel(logging.DEBUG)
    choice = ModelChoice(
        args.dataset, args.configuration, tuple(args.folds), args.trainer, args.plans, args.checkpoint, args.model
    )
    default_step = FAST_STEP_SIZE if args.fast else 0.5
    options = PredictOptions(
        step_size=default_step if args.step_size is None else args.step_size,
        mirroring=not (args.disable_tta or args.fast),
        precision="auto" if args.fast else None,
        save_probabilities=args.save_probabilities,
        skip_finished=args.continue_prediction,
        num_parts=args.num_parts,
        part_id=args.part_id,
        preprocessing_processes=args.npp,
        export_processes=args.nps,
        progress_bar=not args.disable_progress_bar,
    )
    count = predict(args.source, args.output, choice, _device(args.device), options)
    print(f"Segmented {count} scan{'s' if count != 1 else ''} into {args.output}")


def _rank(commands: Commands) -> None:
    parser = _command(commands, "rank", "which unlabelled scans the networks are least sure of", _run_rank)
    parser.add_argument("-i", dest="source", type=Path, help="folder of images, default: the dataset's imagesUn")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder for rank.csv and rank.png")
    _add_model(parser)
    parser.add_argument("--domains", type=Path, help="CSV with the columns case,domain")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="cases in rank.png, default: 8")
    parser.add_argument("-npp", type=int, default=min(3, os.cpu_count() or 1), help="preprocessing processes")
    parser.add_argument("--disable_progress_bar", action="store_true")
    _add_device(parser)


def _run_rank(args: argparse.Namespace) -> None:
    from synfoc3d.folders import find_dataset, nnunet_folder
    from synfoc3d.inference.models import ModelChoice
    from synfoc3d.inference.rank import rank

    choice = ModelChoice(args.dataset, args.configuration, tuple(args.folds), args.trainer, args.plans, args.checkpoint)
    source = args.source or nnunet_folder("nnUNet_raw") / find_dataset(args.dataset) / "imagesUn"
    cases = rank(
        source, args.output, choice, _device(args.device), args.domains, args.npp, args.pictures,
        not args.disable_progress_bar,
    )  # fmt: skip
    print("rank  alpha  self  mutual  case")
    for number, one in enumerate(cases[:20], 1):
        print(f"{number:4}  {one.alpha:5.2f}  {one.own:4.2f}  {one.mutual:6.2f}  {one.case}")
    if len(cases) > 20:
        print(f"... and {len(cases) - 20} more")
    print(f"Written to {args.output}: rank.csv, rank.png. Annotate from the top.")


def _evaluate(commands: Commands) -> None:
    parser = _command(commands, "evaluate", "Dice, Jaccard, 95HD and ASD per case, class and domain", _run_evaluate)
    parser.add_argument("-g", dest="labels", type=Path, required=True, help="folder of reference labels")
    parser.add_argument("-p", dest="predictions", type=Path, required=True, help="folder of predictions")
    parser.add_argument("--domains", type=Path, help="CSV with the columns case,domain")
    parser.add_argument(
        "--per-slice", action="store_true", help="each 2D slice in pixels, as in SynFoC's tables; default: volumes, mm"
    )
    parser.add_argument("-o", dest="output", type=Path, help="results.json (a CSV is written beside it)")
    parser.add_argument("-np", dest="processes", type=int, default=os.cpu_count() or 1, help="worker processes")


def _run_evaluate(args: argparse.Namespace) -> None:
    from synfoc3d.inference.evaluate import evaluate_folder
    from synfoc3d.inference.tables import format_table

    output = args.output or args.predictions / "results.json"
    result = evaluate_folder(
        args.labels, args.predictions, args.domains, output, num_processes=args.processes, per_slice=args.per_slice
    )
    print(format_table(result))
    print(f"Written to {output}")
    if result.failures:
        raise cases_failed(result.failures, len(result.failures) + len(result.case_names), "evaluated")


def _device(name: str | None) -> str:
    """The device asked for, or the best one there is."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available[name]:
        raise UserError(f"-device {name} was asked for, but torch finds none here: use -device cpu.")
    return name
