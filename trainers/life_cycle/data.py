"""The two data streams of a batch: labeled and unlabeled patches from one pool of workers."""

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from synfoc3d.errors import UserError
from synfoc3d.files.layout import IMAGE_ENDING, LABEL_ENDING
from synfoc3d.nnunet.labels import DatasetLabels, MergedLabels, annotated_locations, merged_values
from synfoc3d.trainers.life_cycle.workers import end_with_parent

UNKNOWN = -1  # label of a voxel whose truth is not known; only quality logs look at it
SPATIAL = (SpatialTransform, MirrorTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)
LABEL_ONLY = (
    RemoveLabelTansform,
    ConvertSegmentationToRegionsTransform,
    DownsampleSegForDSTransform,
    MaskImageTransform,
)
log = logging.getLogger(__name__)


def weak_transforms(nnunet: ComposeTransforms, labeled: bool) -> ComposeTransforms:
    """Return nnU-Net's spatial transforms and nothing else.

    Args:
        nnunet: nnU-Net's own training transforms of this configuration.
        labeled: keep the steps that prepare a segmentation; unlabeled patches have none to prepare.
    """
    keep: tuple[type[BasicTransform], ...] = SPATIAL + LABEL_ONLY if labeled else SPATIAL
    return ComposeTransforms([t for t in nnunet.transforms if isinstance(t, keep)])


def open_image(folder: Path, case: str) -> Any:  # noqa: ANN401 - blosc2's lazily read array
    """Open the preprocessed image (C, D, H, W) of a case without touching any label file.

    Raises:
        UserError: the case was not preprocessed.
    """
    return blosc2.open(urlpath=str(image_file(folder, case)), mode="r", dparams={"nthreads": 1})


def image_file(folder: Path, case: str) -> Path:
    """Return the file of a case's preprocessed image.

    Raises:
        UserError: the case was not preprocessed.
    """
    file = folder / f"{case}{IMAGE_ENDING}"
    if not file.is_file():
        raise UserError(f"{file} does not exist: run synfoc3d preprocess for this configuration, or mend the split.")
    return file


class UnlabeledCases(nnUNetBaseDataset):
    """Preprocessed cases shown without their labels.

    Args:
        folders: the folder of preprocessed images of each case.
        hidden_labels: folder whose label files, where they exist, are read for logging alone (research mode); a case
            that has none there is all :data:`UNKNOWN`.
        pseudo_labels: file of each case's pseudo-labels, which travel with its patches; None where there are none.
    """

    def __init__(
        self, folders: Mapping[str, Path], hidden_labels: Path, pseudo_labels: Mapping[str, Path] | None = None
    ) -> None:
        self.folders = dict(folders)
        self.hidden_labels = hidden_labels
        self.pseudo_labels = pseudo_labels
        self.identifiers = sorted(folders)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, None]]:
        """Load image (C, D, H, W), label (1, D, H, W) for logging and pseudo-labels (D, H, W); no class locations."""
        image = open_image(self.folders[identifier], identifier)
        label_file = self.hidden_labels / f"{identifier}{LABEL_ENDING}"
        if self.folders[identifier] == self.hidden_labels and label_file.is_file():
            label = blosc2.open(urlpath=str(label_file), mode="r", dparams={"nthreads": 1})
        else:
            label = np.broadcast_to(np.int16(UNKNOWN), (1, *image.shape[1:]))
        pseudo = None  # in the place of a cascade's previous stage, whose labels nnU-Net moves with the patch, too
        if self.pseudo_labels is not None:
            file = self.pseudo_labels[identifier]
            pseudo = blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1})
        return image, label, pseudo, {"class_locations": None}

    @staticmethod
    def save_case(*_: Any, **__: Any) -> None:  # noqa: ANN401 - the base class's abstract signature
        """Refuse: unlabeled cases are written by the preprocessing."""
        raise NotImplementedError

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Return the cases whose image lies in a folder."""
        files = [file.name for file in Path(folder).glob(f"*{IMAGE_ENDING}") if not file.name.endswith(LABEL_ENDING)]
        return sorted(name.removesuffix(IMAGE_ENDING) for name in files)


class PartlyAnnotatedCases(nnUNetBaseDataset):
    """Labeled cases, in some of which only some classes were annotated: nothing else is read of their labels.

    Args:
        cases: nnU-Net's dataset.
        labels: of the dataset.
    """

    def __init__(self, cases: nnUNetBaseDataset, labels: DatasetLabels) -> None:
        self.cases, self.identifiers, self.manager = cases, cases.identifiers, labels.manager
        self.tables = {
            case: merged_values(labels.declared, labels.annotated[case])
            for case in self.identifiers
            if case in labels.annotated
        }
        self.known = labels.known(self.tables) or {}

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load image (C, D, H, W), label (1, D, H, W), nothing of a previous stage, and nnU-Net's properties."""
        image, label, previous, properties = self.cases.load_case(identifier)
        if identifier not in self.tables:
            return image, label, previous, properties
        places = annotated_locations(properties["class_locations"], self.known[identifier], self.manager)
        return image, MergedLabels(label, self.tables[identifier]), previous, properties | {"class_locations": places}

    @staticmethod
    def save_case(*_: Any, **__: Any) -> None:  # noqa: ANN401 - the base class's abstract signature
        """Refuse: cases are written by the preprocessing."""
        raise NotImplementedError

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Refuse: these cases are given, not found in a folder."""
        raise NotImplementedError


class PairedLoader(SlimDataLoaderBase):
    """Draws a labeled and, where asked, an unlabeled batch in one worker, so that both share one budget of workers.

    Every batch has random numbers of its own, seeded by its number in the run. So a batch depends neither on how many
    workers there are nor on whether the training was continued in between.

    Args:
        labeled: nnU-Net's loader of labeled patches.
        unlabeled: the same for unlabeled patches, or None.
        ranges: (C, 2) intensity range of every case.
        known: (K) bool of every case, the channels that were annotated; None where all are in all cases.
        seed: of the run and of this stream.
        first: number of the first batch, counted from 0 in the whole run.
    """

    def __init__(
        self,
        labeled: nnUNetDataLoader,
        unlabeled: nnUNetDataLoader | None,
        ranges: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray] | None = None,
        *,
        seed: Sequence[int],
        first: int = 0,
    ) -> None:
        super().__init__(None, labeled.batch_size, number_of_threads_in_multithreaded=1)
        self.labeled, self.unlabeled = labeled, unlabeled
        self.ranges, self.known = ranges, known
        self.seed = tuple(seed)
        self.number = first

    def set_thread_id(self, thread_id: int) -> None:
        """Take over the number of a worker process; called once in each, before its first batch."""
        super().set_thread_id(thread_id)
        torch.set_num_threads(1)  # a forked process hangs in the first parallel region if its parent had one
        self.number += thread_id
        end_with_parent()

    def generate_train_batch(self) -> dict[str, Any]:
        """Make ``data``, ``target``, ``value_range`` and, where classes were not annotated, ``known``.

        With an unlabeled stream, the same with ``unlabeled_`` before.
        """
        with random_numbers_of(*self.seed, self.number):
            batch = self.labeled.generate_train_batch()
            other = self.unlabeled.generate_train_batch() if self.unlabeled is not None else None
        self.number += self.number_of_threads_in_multithreaded
        facts = self._facts(batch)
        if other is not None:
            facts |= {f"unlabeled_{key}": value for key, value in self._facts(other).items()}
        return facts

    def _facts(self, part: dict[str, Any]) -> dict[str, Any]:
        """Put what is known of the cases in the place of their names."""
        cases = part["keys"]
        facts = {"data": part["data"], "target": part["target"], "value_range": _stack(self.ranges, cases)}
        return facts if self.known is None else facts | {"known": _stack(self.known, cases)}


def _stack(of_case: Mapping[str, np.ndarray], cases: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(np.stack([of_case[case] for case in cases]))


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's global random numbers."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def random_numbers_of(*key: int) -> Iterator[None]:
    """Seed python's, numpy's and torch's random numbers on the CPU from a key; afterwards they go on where they were.

    Args:
        key: whole numbers from 0; every other key gives other numbers.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU, too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def read_json_cache(cache: Path) -> dict[str, Any]:
    """Read a JSON file of things that can be made anew; an absent or damaged one is empty."""
    try:
        return json.loads(cache.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError:
        log.warning("%s is damaged and is computed anew.", cache)
        return {}


def image_stamp(folder: Path, case: str) -> list[int | str]:
    """Return folder, size and time of a case's preprocessed image, by which a change is noticed."""
    return stamp_of(image_file(folder, case))


def stamp_of(file: Path) -> list[int | str]:
    """Return folder, size and time of a preprocessed file."""
    status = file.stat()
    return [file.parent.name, status.st_size, status.st_mtime_ns]
