"""train, experiment, pretrain, trainers."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from synfoc3d.commands.common import (
    DEFAULT_TRAINER,
    Commands,
    add_device,
    add_engine,
    add_output,
    command,
    device,
    engine,
)
from synfoc3d.errors import UserError


def _train(commands: Commands) -> None:
    parser = command(commands, "train", "train inside nnU-Net", _run_train)
    parser.add_argument("dataset", help="dataset id or name")
    parser.add_argument("configuration", help="2d or 3d_fullres")
    parser.add_argument("fold", help="fold of synfoc3d split, from 0")
    parser.add_argument("-tr", dest="trainer", default=DEFAULT_TRAINER, help=f"default: {DEFAULT_TRAINER}")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans identifier, default: nnUNetPlans")
    parser.add_argument("--config", metavar="NAME|FILE", help="preset or YAML file of settings")
    parser.add_argument(
        "--set", dest="assignments", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="single settings, over --config",
    )  # fmt: skip
    parser.add_argument("--c", dest="resume", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--val", action="store_true", help="only run the final validation")
    parser.add_argument("--npz", action="store_true", help="save the conventional student's validation probabilities")
    parser.add_argument(
        "-num_gpus", dest="processes", type=int, default=1, metavar="N",
        help="processes that share each batch, one per GPU; also on the CPU; default: 1",
    )  # fmt: skip
    add_device(parser)


def _run_train(args: argparse.Namespace) -> None:
    from synfoc3d import config

    if args.resume and args.val:
        raise UserError("--c continues a training and --val only validates a finished one: give one of them.")
    before = os.environ.get(config.CONFIG_VARIABLE, "")
    base = args.config if args.config is not None else before or None  # "" of an unset shell variable is a mistake
    tree = config.override({} if base is None else config.read_partial(base), args.assignments)
    with tempfile.TemporaryDirectory() as folder:
        if tree:
            file = Path(folder) / "settings.yaml"
            file.write_text(config.dump(tree), encoding="utf-8")
            os.environ[config.CONFIG_VARIABLE] = str(file)
        try:
            _start(args)
        except UserError as error:
            # the user wrote --config or --set, not the file in between
            raise UserError(str(error).replace(str(Path(folder) / "settings.yaml"), args.config or "--set")) from None
        finally:
            os.environ[config.CONFIG_VARIABLE] = before


def _start(args: argparse.Namespace) -> None:
    """Train in this process, or in several."""
    from synfoc3d.nnunet.training import train

    arguments = {
        "dataset": args.dataset,
        "configuration": args.configuration,
        "fold": args.fold,
        "trainer": args.trainer,
        "plans": args.plans,
        "device": device(args.device),
        "resume": args.resume,
        "only_validate": args.val,
        "save_probabilities": args.npz,
    }
    if args.processes == 1:
        train(**arguments)
        return
    from synfoc3d.nnunet.launch import launch

    launch(args.processes, arguments)


def _experiment(commands: Commands) -> None:
    parser = command(
        commands, "experiment", "train, predict, evaluate and compare all methods of a plan", _run_experiment
    )
    parser.add_argument("plan", metavar="PLAN", help="YAML file, or a plan that comes along: demo, prostate, ...")
    add_output(parser, "receives everything; same folder to go on")
    parser.add_argument("-d", dest="dataset", metavar="ID", help="dataset id or name, in place of the plan's")
    parser.add_argument(
        "--set", dest="assignments", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="settings of every method",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help="in place of the plan's")
    add_engine(parser)
    parser.add_argument(
        "--run", dest="run_name", metavar="NAME", help="only what is left of this run, and of those it learns with"
    )
    parser.add_argument("--expect", metavar="HASH", help="of --run: refuse to do it for a plan that was changed")
    parser.add_argument("-num_parts", type=int, default=1, help="calls that share the runs, default: 1")
    parser.add_argument("-part_id", type=int, default=0, help="which of them this one is, from 0")
    parser.add_argument("--dry_run", action="store_true", help="print the commands that are still to run")
    parser.add_argument("--report", action="store_true", help="only report on the runs that are finished")
    add_device(parser)


def _run_experiment(args: argparse.Namespace) -> None:
    if args.expect is not None and args.run_name is None:
        raise UserError("--expect belongs to --run.")
    if args.status:
        _show_experiment(args.output)
    elif args.run_name is not None:
        sys.exit(_run_one(args))
    else:
        _run_all(args)


def _show_experiment(output: Path) -> None:
    from synfoc3d.engines.table import show
    from synfoc3d.experiment.execution import reopen
    from synfoc3d.experiment.standing import Standing

    experiment = reopen(output)
    show(Standing(experiment, experiment.runs).rows())


def _run_one(args: argparse.Namespace) -> int:
    from synfoc3d.experiment.chains import run_chain
    from synfoc3d.experiment.execution import refuse_changed_plan, reopen

    experiment = reopen(args.output, args.device)
    if args.expect is not None:
        refuse_changed_plan(experiment, args.run_name, args.expect)
    return run_chain(experiment, args.run_name)


def _run_all(args: argparse.Namespace) -> None:
    from synfoc3d.experiment.execution import list_commands, prepare, run_experiment
    from synfoc3d.experiment.plan import read_plan
    from synfoc3d.experiment.reporting import write_report

    plan = read_plan(args.plan, args.dataset, args.assignments, seeds=args.seeds)
    # a cluster's machines may have what this one has not
    chosen = device(args.device) if args.device and args.on == "local" else args.device
    experiment = prepare(plan, args.output, chosen)
    if args.dry_run:
        print("\n".join(list_commands(experiment, args.num_parts, args.part_id)))
    elif args.report:
        print(write_report(experiment))
    else:
        print(run_experiment(experiment, engine(args, plan.cluster), args.num_parts, args.part_id))


def _pretrain(commands: Commands) -> None:
    parser = command(
        commands, "pretrain", "pre-train a foundation network, or a part of it, on generated images", _run_pretrain
    )
    add_output(parser, "folder for weights, record and curves")
    parser.add_argument(
        "--objective", choices=("structures", "propagation"),
        help="structures, the default: train the compact network; propagation: train adapters for the start of ECT",
    )  # fmt: skip
    parser.add_argument(
        "--network", metavar="NAME", help="of propagation: whose decoder is adapted, default: lite_medsam"
    )
    parser.add_argument(
        "--config", metavar="NAME|FILE",
        help="preset or YAML file of settings, default: pretrain, and pretrain_propagation for propagation",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="assignments", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="single settings, over --config",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="start", metavar="WEIGHTS", help="start from this file, or from compact: this package's weights"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long, before all steps are done")
    parser.add_argument("--c", dest="resume", action="store_true", help="continue from the latest checkpoint")
    add_device(parser)


PRESETS = {None: "pretrain", "structures": "pretrain", "propagation": "pretrain_propagation"}  # by --objective


def _run_pretrain(args: argparse.Namespace) -> None:
    from synfoc3d import config
    from synfoc3d.networks.weights.known import find_checkpoint
    from synfoc3d.pretraining.loop import pretrain

    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise UserError(f"--minutes must be a number above 0, but is {args.minutes:g}.")
    # a continued run has its settings in its checkpoint
    preset = None if args.resume else PRESETS[args.objective]
    base = preset if args.config is None else args.config
    tree = config.override({} if base is None else config.read_partial(base), args.assignments)
    if args.network and args.objective != "propagation":
        raise UserError("--network names whose decoder gets adapters: give --objective propagation, too.")
    tree |= {"network": args.network} if args.network else {}
    start = args.start and find_checkpoint("compact", None if args.start == "compact" else args.start)
    weights = pretrain(
        args.output,
        tree,
        objective=args.objective,
        device=device(args.device),
        start=start,
        minutes=args.minutes,
        resume=args.resume,
    )
    name = weights.stem.removeprefix("propagation_")
    use = "checkpoint" if name == weights.stem else "adapters"
    print(f"Written to {weights}\nUse it with --set foundation.name={name} foundation.{use}={weights}")


def _trainers(commands: Commands) -> None:
    command(commands, "trainers", "the folder for nnUNet_extTrainer, and the trainers in it", _run_trainers)


def _run_trainers(args: argparse.Namespace) -> None:
    from importlib import resources

    folder = Path(str(resources.files("synfoc3d.trainers")))
    print(f"export nnUNet_extTrainer={folder}")
    for file in sorted(folder.glob("nnUNetTrainer*.py")):
        print(f"  {file.stem}")


COMMANDS = (_train, _experiment, _pretrain, _trainers)
