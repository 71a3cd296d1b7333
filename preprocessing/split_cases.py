"""The cases of a dataset as a split sees them: where they come from, which patient and domain they belong to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import Annotations
from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.files.folders import find_dataset, nnunet_folder
from synfoc3d.files.layout import DESCRIPTION_FILE, IMAGES, REFERENCES
from synfoc3d.files.splits import Split
from synfoc3d.files.volumes import list_labels
from synfoc3d.preprocessing.datasets import (
    dataset_annotations,
    dataset_domains,
    dataset_labels,
    dataset_same_scans,
    raw_label_files,
    raw_labeled_images,
    raw_unlabeled_images,
)
from synfoc3d.preprocessing.patients import find_patients


@dataclass(frozen=True)
class SplitCases:
    """The cases of a dataset.

    Attributes:
        dataset: its folder name, ``Dataset501_Name``.
        folder: where it lies, in nnUNet_raw or else in nnUNet_preprocessed.
        train: cases of imagesTr, sorted.
        extra: cases of imagesUn, sorted.
        patient_of: the patient of every case.
        domains: the domain of every case; None if the dataset has no domains.csv.
        label_files: the label file of every case that has one.
        labels: what the values in label files mean.
        annotated: the annotated classes of cases in which not all were.
    """

    dataset: str
    folder: Path
    train: tuple[str, ...]
    extra: tuple[str, ...]
    patient_of: dict[str, str]
    domains: dict[str, str] | None
    label_files: Mapping[str, Path]
    labels: DeclaredLabels
    annotated: Annotations

    @property
    def all(self) -> tuple[str, ...]:
        """All cases, those of imagesTr first."""
        return self.train + self.extra

    def domain(self, case: str) -> str:
        """Return the domain of a case; the empty string without domains."""
        return self.domains[case] if self.domains is not None else ""

    def patients(self, cases: Iterable[str]) -> dict[str, list[str]]:
        """Return the scans of each patient among the given cases."""
        scans: dict[str, list[str]] = {}
        for case in cases:
            scans.setdefault(self.patient_of[case], []).append(case)
        return scans

    def classes_of(self, cases: Iterable[str]) -> frozenset[str]:
        """Return the names of the classes that were annotated in any of the given cases."""
        return frozenset(name for case in cases for name in self.annotated.get(case, self.labels.classes))

    def check_labels(self, split: Split) -> None:
        """Check that every labeled and every validation case has a label file.

        Raises:
            UserError: a case without one.
        """
        for part, members in (("labeled", split.labeled), ("validation", split.val)):
            for case in members:
                if case not in self.label_files:
                    raise UserError(
                        f"The {part} case {case!r} of {self.dataset} has no label file in labelsTr; add it, or list "
                        f"the case as unlabeled."
                    )


def read_split_cases(dataset: int | str, patient_pattern: str | None = None) -> SplitCases:
    """Return the cases of a dataset in nnUNet_raw or, if it is not there, of its preprocessed copy.

    Args:
        dataset: ``501`` or ``Dataset501_Name``.
        patient_pattern: see `synfoc3d.preprocessing.patients.patient_of`.

    Raises:
        UserError: no such dataset, labels that nnU-Net refuses, a case in both imagesTr and imagesUn, a domains.csv or
            an annotated.csv that does not fit, or a pattern that does not.
    """
    name = find_dataset(dataset)
    folder, is_raw = source_folder(name)
    train, extra, label_files = _raw_cases(folder) if is_raw else _preprocessed_cases(folder)
    for case in extra:
        if case in train:
            raise UserError(f"Case {case!r} of {folder} is both labeled and unlabeled; remove one of them.")
    cases = (*sorted(train), *sorted(extra))
    labels = dataset_labels(folder)
    return SplitCases(
        dataset=name,
        folder=folder,
        train=tuple(sorted(train)),
        extra=tuple(sorted(extra)),
        patient_of=find_patients(sorted(train), sorted(extra), patient_pattern, dataset_same_scans(folder)),
        domains=dataset_domains(folder, set(cases)),
        label_files=label_files,
        labels=labels,
        annotated=dataset_annotations(folder, labels, train),
    )


def source_folder(name: str) -> tuple[Path, bool]:
    """Return a dataset's folder in nnUNet_raw, or of its preprocessed copy, and whether it is the former.

    Raises:
        UserError: the folder is not in nnUNet_raw, and nnUNet_preprocessed is not set.
    """
    try:
        raw = nnunet_folder("nnUNet_raw") / name
    except UserError:  # a preprocessed copy alone will do
        return nnunet_folder("nnUNet_preprocessed") / name, False
    if (raw / IMAGES).is_dir() or (raw / DESCRIPTION_FILE).is_file():
        return raw, True
    return nnunet_folder("nnUNet_preprocessed") / name, False


def _raw_cases(raw: Path) -> tuple[set[str], set[str], dict[str, Path]]:
    """Return the cases of imagesTr, those of imagesUn, and the label files."""
    return set(raw_labeled_images(raw)), set(raw_unlabeled_images(raw)), raw_label_files(raw)


def _preprocessed_cases(folder: Path) -> tuple[set[str], set[str], dict[str, Path]]:
    """Return the labeled and the unlabeled cases of a preprocessed dataset, and the label files of all the former."""
    label_files = list_labels(folder / REFERENCES)
    # The properties are written last: a case without them is not complete.
    return set(label_files), {path.stem for path in folder.glob("*_unlabeled/*.pkl")}, label_files
