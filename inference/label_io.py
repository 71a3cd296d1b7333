"""Finding and reading label volumes, in any format that nnU-Net reads, in one common orientation of axes."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.funcs import squeeze_image
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from numpy.typing import NDArray

from synfoc3d.errors import UserError

NIFTI_ENDINGS = (".nii", ".nii.gz")
LABEL_ENDINGS = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings})
# What nibabel, SimpleITK, scikit-image and nnU-Net's readers raise for a file that is broken or not what it says.
READ_ERRORS = (ImageFileError, OSError, EOFError, zlib.error, RuntimeError, ValueError, AssertionError)


@dataclass(frozen=True)
class LabelVolume:
    """A label map and its place in space.

    Attributes:
        path: the file it was read from.
        labels: integers (D, H, W), axes in the order z, y, x of the file; D = 1 for a 2D image.
        spacing: distance of neighboring voxels in mm along D, H, W (the value for the D of a 2D image is arbitrary).
        affine: (4, 4), voxel indices x, y, z to mm in the axes right, anterior, superior.

    """

    path: Path
    labels: NDArray[np.integer]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64]


def find_label_files(folder: Path) -> dict[str, Path]:
    """Return the label volumes of a folder by case name (file name without its ending), in the order of names.

    Hidden files and files of other formats (JSON, probabilities) are left out.

    Raises:
        UserError: no such folder, no volume in it, or two volumes of one case.

    """
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist; give the folder that holds the label volumes.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = _ending(path)
        if ending is None or path.name.startswith("."):
            continue
        case = path.name[: -len(ending)]
        if case in found:
            raise UserError(f"Case {case!r} has two label volumes, {found[case]} and {path}; remove one of them.")
        found[case] = path
    if not found:
        raise UserError(f"The folder {folder} holds no label volume (looked for {', '.join(LABEL_ENDINGS)}).")
    return found


def read_label(path: Path) -> LabelVolume:
    """Read one label volume.

    Raises:
        UserError: a file that cannot be read, has several channels or time points, or is no map of whole numbers.

    """
    try:
        values, spacing, affine = (_read_nifti if _ending(path) in NIFTI_ENDINGS else _read_through_nnunet)(path)
    except READ_ERRORS as error:
        raise UserError(f"{path} cannot be read as a label volume ({error}); replace or remove it.") from error
    if values.ndim != 3:
        raise UserError(f"{path} has {values.ndim} axes {values.shape}; a label volume has one value per voxel.")
    if values.dtype.kind not in "iu":
        whole = np.rint(values)
        if not np.array_equal(values, whole):
            raise UserError(f"{path} is no label map: its values ({values.dtype}) are not all whole numbers.")
        values = whole.astype(np.int32)
    return LabelVolume(path, values, spacing, affine)


def _ending(path: Path) -> str | None:
    """Return the ending by which nnU-Net knows the format of the file, or None for other files."""
    matching = [ending for ending in LABEL_ENDINGS if path.name.lower().endswith(ending)]
    return max(matching, key=len) if matching else None


def _read_nifti(path: Path) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """Read through nibabel, which unlike SimpleITK also accepts slightly skewed axes."""
    image = squeeze_image(nibabel.load(path))
    # nibabel's axes are x, y, z.
    values = np.asanyarray(image.dataobj).T
    if values.ndim == 2:
        values = values[None]
    return values, tuple(float(size) for size in voxel_sizes(image.affine)[::-1]), image.affine


def _read_through_nnunet(path: Path) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """Read through the first of nnU-Net's readers that can: two of them share the ending .tif, for 2D and 3D."""
    problem: Exception = ValueError(f"unknown ending {path.name!r}")
    for reader in LIST_OF_IO_CLASSES:
        if _ending(path) not in reader.supported_file_endings:
            continue
        try:
            channels, properties = reader().read_seg(str(path))
        except READ_ERRORS as error:
            problem = error
            continue
        if len(channels) != 1:
            problem = ValueError(f"it has {len(channels)} channels")
            continue
        spacing = tuple(float(size) for size in properties["spacing"])
        affine = np.diag([*spacing[::-1], 1.0])
        if "sitk_stuff" in properties:
            affine = _affine_from_sitk(**properties["sitk_stuff"])
        return channels[0], spacing, affine
    raise problem


def _affine_from_sitk(
    spacing: tuple[float, ...], origin: tuple[float, ...], direction: tuple[float, ...]
) -> np.ndarray:
    """Return the affine of a 2D or 3D SimpleITK geometry; its axes left, posterior are turned to right, anterior."""
    dimension = len(spacing)
    affine = np.eye(4)
    affine[:dimension, :dimension] = np.reshape(direction, (dimension, dimension)) * np.asarray(spacing)
    affine[:dimension, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
