"""Export the conventional student of a training as a model that nnU-Net uses without this package."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier

from synfoc3d import __version__
from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError
from synfoc3d.files.atomic import naming
from synfoc3d.files.layout import CHECKPOINT_BEST, CHECKPOINT_FINAL, DESCRIPTION_FILE, PLANS_FILE, fold_folder
from synfoc3d.inference.models import ModelChoice, build_conventional, check_files, read_info
from synfoc3d.nnunet.case_files import ModelInfo

STOCK_TRAINER = nnUNetTrainer.__name__
FACTS_FILE = "synfoc3d_export.json"
README_FILE = "README.txt"
Found = Mapping[int | str, Mapping[str, Any]]  # checkpoints by fold

README = """\
A model for nnU-Net, trained with synfoc3d {version} ({trainer}) and exported for use without synfoc3d.

Dataset {dataset}, configuration {configuration}, folds {folds}. It holds the conventional network of that training, not
the foundation network. Settings of the training: {facts}.

nnU-Net (pip install nnunetv2; exported with version {nnunet}) uses it in either of two ways:

{commands}

The folder is called {stock} as that is the class with which nnU-Net builds the network. Installing the zip replaces
a model of your own that was trained with {stock} on a dataset of the same name; where you have one, use the folder.
"""


def export_model(choice: ModelChoice, output: Path) -> list[str]:
    """Write a model folder, or a zip of one, that nnU-Net's own commands predict with.

    The checkpoints name nnU-Net's own trainer and hold what its predictor reads: weights, configuration and mirroring
    axes. Beside checkpoint_final.pth lies checkpoint_best.pth, for which converters of nnU-Net's models ask: the best
    epoch, or the same network where the training kept none. Local paths (of foundation weights, of the training's
    files) are left out. The output appears whole or not at all.

    Args:
        choice: dataset, configuration, folds, trainer, plans and checkpoint; its ``model`` does not matter.
        output: a file name that ends in ``.zip``, laid out for nnUNetv2_install_pretrained_model_from_zip, or a folder
            for nnUNetv2_predict_from_modelfolder; must not exist.

    Returns:
        The commands that use the result, one per line of a terminal.

    Raises:
        UserError: the output exists, there is no such training, fold or checkpoint, it holds no conventional student,
            or nnU-Net would build another network than the one trained.
    """
    if output.exists():
        raise UserError(f"{output} exists already: remove it, or give another name with -o.")
    source, info = choice.folder(), read_info(choice)
    dataset = source.parent.name
    files = {fold: fold_folder(source, fold) / choice.checkpoint for fold in choice.folds}
    found = {fold: checkpoints.load(file) for fold, file in files.items()}
    expected = _stock_shapes(info)
    for fold, checkpoint in found.items():
        check_files(files[fold], checkpoint, info)
        with checkpoints.as_written(files[fold]):
            _check_weights(checkpoint, expected, files[fold])

    with checkpoints.as_written(source):
        best, facts = _best_of(files, found, expected), _facts(choice, dataset, found)
    as_zip = output.suffix.lower() == ".zip"
    with _appearing_whole(output) as temporary:
        model = temporary / dataset / _identifier(choice)
        _write_model(source, model, found, best, info.dataset_json)
        (model / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (model / README_FILE).write_text(_readme(choice, dataset), encoding="utf-8")
        os.rename(_zipped(model.parent) if as_zip else model, output)
    return _commands_zip(choice, dataset, output) if as_zip else [_command_folder(choice, output)]


def _identifier(choice: ModelChoice) -> str:
    """Return the name of the exported model's folder."""
    return convert_trainer_plans_config_to_identifier(STOCK_TRAINER, choice.plans, choice.configuration)


def _folds(choice: ModelChoice) -> str:
    return " ".join(map(str, choice.folds))


def _commands_zip(choice: ModelChoice, dataset: str, file: Path) -> list[str]:
    """Return the commands that use an exported zip."""
    plans = "" if choice.plans == "nnUNetPlans" else f" -p {choice.plans}"
    return [
        f"nnUNetv2_install_pretrained_model_from_zip {file}",
        f"nnUNetv2_predict -i SCANS -o MASKS -d {dataset} -c {choice.configuration}{plans} -f {_folds(choice)}",
    ]


def _command_folder(choice: ModelChoice, folder: Path) -> str:
    """Return the command that uses an exported folder."""
    return f"nnUNetv2_predict_from_modelfolder -i SCANS -o MASKS -m {folder} -f {_folds(choice)}"


def _readme(choice: ModelChoice, dataset: str) -> str:
    """Return the text that lies beside the model."""
    lines = [*_commands_zip(choice, dataset, Path("MODEL.zip")), "", _command_folder(choice, Path("THIS_FOLDER"))]
    return README.format(
        version=__version__,
        trainer=choice.trainer,
        dataset=dataset,
        configuration=choice.configuration,
        folds=_folds(choice),
        facts=FACTS_FILE,
        nnunet=metadata.version("nnunetv2"),
        commands="\n".join(f"    {line}".rstrip() for line in lines),
        stock=STOCK_TRAINER,
    )


def _stock_shapes(info: ModelInfo) -> dict[str, torch.Size]:
    """Return the shape of every entry in the state dict of the network that nnU-Net's own trainer builds."""
    heads = info.plans.get_label_manager(info.dataset_json).num_segmentation_heads
    network = build_conventional(STOCK_TRAINER, info, heads)
    return {name: value.shape for name, value in network.state_dict().items()}


def _check_weights(checkpoint: Mapping[str, Any], expected: Mapping[str, torch.Size], file: Path) -> None:
    """Refuse a checkpoint whose weights are not those of the network nnU-Net would build."""
    if checkpoints.SECTION not in checkpoint:
        raise UserError(
            f"{file} was not written by a synfoc3d trainer (its trainer: {checkpoint.get('trainer_name')}): "
            "export it with nnUNetv2_export_model_to_zip."
        )
    students = checkpoints.students_of(checkpoint)
    if "conventional" not in students:
        raise UserError(
            f"{file} holds no conventional network, only {', '.join(students)}, which nnU-Net cannot run: predict with "
            "synfoc3d, or export a training with both networks."
        )
    shapes = {name: value.shape for name, value in checkpoint["network_weights"].items()}
    differing = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
    if differing:
        raise UserError(
            f"{file} fits no network that {STOCK_TRAINER} builds ({len(differing)} entries differ, for example "
            f"{differing[0]}), so nnU-Net alone cannot use it: predict with synfoc3d."
        )
    broken = [name for name, value in checkpoint["network_weights"].items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{file} holds weights that are no finite numbers, for example {broken[0]}: train it anew.")


def _facts(choice: ModelChoice, dataset: str, found: Found) -> dict[str, Any]:
    """Return what the export is, for people and programs that meet it later."""
    trainings = {str(fold): _training_facts(choice.checkpoint, checkpoint) for fold, checkpoint in found.items()}
    return {
        "synfoc3d": __version__,
        "nnunetv2": metadata.version("nnunetv2"),
        "network": "conventional",
        "trainer": choice.trainer,
        "dataset": dataset,
        "configuration": choice.configuration,
        "plans": choice.plans,
        "folds": trainings,
    }


def _training_facts(name: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one fold's training, with file names in place of this machine's paths."""
    section = checkpoint[checkpoints.SECTION]
    settings, foundation = dict(section["settings"]), dict(section["foundation"])
    settings["foundation"] = dict(settings["foundation"])
    for part, key in (
        (settings["foundation"], "checkpoint"),
        (settings["foundation"], "lora"),
        (foundation, "checkpoint"),
    ):
        if part.get(key):  # checkpoints of 0.1 may lack lora
            part[key] = Path(part[key]).name
    return {
        "checkpoint": name,
        "epochs_trained": checkpoint["current_epoch"],
        "foundation": foundation,
        "settings": settings,
    }


def _best_of(files: Mapping[int | str, Path], found: Found, expected: Mapping[str, torch.Size]) -> Found:
    """Return the best epoch of each fold; where its training kept none beside the checkpoint, that itself.

    Args:
        files: the checkpoints.
        found: their contents.
        expected: see :func:`_check_weights`.

    Raises:
        UserError: a best epoch that is of another training, or damaged.
    """
    best = dict(found)
    for fold, file in files.items():
        own = file.with_name(CHECKPOINT_BEST)
        if file.name != CHECKPOINT_BEST and own.is_file():
            best[fold] = checkpoints.load(own)
            checkpoints.check_same_training(own, best[fold], beside=found[fold])
            _check_weights(best[fold], expected, own)
    return best


def _write_model(source: Path, folder: Path, found: Found, best: Found, dataset_json: Mapping[str, Any]) -> None:
    """Write what nnU-Net's predictor reads, and the best epochs, which other tools for nnU-Net's models ask for."""
    folder.mkdir(parents=True)
    for name in (PLANS_FILE, "dataset_fingerprint.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    without_files = {key: value for key, value in dataset_json.items() if key != "dataset"}  # paths of training scans
    (folder / DESCRIPTION_FILE).write_text(json.dumps(without_files, indent=4) + "\n", encoding="utf-8")
    for fold, checkpoint in found.items():
        fold_folder(folder, fold).mkdir()
        stock = {
            "trainer_name": STOCK_TRAINER,
            "init_args": {"configuration": checkpoint["init_args"]["configuration"]},
            "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
        }
        for name, weights in ((CHECKPOINT_FINAL, checkpoint), (CHECKPOINT_BEST, best[fold])):
            content = stock | {"network_weights": weights["network_weights"]}
            checkpoints.save_atomic(content, fold_folder(folder, fold) / name)


def _zipped(folder: Path) -> Path:
    """Zip a folder under its own name; weights do not shrink, so nothing is compressed."""
    file = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return file


@contextmanager
def _appearing_whole(output: Path) -> Iterator[Path]:
    """Make an empty folder beside the output, on the same disk, that is removed afterwards."""
    temporary = output.absolute().with_name(f".{output.name}.partial")  # a kill's remains are overwritten
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(output, temporary):
            temporary.mkdir(parents=True)
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
