"""Malicious files: archives with wrong sizes, or which inflate to gigabytes."""

import struct
import zipfile
import zlib


def npy(shape, dtype="<f4", content: bytes = b"") -> bytes:
    """An array in NumPy's format 1.0, whose header need not match its content."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def inflating(n_bytes: int, start: bytes) -> tuple[bytes, int]:
    """A deflate stream of `start` and zeros, of some kilobytes, and its real length in bytes."""
    block = b"\0" * (1 << 20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    one = deflate.compress(block) + deflate.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the same bytes give the same block again.
    n_blocks = n_bytes // len(block)
    return head + one * n_blocks + deflate.flush(), len(start) + n_blocks * len(block)


def archive(name: str, stored: bytes, claimed: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of one member, whose compressed bytes and claimed size are as given."""
    label, sum_of_it = name.encode(), 0
    common = struct.pack("<HHHHHLLLHH", 20, 0, method, 0, 33, sum_of_it, len(stored), claimed,
                         len(label), 0)  # fmt: skip
    local = b"PK\3\4" + common + label + stored
    central = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHLL", 0, 0, 0, 0, 0)
    central += label
    end = struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + b"PK\5\6" + end


def bombs(n_bytes: int = 2 << 30) -> dict[str, bytes]:
    """Archives that inflate to `n_bytes`, by the size that they claim."""
    shape = (n_bytes // 56, 14)
    honest, length = inflating(n_bytes, npy(shape))
    lying, _ = inflating(n_bytes, npy((30, 14)))
    silent, _ = inflating(n_bytes, npy(shape))
    return {
        "says so": archive("features.npy", honest, length),
        "says 30 frames": archive("features.npy", lying, len(npy((30, 14))) + 30 * 56),
        "says so within": archive("features.npy", silent, 1000),
        "has another name": archive("arr_0.npy", honest, length),
        "is bzip2": archive("features.npy", honest, length, zipfile.ZIP_BZIP2),
        "is lzma": archive("features.npy", honest, length, zipfile.ZIP_LZMA),
        "is a long list": _long_list(),
    }


def names(error: Exception, path) -> None:
    """Assert that an error is one line that names the file."""
    assert str(path) in str(error)
    assert "\n" not in str(error)


def _long_list() -> bytes:
    entry = b"PK\1\2" + struct.pack("<H", 20)
    entry += struct.pack("<HHHHHLLLHH", 20, 0, 0, 0, 33, 0, 0, 0, 4, 0)
    entry += struct.pack("<HHHLL", 0, 0, 0, 0, 0) + b"name"
    members = entry * 200_000
    end = struct.pack("<HHHHLLH", 0, 0, 65535, 65535, len(members), 4, 0)
    return b"PK\3\4" + members + b"PK\5\6" + end
