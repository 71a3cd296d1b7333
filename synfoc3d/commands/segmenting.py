"""predict, rank, export."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synfoc3d.commands.common import (
    Commands,
    add_device,
    add_model,
    add_output,
    cluster_settings,
    command,
    device,
)
from synfoc3d.commands.sharing import add_sharing, crew, refuse_without_engine, tell_status
from synfoc3d.errors import UserError
from synfoc3d.files.layout import DOMAINS_FILE, SHARED_PREDICTION, UNLABELED_IMAGES
from synfoc3d.networks.prompts import CENTER, PROMPTS
from synfoc3d.prediction_modes import MODES

if TYPE_CHECKING:
    from synfoc3d.inference.models import ModelChoice
    from synfoc3d.inference.predict import PredictOptions
    from synfoc3d.inference.prompts import PromptChoice
    from synfoc3d.inference.untrained import UntrainedChoice


def _choice(args: argparse.Namespace, mode: str | None = None) -> "ModelChoice":
    """Return the model that the arguments of :func:`add_model` name."""
    from synfoc3d.inference.models import ModelChoice

    named: dict[str, Any] = {
        "folds": args.folds and tuple(args.folds),
        "trainer": args.trainer,
        "checkpoint": args.checkpoint,
        "model": mode,
    }
    given = {key: value for key, value in named.items() if value is not None}
    return ModelChoice(args.dataset, args.configuration, plans=args.plans, **given)


def _untrained(args: argparse.Namespace) -> "UntrainedChoice":
    """Return the published network that the arguments name, and refuse those of a training."""
    from synfoc3d.inference.untrained import UntrainedChoice

    of_training = {"-f": args.folds, "-tr": args.trainer, "-chk": args.checkpoint, "--model": args.model}
    given = [flag for flag, value in of_training.items() if value is not None]
    if given:
        raise UserError(f"--untrained {args.untrained} reads no training: leave out {', '.join(given)}.")
    return UntrainedChoice(
        args.untrained, args.dataset, args.configuration, plans=args.plans, image_size=args.image_size
    )


def _predict(commands: Commands) -> None:
    parser = command(commands, "predict", "segment scans with a trained model, or an untrained one", _run_predict)
    parser.add_argument("-i", dest="source", type=Path, required=True, help="folder of images, or one image file")
    add_output(parser, "folder (or file, for one image)")
    add_model(parser)
    modes = "; ".join(f"{mode.name}: {mode.description}" for mode in MODES.values())
    parser.add_argument("--model", choices=tuple(MODES), help=f"{modes}; default: the best on validation cases")
    parser.add_argument(
        "--untrained",
        metavar="NAME",
        help="a foundation network as published, without any training; with --prompt",
    )
    parser.add_argument("--image_size", type=int, metavar="PIXELS", help="of --untrained, default: the network's own")
    prompts = "; ".join(f"{name}: {text}" for name, text in PROMPTS.items())
    parser.add_argument(
        "--prompt", choices=tuple(PROMPTS), help=f"for a model that takes one, {prompts}; default: {CENTER}"
    )
    parser.add_argument(
        "--points", type=Path, metavar="FILE", help="CSV with the columns case,class,x,y,z and perhaps unit"
    )
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="CSV with the columns case,class,z,x0,y0,x1,y1")
    parser.add_argument("--references", type=Path, metavar="FOLDER", help="masks named case.ENDING")
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
    add_device(parser)
    add_sharing(parser)


def _run_predict(args: argparse.Namespace) -> None:
    import logging

    from synfoc3d.inference.inputs import find_cases

    if args.status:
        tell_status([place / SHARED_PREDICTION for place in (args.output, args.output.parent)])
        return
    refuse_without_engine(args)
    if args.image_size is not None and args.untrained is None:
        raise UserError("--image_size is for --untrained: a trained network keeps the size it was trained at.")
    find_cases(args.source)  # before torch is imported, which takes seconds
    from synfoc3d.inference.prompts import PromptChoice

    choice = _choice(args, args.model) if args.untrained is None else _untrained(args)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("synfoc3d.inference").setLevel(logging.INFO)  # which networks answer
    if args.verbose:
        for name in ("synfoc3d", "synfoc3d.inference"):
            logging.getLogger(name).setLevel(logging.DEBUG)
    options, prompt = _options(args), PromptChoice(args.prompt, args.points, args.references, args.boxes)
    if args.on is not None:
        count = _predict_shared(args, choice, options, prompt)
    else:
        from synfoc3d.inference.predict import predict

        count = predict(args.source, args.output, choice, device=device(args.device), options=options, prompt=prompt)
    print(f"Segmented {count} scan{'s' if count != 1 else ''} into {args.output}")


def _options(args: argparse.Namespace) -> "PredictOptions":
    from synfoc3d.inference.predict import FAST_STEP_SIZE, PredictOptions

    default_step = FAST_STEP_SIZE if args.fast else PredictOptions.step_size
    return PredictOptions(
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


def _predict_shared(
    args: argparse.Namespace,
    choice: "ModelChoice | UntrainedChoice",
    options: "PredictOptions",
    prompt: "PromptChoice",
) -> int:
    """Segment by workers, all on the same kind of device; return the number of scans."""
    from synfoc3d.inference.shared_prediction import predict_shared

    if args.on == "local":
        workers_device = device(args.device)
    else:  # this machine may have none of the cluster's GPUs
        workers_device = args.device or ("cuda" if cluster_settings(args).gpus else "cpu")
    line = ["-device", workers_device, *(["--verbose"] if args.verbose else [])]
    with crew(args, lambda _engine, _settings: line) as hands:
        return predict_shared(
            args.source, args.output, choice, hands, device=workers_device, options=options, prompt=prompt
        )


def _rank(commands: Commands) -> None:
    parser = command(commands, "rank", "which unlabeled scans the networks are least sure of", _run_rank)
    parser.add_argument("-i", dest="source", type=Path, help="folder of images, default: the dataset's imagesUn")
    add_output(parser, "folder for rank.csv and rank.png")
    add_model(parser)
    parser.add_argument("--domains", type=Path, help="CSV with the columns case,domain, default: the dataset's")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="cases in rank.png, default: 8")
    parser.add_argument("-npp", type=int, default=min(3, os.cpu_count() or 1), help="preprocessing processes")
    parser.add_argument("--disable_progress_bar", action="store_true")
    add_device(parser)


def _run_rank(args: argparse.Namespace) -> None:
    from synfoc3d.files.folders import find_dataset, nnunet_folder
    from synfoc3d.inference.inputs import find_cases

    source, domains = args.source, args.domains
    if source is None:
        dataset = nnunet_folder("nnUNet_raw") / find_dataset(args.dataset)
        source, own = dataset / UNLABELED_IMAGES, dataset / DOMAINS_FILE
        domains = domains or (own if own.is_file() else None)
    find_cases(source)  # before torch is imported, which takes seconds
    from synfoc3d.inference.rank import rank

    cases = rank(
        source,
        args.output,
        _choice(args),
        device=device(args.device),
        domains=domains,
        processes=args.npp,
        pictures=args.pictures,
        progress_bar=not args.disable_progress_bar,
    )
    print("rank  alpha  self  mutual  case")
    for number, one in enumerate(cases[:20], 1):
        print(f"{number:4}  {one.alpha:5.2f}  {one.own:4.2f}  {one.mutual:6.2f}  {one.case}")
    if len(cases) > 20:
        print(f"... and {len(cases) - 20} more")
    print(f"Written to {args.output}: rank.csv, rank.png. Annotate from the top.")


def _export(commands: Commands) -> None:
    parser = command(commands, "export", "the conventional student as a model for nnU-Net alone", _run_export)
    add_model(parser)
    add_output(parser, "new file.zip, or new folder")


def _run_export(args: argparse.Namespace) -> None:
    from synfoc3d.inference.export_model import export_model

    lines = export_model(_choice(args), args.output)
    print("\n  ".join([f"Exported to {args.output}\nWith nnU-Net alone:", *lines]))


COMMANDS = (_predict, _rank, _export)
