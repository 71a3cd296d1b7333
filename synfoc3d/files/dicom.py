"""Telling DICOM files from others, to say what to do with them: nnU-Net reads none."""

from itertools import islice
from pathlib import Path

DICOM_ENDINGS = (".dcm", ".ima", ".dicom")
SOME = 200  # entries of a folder that are looked at
PREAMBLE = 128  # bytes before the four that tell the format


def dicom_advice(path: Path) -> str | None:
    """Return a sentence on how to convert a DICOM file, or a folder of them; None for anything else.

    A folder holds such files if some of its first entries, at any depth, are.
    """
    entries = islice(path.rglob("*"), SOME) if path.is_dir() else [path]
    if not any(map(_is_dicom, entries)):
        return None
    folder = path if path.is_dir() else path.parent
    what = "holds DICOM files" if path.is_dir() else "is a DICOM file"
    return (
        f"{path} {what}, which nnU-Net does not read: convert each series to one file, for example with "
        f"dcm2niix -z y -o SCANS {folder}, and give that."
    )


def _is_dicom(path: Path) -> bool:
    """Say whether a file is one by its name, or by its first bytes if its name has no ending."""
    if path.suffix.lower() in DICOM_ENDINGS or path.name.upper() == "DICOMDIR":
        return True
    if path.suffix.strip(".0123456789") or not path.is_file():  # scanners name files by numbers, too
        return False
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False
