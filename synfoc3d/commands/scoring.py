"""evaluate, compare."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from synfoc3d.commands.common import (
    Commands,
    add_output,
    command,
)
from synfoc3d.commands.sharing import (
    StatusOfPredictions,
    add_sharing,
    crew,
    refuse_without_engine,
    tell_status,
)
from synfoc3d.errors import UserError, cases_failed
from synfoc3d.files.layout import shared_evaluation

if TYPE_CHECKING:
    from synfoc3d.engines.base import Engine
    from synfoc3d.engines.settings import ClusterSettings
    from synfoc3d.inference.scores.evaluate import Apply


def _add_annotated(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the partly annotated cases."""
    parser.add_argument(
        "--annotated",
        type=Path,
        metavar="FILE",
        help="CSV of partly annotated cases (case,classes), default: annotated.csv in or above the labels",
    )


def _evaluate(commands: Commands) -> None:
    parser = command(commands, "evaluate", "overlap and surface distance per case, class and domain", _run_evaluate)
    parser.add_argument("-g", dest="labels", type=Path, required=True, help="folder of reference labels")
    parser.add_argument("-p", dest="predictions", type=Path, required=True, help="folder of predictions")
    parser.add_argument("--domains", type=Path, help="CSV with the columns case,domain")
    parser.add_argument(
        "--annotated",
        type=Path,
        help="CSV case,classes of partly annotated cases, default: annotated.csv by the labels",
    )
    parser.add_argument(
        "--per-slice", action="store_true", help="each 2D slice in pixels, as in SynFoC's tables; default: volumes, mm"
    )
    text = "default: results.json in the predictions; a CSV is written beside it"
    add_output(parser, text, required=False)
    parser.add_argument("-np", dest="processes", type=int, help="worker processes, default: one per processor")
    add_sharing(parser, StatusOfPredictions)


def _run_evaluate(args: argparse.Namespace) -> None:
    output = args.output or args.predictions / "results.json"
    if args.status:
        place = shared_evaluation(output)
        tell_status([place.with_name(f"{place.name}_{task}") for task in ("values", "compare")])
        return
    from synfoc3d.inference.scores.evaluate import evaluate_folder
    from synfoc3d.inference.scores.evaluation_tables import format_table

    refuse_without_engine(args)
    with _workers(args, output) as apply:
        result = evaluate_folder(
            args.labels,
            args.predictions,
            args.domains,
            output,
            annotated=args.annotated,
            num_processes=(os.cpu_count() or 1) if args.processes is None else args.processes,
            per_slice=args.per_slice,
            apply=apply,
        )
    print(format_table(result))
    print(f"Written to {output}")
    if result.failures:
        raise cases_failed(result.failures, len(result.failures) + len(result.case_names), "evaluated")


@contextmanager
def _workers(args: argparse.Namespace, output: Path) -> Iterator["Apply | None"]:
    """Return what lets workers evaluate the cases; None without an engine. They need no GPU."""
    if args.on is None:
        yield None
        return
    from synfoc3d.inference.scores.shared_evaluation import map_shared

    if args.gpus is not None:
        raise UserError("--gpus does not help evaluate, which needs processors alone: leave it out.")
    with crew(args, partial(_worker_options, args.processes), gpus=0) as hands:
        yield partial(map_shared, hands=hands, place=shared_evaluation(output.absolute()))


def _worker_options(processes: int | None, engine: "Engine", settings: "ClusterSettings") -> list[str]:
    """Return how many cases each worker does at a time: as many as it has cores, where the user names no number."""
    from synfoc3d.workers import cores_here

    if processes is None:
        here = max(1, cores_here() // (engine.slots or 1))
        processes = (settings.cpus or here) if engine.name == "local" else settings.cores
    return ["-np", str(processes)]


def _compare(commands: Commands) -> None:
    parser = command(commands, "compare", "models against each other: statistics, tables and a report", _run_compare)
    parser.add_argument("-g", dest="labels", type=Path, required=True, help="folder of reference labels")
    parser.add_argument(
        "models", nargs="+", metavar="NAME=FOLDER", help="masks, or a folder of an nnU-Net training with its validation"
    )
    add_output(parser, "folder for report.html and the tables")
    parser.add_argument("--baseline", metavar="NAME", help="what the others are tested against, default: the first")
    parser.add_argument("--domains", type=Path, help="CSV with the columns case,domain")
    parser.add_argument(
        "--annotated",
        type=Path,
        help="CSV case,classes of partly annotated cases, default: annotated.csv by the labels",
    )
    parser.add_argument(
        "--per-slice", action="store_true", help="each 2D slice in pixels, as in SynFoC's tables; default: volumes, mm"
    )
    parser.add_argument(
        "-i", dest="images", type=Path, help="folder of the scans, default: imagesTr, imagesTs or images beside labels"
    )
    parser.add_argument("--title", default="Comparison of segmentation models", help="heading of the report")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    parser.add_argument("-np", dest="processes", type=int, default=os.cpu_count() or 1, help="worker processes")


def _run_compare(args: argparse.Namespace) -> None:
    from synfoc3d.files.atomic import whole_folder
    from synfoc3d.inference.report.page import write_report
    from synfoc3d.inference.scores.comparison import compare, parse_models
    from synfoc3d.inference.scores.comparison_tables import terminal, write_tables

    models = parse_models(args.models)
    baseline = args.baseline or (next(iter(models)) if len(models) > 1 else None)
    result = compare(
        args.labels,
        models,
        baseline,
        args.domains,
        annotated=args.annotated,
        per_slice=args.per_slice,
        num_processes=args.processes,
        seed=args.seed,
    )
    report = args.output / "report.html"
    with whole_folder(args.output):
        write_tables(result, args.output)
        write_report(result, report, args.images, args.title)
    print(terminal(result))
    print(f"Report: {report}")
    if result.failures:
        compared = len(next(iter(result.evaluations.values())).case_names)
        raise cases_failed(result.failures, compared + len(result.failures), "compared")


COMMANDS = (_evaluate, _compare)
