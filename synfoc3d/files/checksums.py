"""What files of scans, and of torch, say of themselves, checksum and length, against what they hold.

A gzip stream (.nii.gz, .nrrd) ends with the CRC-32 and the length of its content, a zlib stream (.mha) with its
Adler-32, every part of a PNG with its CRC-32; the headers of uncompressed files tell how long these are. Readers of
images stop behind the last voxel or take no notice, and give damaged or missing voxels like any others. A file of torch
is a zip archive, with the CRC-32 of every tensor, at which torch does not look either.
"""

import gzip
import logging
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
import SimpleITK
import tifffile

READ_BYTES = 1 << 20  # at once, of a stream's content
INFLATE_BYTES = 1 << 14  # at once, of a compressed file: at most a thousand times as much in memory
ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
GIPL_HEADER_BYTES = 256
ELSEWHERE = "its voxels lie in another file, which would be left behind: write both as one file"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def compare_checksum(path: Path) -> None:
    """Read a file of scans, compare its checksum and its length with what it says of them, and keep nothing.

    What a format does not tell is not found: a flipped bit among uncompressed voxels, bytes behind those of a TIFF.
    Zeros may follow a gzip stream, as gzip allows.

    Raises:
        OSError, EOFError, ValueError, zlib.error, RuntimeError: they differ, or the file is damaged otherwise.
    """
    checks = {
        ".gz": _compare_nifti,
        ".nii": _compare_nifti,
        ".nrrd": _compare_nrrd,
        ".mha": _compare_mha,
        ".gipl": _compare_gipl,
        ".png": _compare_png,
        ".bmp": _compare_bmp,
        ".tif": _compare_tiff,
        ".tiff": _compare_tiff,
    }
    checks[path.suffix.lower()](path)


def compare_torch_checksums(path: Path) -> None:
    """Read a file that ``torch.save`` wrote and compare the checksums of all that is in it; keep nothing.

    Raises:
        ValueError, OSError, zipfile.BadZipFile, ...: a checksum is wrong, or the file is damaged or no such file.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def read_to_end(stream: gzip.GzipFile) -> int:
    """Read what is left of a gzip stream: Python compares the checksum where the stream ends.

    Returns:
        Number of bytes that were left.

    Raises:
        OSError, EOFError, zlib.error: the checksum is wrong, the stream is damaged or cut short, or something else than
            zeros is behind it.
    """
    left = 0
    while content := stream.read(READ_BYTES):
        left += len(content)
    return left


def compare_length(found: int, declared: int) -> None:
    """Compare a length in bytes with the one that the header tells.

    Raises:
        EOFError, ValueError: the file is shorter, or longer.
    """
    if found < declared:
        raise EOFError(f"it ends {declared - found} bytes too early")
    if found > declared:
        raise ValueError(f"it is longer than its header says, by {found - declared} bytes")


def _compare_nifti(path: Path) -> None:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as stream:
            found = read_to_end(stream)  # first of all: what the header says may be the damage
    else:
        found = path.stat().st_size
    voxels: Any = nibabel.load(path).dataobj  # type: ignore[attr-defined]  # every NIfTI image has it
    compare_length(found, voxels.offset + int(np.prod(voxels.shape)) * voxels.dtype.itemsize)


# --- formats that SimpleITK reads ------------------------------------------------------------------------------------


def _compare_mha(path: Path) -> None:
    with path.open("rb") as file:
        header = _read_text_header(file, b"=", b"elementdatafile")
        if header.get(b"elementdatafile", b"local") != b"local":
            raise ValueError(ELSEWHERE)
        if header.get(b"binarydata", b"true")[:1] not in (b"t", b"1"):
            return  # voxels as text
        if header.get(b"compresseddata", b"")[:1] in (b"t", b"1"):
            compare_length(_inflate(file), _voxel_bytes(path))
        elif header.get(b"headersize", b"0") == b"0":
            compare_length(path.stat().st_size - file.tell(), _voxel_bytes(path))


def _compare_nrrd(path: Path) -> None:
    with path.open("rb") as file:
        header = _read_text_header(file, b": ", b"")
        if {b"data file", b"datafile"} & header.keys():
            raise ValueError(ELSEWHERE)
        if {b"line skip", b"lineskip", b"byte skip", b"byteskip"} & header.keys():
            return  # voxels that begin further on
        if header.get(b"encoding") in (b"gzip", b"gz"):
            with gzip.GzipFile(fileobj=file) as stream:
                compare_length(read_to_end(stream), _voxel_bytes(path))
        elif header.get(b"encoding") == b"raw":
            compare_length(path.stat().st_size - file.tell(), _voxel_bytes(path))


def _compare_gipl(path: Path) -> None:
    compare_length(path.stat().st_size, GIPL_HEADER_BYTES + _voxel_bytes(path))


def _voxel_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a file take that SimpleITK reads, by its header."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    is_vector = "vector" in SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())  # a complex number has one component
    components = reader.GetNumberOfComponents() if is_vector else 0
    pixel = SimpleITK.Image([1] * reader.GetDimension(), reader.GetPixelID(), components)
    return int(np.prod(reader.GetSize())) * pixel.GetSizeOfPixelComponent() * pixel.GetNumberOfComponentsPerPixel()


def _inflate(file: BinaryIO) -> int:
    """Decompress a zlib stream, which must be the rest of the file; zlib compares the checksum at its end.

    Returns:
        Length of its content in bytes.
    """
    stream, length = zlib.decompressobj(ZLIB_OR_GZIP), 0
    while not stream.eof:
        compressed = file.read(INFLATE_BYTES)
        if not compressed:
            raise EOFError("the compressed voxels end before their checksum")
        length += len(stream.decompress(compressed))
    compare_length(len(stream.unused_data) + len(file.read()), 0)
    return length


def _read_text_header(file: BinaryIO, separator: bytes, last: bytes) -> dict[bytes, bytes]:
    """Read lines of a key and a value up to the one whose key is ``last``; return them in lower case."""
    header = {}
    for line in iter(file.readline, b""):  # unlike a loop over the file, this allows to ask for the place
        key, _, value = (part.strip() for part in line.lower().partition(separator))
        header[key] = value
        if key == last:
            break
    return header


# --- pictures --------------------------------------------------------------------------------------------------------


def _compare_png(path: Path) -> None:
    """Compare the checksum of every chunk; the last one says that the picture is complete."""
    content = path.read_bytes()
    if not content.startswith(PNG_SIGNATURE):
        raise ValueError("it does not begin like a PNG")
    start, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if start + 12 > len(content):
            raise EOFError("it ends before its last part")
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 8 + length
        kind, checksum = content[start + 4 : start + 8], content[end : end + 4]
        if checksum != struct.pack(">I", zlib.crc32(content[start + 4 : end])):
            raise ValueError("a checksum is wrong")
        start = end + 4
    compare_length(len(content), start)


def _compare_bmp(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(6)
    if len(header) < 6:
        raise EOFError("it ends within its header")
    (declared,) = struct.unpack_from("<I", header, 2)
    if declared:  # some programs leave it out
        compare_length(path.stat().st_size, declared)


def _compare_tiff(path: Path) -> None:
    """Find pages whose description or voxels lie behind the end of the file: readers would leave them out."""
    with _errors_of_tifffile() as errors, tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if not errors]
        for page in pages:
            spans = zip(page.dataoffsets, page.databytecounts, strict=True)
            if max((offset + count for offset, count in spans), default=0) > path.stat().st_size:
                raise EOFError(f"it ends before the voxels of page {page.index}")
    if errors:
        raise ValueError(errors[0])


@contextmanager
def _errors_of_tifffile() -> Iterator[list[str]]:
    """Collect what tifffile logs as errors in this thread: where a file is damaged, it reads no further and goes on."""
    errors: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                errors.append(record.getMessage().replace("\n", " "))

    collector = Collector(logging.ERROR)
    logger = logging.getLogger("tifffile")
    logger.addHandler(collector)
    try:
        yield errors
    finally:
        logger.removeHandler(collector)
