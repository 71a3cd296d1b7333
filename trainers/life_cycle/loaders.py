"""The loaders of a training: nnU-Net's patches, in the streams of :mod:`synfoc3d.trainers.life_cycle.data`."""

from typing import Any, NamedTuple

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from synfoc3d.files.layout import intensity_cache
from synfoc3d.nnunet.labels import manager_without_ignore
from synfoc3d.shared_batch import Part, split_batch
from synfoc3d.trainers.life_cycle.case_facts import measure_cases
from synfoc3d.trainers.life_cycle.case_labels import label_cases
from synfoc3d.trainers.life_cycle.data import (
    PairedLoader,
    PartlyAnnotatedCases,
    Patches,
    UnlabeledCases,
    weak_transforms,
)
from synfoc3d.trainers.life_cycle.dependencies import dependencies_of, refuse_changed_data
from synfoc3d.trainers.life_cycle.run_folder import make_room
from synfoc3d.trainers.life_cycle.workers import start_workers

Trainer = Any  # the base trainer, whose module imports this one
TRAINING, VALIDATION = 0, 1  # streams of batches, each with random numbers of its own


class _Transforms(NamedTuple):
    """What nnU-Net does with patches of each stream, and how large they are cut before it."""

    size: Any
    labeled: Any
    unlabeled: Any
    validation: Any


class _Loaders(NamedTuple):
    """What makes the batches of training and of online validation."""

    train: PairedLoader
    online: PairedLoader


def paired_loaders(trainer: Trainer) -> tuple[Any, Any]:
    """Make the batches of training and of online validation, from the trainer's step on.

    Raises:
        UserError: data that do not fit, or have changed since a continued training began.
    """
    with trainer.ranks.first_before_others():  # which measures cases, and labels them, for all
        loaders = _loaders(trainer)
        make_room(trainer)  # before workers read pseudo-labels there
    pin = trainer.device.type == "cuda"
    processes = -(-get_allowed_n_proc_DA() // trainer.ranks.local_count)
    return start_workers(loaders.train, processes, pin), start_workers(loaders.online, min(processes, 1), pin)


def _loaders(trainer: Trainer) -> _Loaders:
    """Look at the data, and make what draws from them."""
    transforms = _transforms(trainer)
    labeled, val = trainer.get_tr_and_val_datasets()
    folders = trainer.unlabeled_folders()
    everything = folders | dict.fromkeys([*labeled.identifiers, *val.identifiers], trainer.preprocessed)
    known = trainer.labels.known(everything)
    if known is not None:
        labeled, val = (PartlyAnnotatedCases(cases, trainer.labels) for cases in (labeled, val))
    trainer.labeled_cases = sorted(labeled.identifiers)
    trainer.labels.check(labeled.identifiers, folders)
    trainer.print_to_log_file(trainer.labels.describe(labeled.identifiers, folders))
    facts = measure_cases(everything, {*labeled.identifiers, *val.identifiers}, intensity_cache(trainer.preprocessed))
    ranges = {case: fact.value_range for case, fact in facts.items()}
    trainer.depends_on = dependencies_of(trainer, facts)
    if trainer.continued is not None:
        refuse_changed_data(trainer, trainer.continued.depends_on.get("data", {}))
    unlabeled = None
    if folders:
        labeler = trainer.method.case_labeler
        pseudo_labels = label_cases(trainer, labeler, folders) if labeler is not None else None
        cases = UnlabeledCases(folders, trainer.preprocessed, pseudo_labels)
        unlabeled = _patches(trainer, cases, transforms.size, transforms.unlabeled, by_label=False)

    seed, epoch = trainer.settings.seed, trainer.current_epoch
    train = PairedLoader(
        _patches(trainer, labeled, transforms.size, transforms.labeled),
        unlabeled,
        ranges,
        known,
        seed=(seed, TRAINING),
        first=epoch * trainer.num_iterations_per_epoch + len(trainer.continued.steps if trainer.continued else ()),
    )
    ranks, whole = trainer.ranks, split_batch(trainer.part.batch, 0, 1)
    first = epoch * trainer.num_val_iterations_per_epoch
    online = PairedLoader(
        _patches(trainer, val, trainer.configuration_manager.patch_size, transforms.validation, part=whole),
        None,
        ranges,
        known,
        seed=(seed, VALIDATION),
        first=first + (ranks.rank - first) % ranks.count,  # validation is shared out batch by batch
        stride=ranks.count,
    )
    return _Loaders(train, online)


def _transforms(trainer: Trainer) -> _Transforms:
    """Take from nnU-Net's transforms what each stream needs."""
    rotation, dummy_2d, size, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    scales, configuration = trainer._get_deep_supervision_scales(), trainer.configuration_manager
    manager = trainer.label_manager
    declared = {
        "regions": manager.foreground_regions if manager.has_regions else None,
        "ignore_label": manager.ignore_label,
    }
    masked = configuration.use_mask_for_norm
    nnunet = trainer.get_training_transforms(
        configuration.patch_size, rotation, scales, mirror, dummy_2d, use_mask_for_norm=masked, **declared
    )
    labeled = nnunet if trainer.settings.augmentation.labeled_intensity else weak_transforms(nnunet, labeled=True)
    validation = trainer.get_validation_transforms(scales, **declared)
    return _Transforms(size, labeled, weak_transforms(nnunet, labeled=False), validation)


def _patches(
    trainer: Trainer,
    cases: Any,  # noqa: ANN401 - any of nnU-Net's datasets
    size: Any,  # noqa: ANN401 - nnU-Net gives lists, tuples and arrays
    transforms: Any,  # noqa: ANN401 - nnU-Net's own type
    *,
    by_label: bool = True,
    part: Part | None = None,
) -> Patches:
    """Make nnU-Net's loader of this process's part of a batch, or of another one.

    ``by_label`` says whether labels tell where to look, as nnU-Net wants it.
    """
    return Patches(
        cases,
        part or trainer.part,
        patch_size=size,
        final_patch_size=trainer.configuration_manager.patch_size,
        label_manager=trainer.label_manager if by_label else manager_without_ignore(trainer.label_manager),
        oversample_foreground_percent=trainer.oversample_foreground_percent if by_label else 0.0,
        transforms=transforms,
    )
