"""The frozen foundation network of an earlier training, for a method that learns from its answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d import checkpoint as checkpoints
from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.files.layout import CHECKPOINT_FINAL, CHECKPOINT_LATEST
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.lora import merge
from synfoc3d.networks.weights.known import file_hash
from synfoc3d.nnunet.labels import meaning
from synfoc3d.sections import differences

Trainer = Any  # the base trainer, whose module imports this one


class EarlierStage:
    """A finished training of the same data whose foundation network answers.

    Args:
        trainer: the training that asks.
        earlier: name of the trainer that made it.
        file: its checkpoint; None is where nnU-Net puts it.

    Raises:
        UserError: there is none, it is not finished, or it is of other data.
    """

    def __init__(self, trainer: Trainer, earlier: str, file: str | None) -> None:
        self.file = _find(trainer, earlier) if file is None else _named(Path(file))
        checkpoint = checkpoints.load(self.file)
        with checkpoints.as_written(self.file):
            _check(trainer, self.file, checkpoint)
            section = checkpoints.section_of(checkpoint)
            self.settings = FoundationSettings.model_validate(section["settings"]["foundation"])
            self.identity: dict[str, Any] = dict(section["foundation"])
        self.record = {"trainer": checkpoint["trainer_name"], "file": str(self.file), "sha256": file_hash(self.file)}
        self._checkpoint = checkpoint

    def network(self, num_channels: int) -> Arrangement:
        """Build its foundation student, frozen, in evaluation mode; LoRA is merged.

        Args:
            num_channels: K, channels of the output.

        Raises:
            UserError: the file of the network's base is missing or has changed.
        """
        with checkpoints.as_written(self.file):
            network = checkpoints.rebuild_foundation(self._checkpoint, num_channels)
        merge(network)
        return network.requires_grad_(False).eval()


def refuse_other_foundation(given: FoundationSettings, earlier: EarlierStage, default: FoundationSettings) -> None:
    """Refuse settings of the foundation network that the earlier stage decided otherwise.

    Args:
        given: settings of the training that asks.
        earlier: the stage whose network it takes.
        default: what ``given`` is where nothing was set.

    Raises:
        UserError: they differ; the sentence names them.
    """
    changed = [key for key in differences(given, earlier.settings) if key in differences(given, default)]
    if changed:
        names = ", ".join(f"foundation.{key}" for key in changed)
        raise UserError(
            f"The foundation network is that of {earlier.file}, so {names} cannot be set anew: leave it out, or train "
            f"{earlier.record['trainer']} with it."
        )


def refuse_changed_stage(now: Mapping[str, Any] | None, then: Mapping[str, Any] | None) -> None:
    """Refuse to continue a training whose earlier stage has another content than it had.

    Raises:
        UserError: the SHA-256 differs.
    """
    if now and then and now["sha256"] != then["sha256"]:
        raise UserError(
            f"{now['file']} has SHA-256 {now['sha256']}, but the training began with {then['sha256']}: restore that "
            "file, or train anew without --c."
        )


def _named(file: Path) -> Path:
    """Return a checkpoint that the user named."""
    if file.is_dir():
        raise UserError(
            f"{file} is a folder: name the checkpoint in it with method.labeler, such as {CHECKPOINT_FINAL}."
        )
    if not file.is_file():
        raise UserError(f"{file}, the first stage's checkpoint, does not exist: put it back, or mend method.labeler.")
    return file


def _find(trainer: Trainer, earlier: str) -> Path:
    """Return the finished checkpoint of the same dataset, plans, configuration and fold."""
    plans = trainer.plans_manager
    dataset, configuration = plans.dataset_name, trainer.configuration_name
    folder = Path(get_output_folder(dataset, earlier, plans.plans_name, configuration, trainer.fold))
    file = folder / CHECKPOINT_FINAL
    if file.is_file():
        return file
    command = f"synfoc3d train {convert_dataset_name_to_id(dataset)} {configuration} {trainer.fold} -tr {earlier}"
    if plans.plans_name != "nnUNetPlans":
        command += f" -p {plans.plans_name}"
    if (folder / CHECKPOINT_LATEST).is_file():
        raise UserError(f"The first stage in {folder} is not finished: run {command} --c.")
    raise UserError(
        f"{type(trainer).__name__} learns from a trained network, but {file} does not exist: run {command}, or name a "
        "checkpoint of it with --set method.labeler=FILE."
    )


def _check(trainer: Trainer, file: Path, checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of the same data, and holds a foundation network."""
    section = checkpoints.section_of(checkpoint)
    if "foundation" not in section["students"]:
        raise UserError(
            f"{file} holds no foundation network, its trainer is {checkpoint['trainer_name']}: mend method.labeler."
        )
    theirs, ours = _data_of(trainer, checkpoint), _own_data(trainer)
    for what, value in ours.items():
        if theirs[what] != value:
            raise UserError(
                f"{file} was trained with another {what} ({_text(theirs[what])}, not {_text(value)}): train the first "
                "stage for this one, or mend method.labeler."
            )
    foreign = sorted({*section.get("labeled", ())} - {*trainer.do_split()[0]})
    if foreign:
        raise UserError(
            f"{file} was trained with the label of {foreign[0]}, which is not labeled in this split: train the first "
            "stage on this one."
        )


def _data_of(trainer: Trainer, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint was trained on."""
    begun, section = checkpoint["init_args"], checkpoints.section_of(checkpoint)
    facts = _configuration(PlansManager(begun["plans"]), begun["configuration"])
    labels = {key: section.get("labels", {}).get(key) for key in meaning(trainer.labels.declared)}
    return facts | {"fold": begun["fold"], "label": labels}


def _own_data(trainer: Trainer) -> dict[str, Any]:
    """Return the same of the training that asks."""
    facts = _configuration(trainer.plans_manager, trainer.configuration_name)
    return facts | {"fold": trainer.fold, "label": meaning(trainer.labels.declared)}


def _configuration(plans: PlansManager, name: str) -> dict[str, Any]:
    configuration = plans.get_configuration(name)
    return {
        "dataset": plans.dataset_name,
        "plan": plans.plans_name,
        "configuration": name,
        "patch": list(configuration.patch_size),
        "spacing": list(configuration.spacing),
        "normalization": list(configuration.normalization_schemes),
    }


def _text(value: Any) -> str:  # noqa: ANN401 - a name, a number, a list or the meaning of labels
    if isinstance(value, dict):
        return str(value["values"])
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
