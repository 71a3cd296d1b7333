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
from synfoc3d.shared_batch import Part
from synfoc3d.workers import end_with_parent

LABELED, UNLABELED = 0, 1  # halves of a batch
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


class Patches(nnUNetDataLoader):
    """nnU-Net's patches of a batch, each with random numbers of its own, seeded by its place in the batch.

    So a process that has a part of the batch makes the patches that one with all of it would have there, and no others.

    Args:
        cases: any of nnU-Net's datasets.
        part: places in the whole batch to make patches for.
        options: further arguments of nnU-Net's loader.
    """

    def __init__(self, cases: nnUNetBaseDataset, part: Part, **options: Any) -> None:  # noqa: ANN401 - handed on
        super().__init__(cases, part.size, **options)
        self.part = part._replace(group=None)  # a worker process, which sums nothing, cannot be sent a group
        self.key: tuple[int, ...] = ()
        self.get_do_oversample = self._begin_patch

    def draw(self, *key: int) -> dict[str, Any]:
        """Make the patches of a batch; changes the global random numbers.

        Args:
            key: whole numbers from 0 that tell this batch from all others.
        """
        self.key = key
        return self.generate_train_batch()

    def get_indices(self) -> list[str]:
        """Draw the case of each patch."""
        places = range(self.part.start, self.part.stop)
        return [self.indices[np.random.default_rng((*self.key, place)).integers(len(self.indices))] for place in places]

    def _begin_patch(self, number: int) -> bool:
        """Seed the random numbers, as nnU-Net begins a patch of this part; return whether to look for foreground there.

        nnU-Net's rule: the last share of the whole batch.
        """
        place = self.part.start + number
        seed_by(*self.key, place)
        return place >= round(self.part.batch * (1 - self.oversample_foreground_percent))


class PairedLoader(SlimDataLoaderBase):
    """Draws a labeled and, where asked, an unlabeled batch in one worker, so that both share one budget of workers.

    Every patch has random numbers of its own, seeded by the number of its batch in the run and by its place there. So
    it depends neither on how many workers or processes there are nor on whether the training was continued in between.

    Args:
        labeled: loader of labeled patches.
        unlabeled: the same for unlabeled patches, or None.
        ranges: (C, 2) intensity range of every case.
        known: (K) bool of every case, the channels that were annotated; None where all are in all cases.
        seed: of the run and of this stream.
        first: number of the first batch, counted from 0 in the whole run.
        stride: from the number of a batch to that of the next.
    """

    def __init__(
        self,
        labeled: Patches,
        unlabeled: Patches | None,
        ranges: Mapping[str, np.ndarray],
        known: Mapping[str, np.ndarray] | None = None,
        *,
        seed: Sequence[int],
        first: int = 0,
        stride: int = 1,
    ) -> None:
        super().__init__(None, labeled.batch_size, number_of_threads_in_multithreaded=1)
        self.labeled, self.unlabeled = labeled, unlabeled
        self.ranges, self.known = ranges, known
        self.seed = tuple(seed)
        self.number, self.stride = first, stride

    def set_thread_id(self, thread_id: int) -> None:
        """Take over the number of a worker process; called once in each, before its first batch."""
        super().set_thread_id(thread_id)
        torch.set_num_threads(1)  # a forked process hangs in the first parallel region if its parent had one
        self.number += self.stride * thread_id
        end_with_parent()

    def generate_train_batch(self) -> dict[str, Any]:
        """Make ``data`` (B, C, [D,] H, W), ``target``, ``value_range`` (B, C, 2) and perhaps ``known`` (B, K) bool.

        The target is a map (B, 1 or more, [D,] h, w), or one per deep-supervision scale; ``known`` is there where
        classes were not annotated. With an unlabeled stream, the same with ``unlabeled_`` before.
        """
        with random_numbers_kept():
            batch = self.labeled.draw(*self.seed, self.number, LABELED)
            other = self.unlabeled.draw(*self.seed, self.number, UNLABELED) if self.unlabeled is not None else None
        self.number += self.stride * self.number_of_threads_in_multithreaded
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


def seed_by(*key: int) -> None:
    """Seed python's, numpy's and torch's random numbers on the CPU.

    Args:
        key: whole numbers from 0; every other key gives other numbers.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU, too


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Let python's, numpy's and torch's random numbers on the CPU afterwards go on where they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
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
    """Return folder, size (bytes) and time (nanoseconds) of a preprocessed file."""
    status = file.stat()
    return [file.parent.name, status.st_size, status.st_mtime_ns]
