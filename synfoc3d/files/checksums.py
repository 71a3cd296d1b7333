"""Checksums that compressed files of scans, and files of torch, carry.

A gzip stream (.nii.gz, .nrrd) ends with the CRC-32 and the length of its content, a zlib stream (.mha) with its
Adler-32. Readers of images stop behind the last voxel or take no notice, and give damaged voxels like any others. A
file of torch is a zip archive, with the CRC-32 of every tensor, at which torch does not look either.
"""

import gzip
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

READ_BYTES = 1 << 20  # at once, of a stream's content
INFLATE_BYTES = 1 << 14  # at once, of a compressed file: at most a thousand times as much in memory
ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS


def compare_checksum(path: Path) -> None:
    """Read the compressed part of a .gz, .nrrd or .mha file, if it has one, and compare its checksum; keep nothing.

    Raises:
        OSError, EOFError, zlib.error: the checksum is wrong, or the stream is damaged or cut short.
    """
    ending = path.suffix.lower()
    with path.open("rb") as file:
        if ending == ".mha" and _skip_header_of_mha(file):
            _inflate(file)
        elif ending == ".gz" or (ending == ".nrrd" and _skip_header_of_nrrd(file)):
            with gzip.GzipFile(fileobj=file) as stream:
                read_to_end(stream)


def compare_torch_checksums(path: Path) -> None:
    """Read a file that ``torch.save`` wrote and compare the checksums of all that is in it; keep nothing.

    Raises:
        ValueError, OSError, zipfile.BadZipFile, ...: a checksum is wrong, or the file is damaged or no such file.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def read_to_end(stream: gzip.GzipFile) -> None:
    """Read what is left of a gzip stream: Python compares the checksum where the stream ends.

    Raises:
        OSError, EOFError, zlib.error: as for `compare_checksum`; also something else than zeros behind the stream.
    """
    while stream.read(READ_BYTES):
        pass


def _inflate(file: BinaryIO) -> None:
    """Decompress a zlib stream to its end; zlib compares the checksum there."""
    stream = zlib.decompressobj(ZLIB_OR_GZIP)
    while not stream.eof:
        compressed = file.read(INFLATE_BYTES)
        if not compressed:
            raise EOFError("the compressed voxels end before their checksum")
        stream.decompress(compressed)


def _skip_header_of_mha(file: BinaryIO) -> bool:
    """Move behind the header; return whether compressed voxels follow."""
    header = _read_header(file, b"=", b"elementdatafile")
    return header.get(b"elementdatafile") == b"local" and header.get(b"compresseddata", b"")[:1] in (b"t", b"1")


def _skip_header_of_nrrd(file: BinaryIO) -> bool:
    """Move behind the header; return whether compressed voxels follow, which may as well lie in another file."""
    header = _read_header(file, b": ", b"")
    elsewhere = {b"data file", b"datafile", b"line skip", b"lineskip", b"byte skip", b"byteskip"}
    return header.get(b"encoding") in (b"gzip", b"gz") and not elsewhere & header.keys()


def _read_header(file: BinaryIO, separator: bytes, last: bytes) -> dict[bytes, bytes]:
    """Read lines of a key and a value up to the one whose key is ``last``; return them in lower case."""
    header = {}
    for line in file:
        key, _, value = (part.strip() for part in line.lower().partition(separator))
        header[key] = value
        if key == last:
            break
    return header
