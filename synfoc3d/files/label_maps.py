"""What the voxels of a label file say, and label files written anew as nnU-Net reads them."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

from synfoc3d.errors import UserError
from synfoc3d.files.rounding import LARGEST_ROUNDING
from synfoc3d.files.spacing_files import read_spacing_file
from synfoc3d.files.volumes import (
    NIFTI_ENDINGS,
    Scan,
    along_axes_of,
    name_and_ending,
    read_grid,
    read_scan,
)


def label_values(scan: Scan) -> list[int]:
    """Return the values that occur in a label file (1, D, H, W), sorted; rounding noise is left out.

    Raises:
        UserError: several channels, or values that are not whole numbers of at least 0.
    """
    if len(scan.values) != 1:
        raise UserError(f"The label file {scan.path} has {len(scan.values)} channels, but must have one.")
    values = np.unique(scan.values)
    with np.errstate(invalid="ignore"):  # infinite values, refused below
        wrong = ~np.isfinite(values) | (np.abs(values - np.rint(values)) > LARGEST_ROUNDING) | (np.rint(values) < 0)
    if wrong.any():
        value = values[wrong][0]
        raise UserError(f"The label file {scan.path} holds the value {value}; labels must be whole numbers from 0.")
    return sorted({int(value) for value in np.rint(values)})


def is_exact(scan: Scan) -> bool:
    """Return whether nnU-Net, which reads labels as 32-bit floats and cuts the rest off, meets whole numbers."""
    if scan.values.dtype.kind != "f":
        return True
    values = scan.values.astype(np.float32, copy=False)
    return bool((values == np.rint(values)).all())


def write_label(source: Path, image: Path, target: Path, numbers: Mapping[int, int]) -> None:
    """Write a label file anew: as whole numbers, some of them as others, and along the axes of its image.

    Args:
        source: the label file.
        image: the first image file of its case.
        target: the new file, of the same format.
        numbers: what to write for the values that change.

    Raises:
        UserError: a file that cannot be read, or one that is no NIfTI file and lies along other axes than its image.
    """
    label = read_scan(source, as_label=True)
    written = label.values.copy()
    for value, number in numbers.items():
        written[label.values == value] = number
    if name_and_ending(source)[1] in NIFTI_ENDINGS:
        turned = along_axes_of(replace(label, values=written), read_grid(image))
        NibabelIO().write_seg(turned.values[0], str(target), {"nibabel_stuff": {"original_affine": turned.affine}})
        return
    reader, geometry = _reader_of(source)
    reader.write_seg(written[0], str(target), geometry)


def _reader_of(path: Path) -> tuple[BaseReaderWriter, dict[str, Any]]:
    """Return the first of nnU-Net's readers that reads a file, and what it needs to write another one like it."""
    for kind in LIST_OF_IO_CLASSES:
        if name_and_ending(path)[1] in kind.supported_file_endings:
            with contextlib.suppress(Exception):  # third-party readers raise whatever they meet; the next one may do
                properties = kind().read_images([str(path)])[1]
                return kind(), properties | {"spacing": read_spacing_file(path) or properties["spacing"]}
    raise AssertionError(f"{path} was read before")
