"""Reading an untrusted .npz: one array of numbers.

An archive may claim any size, hold any number of arrays, and decompress to a thousand times its
size. So an array is decompressed only if it is asked for, up to the size in the archive's list of
members, which may be at most `MAX_BYTES`. Nothing is unpickled.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from emaae.system.errors import BadFile, reason, shortened
from emaae.system.files import MAX_READ, BoundedReader

# One utterance of 4 hours: 50 frames a second, 14 float64 each. The longest utterance of
# LibriSpeech has 35 s, the longest stories of brain recordings have one or two hours.
MAX_FRAMES = 4 * 3600 * 50
MAX_BYTES = MAX_FRAMES * 14 * 8
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

RETRY = "extract or copy it again"
PICKLED = (
    "holds pickled objects, which are never loaded: expected plain numbers, saved with "
    "np.savez(file, features=array)"
)


def load_npz(file: BinaryIO, where: str, key: str = "features") -> np.ndarray:
    """The array `key` of an .npz, or its only 2-D array.

    `where` names the file in errors. Raises BadFile.
    """
    with open_npz(file, where) as archive:
        return read_member(archive, key, where)


@contextlib.contextmanager
def open_npz(file: BinaryIO, where: str) -> Iterator[zipfile.ZipFile]:
    """The archive in a file, whose size the caller must have limited.

    Any error while the archive is open becomes a BadFile, whose message names the file (`where`).
    """
    try:
        magic = file.read(6)
        file.seek(0)
        if not magic:
            raise BadFile(f"{where} is empty: {RETRY}")
        if magic.startswith(b"\x93NUMPY"):
            raise BadFile(f"{where} is a bare array: expected an .npz, as np.savez writes it")
        if magic.startswith(b"\x80"):
            raise BadFile(f"{where} {PICKLED}")
        if not magic.startswith(b"PK"):
            raise BadFile(f"{where} is not an .npz (it begins {magic!r}): {RETRY}")
        with zipfile.ZipFile(BoundedReader(file, where)) as archive:
            members = archive.infolist()
            if len({info.filename for info in members}) < len(members):
                raise BadFile(f"{where} has two members of one name: expected an .npz; {RETRY}")
            # Other methods cannot be decompressed piece by piece.
            if any(info.compress_type not in METHODS for info in members):
                raise BadFile(
                    f"{where} has an unusual compression: expected an .npz, as np.savez or "
                    "np.savez_compressed writes it"
                )
            yield archive
    except BadFile:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many types of errors
        raise BadFile(f"{where} is not a readable .npz ({reason(error)[:200]}): {RETRY}") from None


def read_member(
    archive: zipfile.ZipFile, key: str, where: str, max_bytes: int = MAX_BYTES
) -> np.ndarray:
    """The array `key` in an open archive, of at most `max_bytes`. Raises BadFile."""
    info = archive.getinfo(_member(archive, key, where))
    if info.file_size > max_bytes:
        raise BadFile(f"{where} {too_large(f'its array {info.filename!r}', info.file_size)}")
    with archive.open(info) as member:
        shape, fortran, dtype = _header(member)
        if dtype.hasobject:
            raise BadFile(f"{where} {PICKLED}")
        content = bytearray()
        # Never more than info.file_size bytes; zipfile checks the CRC at the end.
        while piece := member.read(MAX_READ):
            content += piece
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _member(archive: zipfile.ZipFile, key: str, where: str) -> str:
    """The member with the array `key` or, without that key, with the only 2-D array."""
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if f"{key}.npy" in names:
        return f"{key}.npy"
    matrices = []
    for name in names:
        with archive.open(name) as member:
            if len(_header(member)[0]) == 2:
                matrices.append(name)
    if len(matrices) == 1:
        return matrices[0]
    keys = [name.removesuffix(".npy") for name in names]
    raise BadFile(
        f"{where} has no key `{key}` and {len(matrices)} 2-D arrays among its keys "
        f"({shortened(keys) or 'none'}): save the matrix under the key `{key}`"
    )


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of the array in an open member."""
    first = npy.read_magic(member) == (1, 0)
    return (npy.read_array_header_1_0 if first else npy.read_array_header_2_0)(member)


def too_large(what: str, n_bytes: int) -> str:
    """The end of a message about a file in which `what` is too large for one utterance."""
    size = f"{n_bytes / 1e9:.1f} GB" if n_bytes < 1e15 else "over a million GB"
    return (
        f"is too large for one utterance: {what} has {size}, expected at most {MAX_BYTES / 1e9:.2f}"
        " GB, 4 hours; split the recording"
    )
