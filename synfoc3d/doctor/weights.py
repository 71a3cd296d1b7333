"""Checks of the files with pre-trained foundation weights: which are there, with their hashes, and are they whole."""

import json
import os
import zipfile
from pathlib import Path

from synfoc3d.doctor.findings import Finding
from synfoc3d.errors import UserError
from synfoc3d.networks.weights.known import (
    HOME_VARIABLE,
    KNOWN,
    SAFETENSORS,
    WHOLE_MODEL,
    KnownNetwork,
    checkpoint_folder,
    file_hash,
    hash_problem,
    home_folder,
    how_to_get,
    network_of_file,
    published_name,
    shipped_file,
)

ENDINGS = (".pth", ".pt", SAFETENSORS)
LENGTH_BYTES = 8  # at the start of a file of safetensors: the length of its header, little-endian
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"  # torch's format since 1.6, and the one before


def check_weights() -> list[Finding]:
    """Look at weights in packages and in the folder ``checkpoints`` of SYNFOC3D_HOME or ``~/.synfoc3d``."""
    try:
        value, home = os.environ.get(HOME_VARIABLE), home_folder()
    except UserError as error:
        return [Finding(HOME_VARIABLE, "error", str(error), f"Run: unset {HOME_VARIABLE}")]
    shipped = [check_shipped_weights(known) for known in KNOWN.values() if known.shipment]
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
    """Look at every weight file of a folder, and of folders in it as transformers writes them, sorted by name."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path / WHOLE_MODEL if path.is_dir() else path for path in paths]
    found = [check_weight_file(file) for file in files if file.suffix in ENDINGS and file.is_file()]
    return found or [Finding("weights", "ok", f"none in {folder}; SAM and MedSAM need files there")]


def check_weight_file(file: Path) -> Finding:
    """Look at one weight file: size, SHA-256, whether it is a published one and whole; nothing in it is run."""
    name = published_name(file)
    look = safetensors_problem if file.suffix == SAFETENSORS else torch_file_problem
    try:
        problem, size, digest = look(file), file.stat().st_size, file_hash(file)
        known = network_of_file(name, digest)
        changed = hash_problem(known, file, digest) if known and not problem else None
    except OSError as error:
        return Finding(name, "error", f"{file} cannot be read ({error.strerror})", "Change its permissions.")
    details = {"path": str(file), "bytes": size, "sha256": digest, "network": known.name if known else None}
    if known:
        details |= {"license": known.license, "trained_on": known.trained_on.text}
    text = f"{size / 1e6:.1f} MB, SHA-256 {digest}"
    if problem:
        source = f" from {known.source}" if known else " from its authors"
        return Finding(name, "error", f"{file} {problem} ({text})", f"Get it again{source}.", details)
    if known and changed:
        mend = f"Get it again from {known.source}, unless it was saved anew on purpose."
        return Finding(name, "warning", f"{file} {changed}", mend, details)
    if known:
        text = f"{known.name}, {text}; license {known.license}; trained on {known.trained_on.text}"
    return Finding(name, "ok", text, details=details)


def safetensors_problem(file: Path) -> str | None:
    """Say what is visibly wrong with a file of safetensors: its header says how long it has to be."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if not 0 < length <= file.stat().st_size:
            return "is cut short or no safetensors file"
        header = stream.read(length)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        whole = LENGTH_BYTES + length + max(ends, default=0) == file.stat().st_size
    except (ValueError, TypeError, LookupError, AttributeError):
        return "is cut short or no safetensors file"
    return None if whole else "is cut short or damaged"


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
