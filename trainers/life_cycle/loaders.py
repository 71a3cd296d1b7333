"""The loaders of a training: nnU-Net's patches, in the streams of :mod:`synfoc3d.trainers.life_cycle.data`."""

from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from synfoc3d.files.layout import intensity_cache
from synfoc3d.trainers.life_cycle.data import (
    PairedLoader,
    UnlabeledCases,
    case_ranges,
    start_workers,
    weak_transforms,
)

Trainer = Any  # the base trainer, whose module imports this one
TRAINING, VALIDATION = 0, 1  # streams of batches, each with random numbers of its own


def paired_loaders(trainer: Trainer) -> tuple[Any, Any]:
    """Make the batches of training and of online validation, from the trainer's epoch on."""
    rotation, dummy_2d, initial_patch, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    scales, configuration = trainer._get_deep_supervision_scales(), trainer.configuration_manager
    masked = configuration.use_mask_for_norm
    nnunet = trainer.get_training_transforms(
        configuration.patch_size, rotation, scales, mirror, dummy_2d, use_mask_for_norm=masked
    )
    whole = trainer.settings.augmentation.labeled_intensity
    labeled_transforms = nnunet if whole else weak_transforms(nnunet, labeled=True)

    labeled, val = trainer.get_tr_and_val_datasets()
    folders = trainer.unlabeled_folders()
    everything = folders | dict.fromkeys([*labeled.identifiers, *val.identifiers], trainer.preprocessed)
    ranges = case_ranges(everything, intensity_cache(trainer.preprocessed))
    unlabeled = None
    if folders:
        cases, transforms = UnlabeledCases(folders, trainer.preprocessed), weak_transforms(nnunet, labeled=False)
        unlabeled = _patches(trainer, cases, initial_patch, transforms, foreground=0.0)  # no label tells where to look

    seed, epoch = trainer.settings.seed, trainer.current_epoch
    train = PairedLoader(
        _patches(trainer, labeled, initial_patch, labeled_transforms),
        unlabeled,
        ranges,
        seed=(seed, TRAINING),
        first=epoch * trainer.num_iterations_per_epoch,
    )
    online = PairedLoader(
        _patches(trainer, val, configuration.patch_size, trainer.get_validation_transforms(scales)),
        None,
        ranges,
        seed=(seed, VALIDATION),
        first=epoch * trainer.num_val_iterations_per_epoch,
    )
    processes, pin = get_allowed_n_proc_DA(), trainer.device.type == "cuda"
    return start_workers(train, processes, pin), start_workers(online, min(processes, 1), pin)


def _patches(
    trainer: Trainer,
    cases: Any,  # noqa: ANN401 - any of nnU-Net's datasets
    size: Any,  # noqa: ANN401 - nnU-Net gives lists, tuples and arrays
    transforms: Any,  # noqa: ANN401 - nnU-Net's own type
    *,
    foreground: float | None = None,
) -> nnUNetDataLoader:
    """Make nnU-Net's loader; ``foreground`` is the share of patches around foreground, by default nnU-Net's."""
    return nnUNetDataLoader(
        cases,
        trainer.batch_size,
        size,
        trainer.configuration_manager.patch_size,
        trainer.label_manager,
        oversample_foreground_percent=trainer.oversample_foreground_percent if foreground is None else foreground,
        transforms=transforms,
    )
