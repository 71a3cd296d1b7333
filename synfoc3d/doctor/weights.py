"""Checks of the files with pre-trained foundation weights: which are there, with their hashes, and are they whole."""

import hashlib
import os
import zipfile
from pathlib import Path

from synfoc3d.doctor.findings import Finding

HOME_VARIABLE = "SYNFOC3D_HOME"
ENDINGS = (".pth", ".pt")
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"  # torch's format since 1.6, and the one before
CHUNK = 2**20  # bytes read at a time


def check_weights() -> list[Finding]:
    """Look at the weight files in the folder ``checkpoints`` of SYNFOC3D_HOME (default: ``~/.synfoc3d``)."""
    value = os.environ.get(HOME_VARIABLE)
    home = Path(value) if value else Path.home() / ".synfoc3d"
    if value and not home.is_dir():
        mend = f"Run: mkdir -p {home / 'checkpoints'}, or unset {HOME_VARIABLE}"
        return [Finding(HOME_VARIABLE, "error", f"{value} is no folder", mend)]
    return check_weight_folder(home / "checkpoints")


def check_weight_folder(folder: Path) -> list[Finding]:
    """Look at every weight file of a folder, sorted by name."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [check_weight_file(file) for file in files if file.suffix in ENDINGS]
    return found or [Finding("weights", "ok", f"none in {folder}; only SAM and MedSAM need files")]


def check_weight_file(file: Path) -> Finding:
    """Look at one weight file: size, SHA-256, and whether it is a whole torch file; nothing in it is run."""
    try:
        problem, size, digest = torch_file_problem(file), file.stat().st_size, sha256(file)
    except OSError as error:
        return Finding(file.name, "error", f"{file} cannot be read ({error.strerror})", "Change its permissions.")
    details = {"path": str(file), "bytes": size, "sha256": digest}
    text = f"{size / 1e6:.1f} MB, SHA-256 {digest}"
    if problem:
        return Finding(file.name, "error", f"{file} {problem} ({text})", "Get it again from its authors.", details)
    return Finding(file.name, "ok", text, details=details)


def torch_file_problem(file: Path) -> str | None:
    """Say what is visibly wrong with a ``.pth`` file, from its first bytes and its table of contents.

    A zip's table of contents stands at the end, so that a download that broke off is noticed. Files of torch before
    1.6 have none.
    """
    with file.open("rb") as stream:
        start = stream.read(len(ZIP_START))
    if start == ZIP_START:
        try:
            with zipfile.ZipFile(file) as archive:
                whole = any(name.endswith("data.pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            return "is cut short or damaged"
        return None if whole else "is a zip, but no torch file"
    if not start:
        return "is empty"
    return None if start.startswith(PICKLE_START) else f"is no torch file, it starts with {start!r}"


def sha256(file: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits, read in parts."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()
