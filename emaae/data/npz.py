"""Reading an untrusted .npz: its headers first, then one array of numbers.

An archive may claim any size, hold any number of arrays, and inflate a thousandfold. So nothing is
inflated before the headers of archive and array agree on a size that is within `MAX_BYTES`, and no
array is inflated that is not asked for. Nothing is unpickled.
"""

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from emaae.system.errors import BadFile, reason, shortened
from emaae.system.files import MAX_READ, BoundedReader

# One utterance of 4 hours: 50 frames a second of 14 float64. The longest one of LibriSpeech has
# 35 s, the longest stories of brain recordings an hour or two.
MAX_FRAMES = 4 * 3600 * 50
MAX_BYTES = MAX_FRAMES * 14 * 8
# NumPy's headers of plain arrays have 128 bytes.
MAX_HEADER = 1024

RETRY = "extract or copy it again"


def load_npz(file: BinaryIO, where: str, key: str = "features") -> np.ndarray:
    """The array `key` of an .npz, or its only 2-D array.

    `where` names the file in errors. Raises BadFile.
    """
    with open_npz(file, where) as archive:
        return read_member(archive, key, where)


@contextlib.contextmanager
def open_npz(file: BinaryIO, where: str, at_most: int = MAX_BYTES) -> Iterator[zipfile.ZipFile]:
    """The archive in a file of at most so many bytes.

    Each of the many ways to fail while it is open is a BadFile, one line that names the file.
    """
    try:
        begins = file.read(6)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if not size:
            raise BadFile(f"{where} is empty: {RETRY}")
        if begins.startswith(b"\x93NUMPY"):
            raise BadFile(f"{where} is a bare array: expected an .npz, as np.savez writes it")
        if begins.startswith(b"\x80"):
            raise BadFile(_pickled(where))
        if not begins.startswith(b"PK"):
            raise BadFile(f"{where} is not an .npz (it begins {begins!r}): {RETRY}")
        if size > at_most:
            raise BadFile(too_large(where, "it", size))
        with zipfile.ZipFile(BoundedReader(file, where)) as archive:
            yield archive
    except BadFile:
        raise
    except EOFError:
        raise BadFile(f"{where} is truncated: {RETRY}") from None
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds
        raise BadFile(f"{where} is not a readable .npz ({reason(error)[:200]}): {RETRY}") from None


def read_member(
    archive: zipfile.ZipFile, key: str, where: str, at_most: int = MAX_BYTES
) -> np.ndarray:
    """The array `key` in an open archive, of at most so many bytes. Raises BadFile."""
    info = _member(archive, where, key)
    with _opened(archive, info, where) as member:
        shape, fortran, dtype = _header(member, info, where, at_most)
        content = bytearray()
        while piece := member.read(MAX_READ):  # the last one comes with the check of the sum
            content += piece
    array = np.frombuffer(content, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _member(archive: zipfile.ZipFile, where: str, key: str) -> zipfile.ZipInfo:
    """The member that is the array `key`, or else the only 2-D array by the headers."""
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise BadFile(f"{where} has two members of one name: expected an .npz; {RETRY}")
    if f"{key}.npy" in members:
        return members[f"{key}.npy"]
    arrays = {n.removesuffix(".npy"): info for n, info in members.items() if n.endswith(".npy")}
    matrices = []
    for info in arrays.values():
        with _opened(archive, info, where) as member:
            if len(_header(member, info, where, MAX_BYTES)[0]) == 2:
                matrices.append(info)
    if len(matrices) == 1:
        return matrices[0]
    raise BadFile(
        f"{where} has no key `{key}` and {len(matrices)} 2-D arrays among its keys "
        f"({shortened(list(arrays)) or 'none'}): save the matrix under the key `{key}`"
    )


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Any:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadFile(
            f"{where} is compressed by method {info.compress_type}: expected what np.savez or "
            "np.savez_compressed writes"
        )
    return archive.open(info)


def _header(
    member: Any, info: zipfile.ZipInfo, where: str, at_most: int
) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether in Fortran order, and dtype of a member, whose size must be what they say."""
    version = np.lib.format.read_magic(member)
    read: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise BadFile(f"{where} has an array of format {version}: expected plain numbers")
    shape, fortran, dtype = read(member, max_header_size=MAX_HEADER)
    if dtype.hasobject:
        raise BadFile(_pickled(where))
    claimed = math.prod(shape) * dtype.itemsize
    held = info.file_size - member.tell()
    if max(claimed, held) > at_most:
        raise BadFile(too_large(where, f"its array {info.filename!r}", max(claimed, held)))
    if claimed != held or min(shape, default=0) < 0:
        raise BadFile(
            f"{where} holds {held} bytes of the array {info.filename!r}, whose header says "
            f"{dtype} of shape {shape}: {RETRY}"
        )
    return shape, fortran, dtype


def _pickled(where: str) -> str:
    return (
        f"{where} holds pickled objects, which are never loaded: expected plain numbers, "
        "saved with np.savez(file, features=array)"
    )


def too_large(where: str, what: str, n_bytes: int) -> str:
    """The message for a file that is too large for one utterance; `what` has that size."""
    size = f"{n_bytes / 1e9:.1f} GB" if n_bytes < 1e15 else "more than any disk holds"
    return (
        f"{where} is too large for one utterance: {what} has {size}, and 4 hours have "
        f"{MAX_BYTES / 1e9:.2f} GB; cut it, or extract it again"
    )
