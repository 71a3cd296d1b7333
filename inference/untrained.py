"""Published promptable networks without any training here: the baseline of those that were trained."""

import logging
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from synfoc3d.config import NO_ADAPTERS, FoundationSettings
from synfoc3d.files.folders import find_dataset
from synfoc3d.inference.models import FoldNetworks, TrainedModel
from synfoc3d.networks.build import arranged, build_foundation
from synfoc3d.networks.lora import merge
from synfoc3d.networks.weights.known import known_network
from synfoc3d.networks.weights.provenance import provenance
from synfoc3d.nnunet.case_files import ModelInfo
from synfoc3d.nnunet.labels import label_space
from synfoc3d.nnunet.training import read_preprocessed, refuse_stage
from synfoc3d.prediction_modes import find_mode
from synfoc3d.sections import validate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UntrainedChoice:
    """Which published network to use, and whose classes it is asked for.

    Attributes:
        network: value of ``foundation.name``.
        dataset: id or name of a preprocessed dataset.
        configuration: ``2d`` or ``3d_fullres``, in which cases are prepared.
        plans: identifier of the plans.
        image_size: side of the square image that the network sees, in pixels; None is the network's default.
    """

    network: str
    dataset: str
    configuration: str
    plans: str = "nnUNetPlans"
    image_size: int | None = None

    def settings(self) -> FoundationSettings:
        """Return what builds the network: its own decoder carries masks from slice to slice, alike for all classes.

        Raises:
            UserError: no network of this name, or an image size that none has.
        """
        known_network(self.network)
        given = {
            "name": self.network,
            "image_size": self.image_size,
            "arrangement": "propagation",
            "class_tokens": False,
            "adapters": NO_ADAPTERS,
        }
        return validate(FoundationSettings, given, f"--untrained {self.network}")


def load_untrained(choice: UntrainedChoice) -> TrainedModel:
    """Read a published network, and the plans and the description of a dataset from where trainings find them.

    Mirrored versions of a slice are those over which a trained network of the same configuration would be averaged.

    Raises:
        UserError: no such network, its weights are not there, or the dataset's configuration was not preprocessed.
    """
    settings = choice.settings()
    plans, description = read_preprocessed(choice.dataset, choice.configuration, choice.plans)
    info = ModelInfo(PlansManager(plans), choice.configuration, description)
    refuse_stage(info.plans, choice.configuration)
    patch_size = info.plans.get_configuration(choice.configuration).patch_size
    labels = label_space(info.plans.get_label_manager(description))
    network, identity = build_foundation(
        arranged(settings, "propagation", patch_size),
        labels.num_channels,
        patch_size,
        background=labels.first_foreground > 0,
    )
    merge(network)
    dataset = find_dataset(choice.dataset)
    if found := provenance(settings.model_dump(), identity, dataset):
        log.info(found.sentence(dataset))
    only = FoldNetworks({"foundation": network}, {"foundation": Path(identity["checkpoint"])})
    return TrainedModel(
        info,
        find_mode("foundation"),
        (only,),
        mirror_axes=tuple(range(len(patch_size))),
        settings=(),
        untrained=identity,
    )
