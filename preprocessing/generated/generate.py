"""Generate small multi-domain data sets for the demo and the tests, as folders that the import command reads."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.random import Generator

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.annotations import write_annotations
from synfoc3d.files.atomic import naming, whole_folder
from synfoc3d.files.layout import ANNOTATIONS_FILE, DESCRIPTION_FILE, DOMAINS_FILE
from synfoc3d.preprocessing.generated.anatomy import MIN_SHAPE, draw_anatomy
from synfoc3d.preprocessing.generated.annotation import annotate, annotated_class, check_kind, declaration
from synfoc3d.preprocessing.generated.scanners import MAX_CHANNELS, SCANNERS, Scanner, acquire

MOST_CASES = 9999
FILE_ENDING = ".nii.gz"
TYPICAL_SHAPE = (72, 64, 10)
_TRAINING, _TEST = "train", "test"
_ANNOTATION = 0  # sets the random numbers of a case's annotation apart from those of its scan
_CHANNEL_NAMES = ("bright_blood", "dark_blood")
_SHAPE_SPREAD = (3, 3, 1)  # a case's sides differ from the requested ones by at most so many voxels
_AXIS_OF_LETTER = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}


class GeneratedCase(NamedTuple):
    """One scan.

    Attributes:
        images: one (X, Y, Z) int16 image per channel.
        label: (X, Y, Z) uint8, values of ``LABELS``.
        affine: (4, 4) float, voxel indices to RAS millimetres.
    """

    images: list[np.ndarray]
    label: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class StorageOptions:
    """How the generated cases look on disk.

    Attributes:
        shape: (X, Y, Z) voxels; the sides of a case differ from it by up to 3 voxels in plane and 1 slice.
        num_channels: images per case, 1 or 2.
        orientations: nibabel axis codes such as "RAS" or "ASL", dealt out to the cases in turn. They change the order
            of the stored voxels, never their place in the world.
    """

    shape: tuple[int, int, int] = TYPICAL_SHAPE
    num_channels: int = 1
    orientations: Sequence[str] = ("RAS",)


def generate_case(
    scanner: Scanner, rng: Generator, shape: tuple[int, int, int] = TYPICAL_SHAPE, num_channels: int = 1
) -> GeneratedCase:
    """Draw a random anatomy and scan it.

    The anatomy is drawn first and follows one distribution: the same ``rng`` state and shape give the same label for
    every scanner.

    Args:
        scanner: the domain.
        rng: source of all randomness.
        shape: (X, Y, Z) voxels.
        num_channels: 1 or 2.

    Returns:
        The images, the label and the affine (axes along right, anterior, superior).

    Raises:
        UserError: for a shape that is too small or another number of channels.
    """
    _check_appearance(shape, num_channels)
    anatomy = draw_anatomy(shape, rng)
    images = acquire(anatomy.tissue, scanner, rng, num_channels)
    affine = np.diag([*scanner.spacing_mm, 1.0])
    affine[:3, 3] = np.rint(rng.uniform(-100, 100, 3))
    return GeneratedCase(images, anatomy.label, affine)


def generate_dataset(
    folder: Path,
    cases_per_scanner: int | Mapping[str, int],
    labeled: Mapping[str, int],
    *,
    test_per_scanner: int = 0,
    seed: int = 0,
    storage: StorageOptions | None = None,
    labels: str = "plain",
) -> list[str]:
    """Write a multi-domain data set in the layout of the import command.

    The folder receives ``labeled/`` (``images``, ``labels``, ``dataset.json``), ``unlabeled/``, ``test/`` (``images``,
    ``labels``) and ``domains.csv``; partly annotated cases also ``labeled/annotated.csv``. A scan depends on the seed,
    the scanner and its number only: not on how many others there are, nor on the kind of labels, from which the test
    labels are free, too. The labeled cases are the first ones of their scanner.

    Args:
        folder: where to write; must be empty or not exist.
        cases_per_scanner: training cases, labeled or not, of every scanner or of each scanner named.
        labeled: how many of its training cases keep their label, per scanner; scanners not named: none.
        test_per_scanner: held-out cases with labels, of every scanner that has training cases.
        seed: at least 0; same seed, same voxels.
        storage: how the cases look; the defaults of ``StorageOptions`` if None.
        labels: kind of the labeled cases' labels, one of ``KINDS``.

    Returns:
        The names of all cases, in the order of ``domains.csv``.

    Raises:
        UserError: for an unknown scanner or kind of labels, impossible counts, a negative seed, a bad storage option
            or a folder in use.
    """
    storage = storage or StorageOptions()
    counts = _training_counts(cases_per_scanner)
    _check_counts(counts, labeled, test_per_scanner)
    check_kind(labels, sum(labeled.values()))
    if seed < 0:
        raise UserError(f"The seed must be at least 0, but is {seed}.")
    _check_appearance(storage.shape, storage.num_channels)
    _check_orientations(storage.orientations)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"Cannot generate data in {folder}: it is not an empty folder; name a new one or empty it.")

    with whole_folder(folder), naming(folder):
        return _write_dataset(folder, counts, labeled, test_per_scanner, seed=seed, storage=storage, labels=labels)


def _write_dataset(
    folder: Path,
    counts: Mapping[str, int],
    labeled: Mapping[str, int],
    test_per_scanner: int,
    *,
    seed: int,
    storage: StorageOptions,
    labels: str,
) -> list[str]:
    """Do what :func:`generate_dataset` says, of which all arguments are checked."""
    domains: dict[str, str] = {}
    labeled_cases: list[str] = []
    for name, role, number in _plan_cases(counts, test_per_scanner):
        case = f"{name}{role}{number + 1:03d}"
        keeps_label = role == _TRAINING and number < labeled.get(name, 0)
        generated = _draw_case(name, role, number, seed=seed, storage=storage)
        if keeps_label:
            hand = _random_stream(seed, name, role, number, _ANNOTATION)
            generated = generated._replace(label=annotate(generated.label, labels, len(labeled_cases), hand))
            labeled_cases.append(case)
        orientation = storage.orientations[len(domains) % len(storage.orientations)]
        _write_case(_reorient(generated, orientation), case, *_case_folders(folder, role, keeps_label))
        domains[case] = name
    _write_tables(folder, domains, labeled_cases, labels, storage.num_channels)
    return list(domains)


def _plan_cases(counts: Mapping[str, int], test_per_scanner: int) -> Iterator[tuple[str, str, int]]:
    """Yield (scanner name, role, number within scanner and role) of every case, scanner after scanner."""
    for name, count in counts.items():
        yield from ((name, _TRAINING, number) for number in range(count))
        yield from ((name, _TEST, number) for number in range(test_per_scanner))


def _draw_case(name: str, role: str, number: int, *, seed: int, storage: StorageOptions) -> GeneratedCase:
    """Generate one case from its own stream of random numbers, so that no other case depends on it."""
    rng = _random_stream(seed, name, role, number)
    x, y, z = (
        int(n + rng.integers(-spread, spread + 1)) for n, spread in zip(storage.shape, _SHAPE_SPREAD, strict=True)
    )
    shape = (max(x, MIN_SHAPE[0]), max(y, MIN_SHAPE[1]), max(z, MIN_SHAPE[2]))
    return generate_case(SCANNERS[name], rng, shape, storage.num_channels)


def _random_stream(seed: int, name: str, role: str, *numbers: int) -> Generator:
    """Return the random numbers of one case of a scanner, and of one purpose if ``numbers`` names it, too."""
    key = (list(SCANNERS).index(name), (_TRAINING, _TEST).index(role), *numbers)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _case_folders(folder: Path, role: str, keeps_label: bool) -> tuple[Path, Path | None]:
    """Return the folders for a case's images and label; None for the label of an unlabeled case."""
    if role == _TEST:
        return folder / "test" / "images", folder / "test" / "labels"
    if keeps_label:
        return folder / "labeled" / "images", folder / "labeled" / "labels"
    return folder / "unlabeled", None


def _reorient(case: GeneratedCase, orientation: str) -> GeneratedCase:
    """Return the case with its voxels stored along other axes and the same place in the world."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(case.affine), nib.orientations.axcodes2ornt(orientation)
    )
    affine = case.affine @ nib.orientations.inv_ornt_aff(turn, case.label.shape)
    images = [nib.orientations.apply_orientation(image, turn) for image in case.images]
    return GeneratedCase(images, nib.orientations.apply_orientation(case.label, turn), affine)


def _write_case(case: GeneratedCase, name: str, images: Path, labels: Path | None) -> None:
    """Write the channels of a case, and its label unless ``labels`` is None, with nnU-Net's file names."""
    for channel, image in enumerate(case.images):
        _write_nifti(image, case.affine, images / f"{name}_{channel:04d}{FILE_ENDING}")
    if labels is not None:
        _write_nifti(case.label, case.affine, labels / f"{name}{FILE_ENDING}")


def _write_nifti(voxels: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write one NIfTI volume in mm whose qform and sform both hold ``affine``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _write_tables(
    folder: Path, domains: Mapping[str, str], labeled_cases: Sequence[str], labels: str, num_channels: int
) -> None:
    """Write ``domains.csv``, and ``dataset.json`` and perhaps ``annotated.csv`` of the labeled folder."""
    rows = ["case,domain", *(f"{case},{domain}" for case, domain in domains.items())]
    (folder / DOMAINS_FILE).write_text("\n".join(rows) + "\n", encoding="utf-8")
    description = {
        "channel_names": {str(channel): _CHANNEL_NAMES[channel] for channel in range(num_channels)},
        **declaration(labels),
        "numTraining": len(labeled_cases),
        "file_ending": FILE_ENDING,
    }
    (folder / "labeled" / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if labels == "partial":
        annotated = {case: (annotated_class(number),) for number, case in enumerate(labeled_cases)}
        write_annotations(folder / "labeled" / ANNOTATIONS_FILE, annotated)


def _training_counts(cases_per_scanner: int | Mapping[str, int]) -> dict[str, int]:
    """Return the training cases per scanner, in the order of ``SCANNERS``."""
    if isinstance(cases_per_scanner, int):
        return dict.fromkeys(SCANNERS, cases_per_scanner)
    _check_scanner_names(cases_per_scanner)
    return {name: cases_per_scanner[name] for name in SCANNERS if name in cases_per_scanner}


def _check_scanner_names(names: Iterable[str]) -> None:
    """Refuse names that are not in ``SCANNERS``."""
    for name in names:
        if name not in SCANNERS:
            raise UserError(f"There is no generated scanner {name!r}.{did_you_mean(name, SCANNERS)}")


def _check_counts(counts: Mapping[str, int], labeled: Mapping[str, int], test_per_scanner: int) -> None:
    """Refuse numbers of cases that are negative, that do not fit together or that leave nothing labeled."""
    _check_scanner_names(labeled)
    if min([*counts.values(), *labeled.values(), test_per_scanner]) < 0:
        raise UserError(
            f"Numbers of cases cannot be negative: training {dict(counts)}, labeled {dict(labeled)}, "
            f"test {test_per_scanner}."
        )
    if max([*counts.values(), test_per_scanner]) > MOST_CASES:
        raise UserError(f"At most {MOST_CASES} cases of a scanner can be generated, for training and for tests.")
    for name, number in labeled.items():
        if number > counts.get(name, 0):
            raise UserError(
                f"Scanner {name!r} has {counts.get(name, 0)} training cases, so {number} of them cannot be labeled; "
                "ask for more cases or fewer labels."
            )
    if not any(labeled.values()):
        raise UserError(f"No case would be labeled: {dict(labeled)}; give at least one scanner a labeled case.")


def _check_appearance(shape: tuple[int, int, int], num_channels: int) -> None:
    """Refuse shapes that cannot hold the anatomy, and channels that the scanners do not have."""
    if len(shape) != 3 or any(n < smallest for n, smallest in zip(shape, MIN_SHAPE, strict=True)):
        raise UserError(f"Cannot draw the anatomy in shape {tuple(shape)}; give three sides of at least {MIN_SHAPE}.")
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise UserError(f"A generated case has 1 to {MAX_CHANNELS} channels, not {num_channels}.")


def _check_orientations(orientations: Sequence[str]) -> None:
    """Refuse anything but a list of axis codes with one letter per axis of the body."""
    if isinstance(orientations, str) or not orientations:
        raise UserError(
            f"Orientations are a list of at least one axis code such as ['RAS', 'ASL'], not {orientations!r}."
        )
    for code in orientations:
        axes = sorted(_AXIS_OF_LETTER.get(letter, "") for letter in code)
        if axes != ["x", "y", "z"]:
            raise UserError(f"{code!r} is no orientation; use one letter of each pair R/L, A/P, S/I, such as 'RAS'.")
