"""Checks of the files with pre-trained foundation weights: which are there, with their hashes, and are they whole."""

import os
import zipfile
from pathlib import Path

from synfoc3d.doctor.findings import Finding
from synfoc3d.networks.weights.known import (
    HOME_VARIABLE,
    KNOWN,
    KnownNetwork,
    checkpoint_folder,
    file_hash,
    hash_problem,
    home_folder,
    how_to_get,
    network_of_file,
    shipped_file,
)

ENDINGS = (".pth", ".pt")
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"  # torch's format since 1.6, and the one before


def check_weights() -> list[Finding]:
    """Look at weights in packages and in the folder ``checkpoints`` of SYNFOC3D_HOME or ``~/.synfoc3d``."""
    shipped = [check_shipped_weights(known) for known in KNOWN.values() if known.shipment]
    value, home = os.environ.get(HOME_VARIABLE), home_folder()
    if value and not home.is_dir():
        mend = f"Run: mkdir -p {checkpoint_folder()}, or unset {HOME_VARIABLE}"
        return [*shipped, Finding(HOME_VARIABLE, "error", f"{value} is no folder", mend)]
    return [*shipped, *check_weight_folder(checkpoint_folder())]


def check_shipped_weights(known: KnownNetwork) -> Finding:
    """Look at the weights that a package brings; the compact network works without them, others need their file."""
    file = shipped_file(known)
    if file:
        return check_weight_file(file)
    if known.architecture == "compact":
        return Finding(known.name, "ok", "no weights in this package: starts random")
    if (checkpoint_folder() / known.file).is_file():
        return Finding(known.name, "ok", f"{known.file} is not taken from a package, but from {checkpoint_folder()}")
    get = how_to_get(known)
    return Finding(known.name, "warning", "its weights are missing", f"{get[0].upper()}{get[1:]}.")


def check_weight_folder(folder: Path) -> list[Finding]:
    """Look at every weight file of a folder, sorted by name."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [check_weight_file(file) for file in files if file.suffix in ENDINGS]
    return found or [Finding("weights", "ok", f"none in {folder}; SAM and MedSAM need files there")]


def check_weight_file(file: Path) -> Finding:
    """Look at one weight file: size, SHA-256, whether it is a published one and whole; nothing in it is run."""
    try:
        problem, size, digest = torch_file_problem(file), file.stat().st_size, file_hash(file)
        known = network_of_file(file.name, digest)
        changed = hash_problem(known, file, digest) if known and not problem else None
    except OSError as error:
        return Finding(file.name, "error", f"{file} cannot be read ({error.strerror})", "Change its permissions.")
    details = {"path": str(file), "bytes": size, "sha256": digest, "network": known.name if known else None}
    if known:
        details |= {"license": known.license, "trained_on": known.trained_on.text}
    text = f"{size / 1e6:.1f} MB, SHA-256 {digest}"
    if problem:
        source = f" from {known.source}" if known else " from its authors"
        return Finding(file.name, "error", f"{file} {problem} ({text})", f"Get it again{source}.", details)
    if known and changed:
        mend = f"Get it again from {known.source}, unless it was saved anew on purpose."
        return Finding(file.name, "warning", f"{file} {changed}", mend, details)
    if known:
        text = f"{known.name}, {text}; license {known.license}; trained on {known.trained_on.text}"
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
