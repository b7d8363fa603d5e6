"""The files of encodings: a tree of .npz like the one they were made from.

    OUT/103/1240/103-1240-0000.npz         key `features`, (T, units) float32 or float16
    OUT/103/1240/103-1240-0000_times.npz   key `times`, (T, 2), seconds, both columns increasing
    OUT/manifest.json                      which model, form and versions made them

In the form `sparse` a file is what scipy.sparse.save_npz writes, and scipy.sparse.load_npz reads:
a CSR matrix (T, units) of float32. A file is written frame by frame, whatever its length, and is
there as a whole or not at all; what a power cut truncates is noticed the next time. The comment of
its archive says which state of which file it was made from.
"""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from emaae.data.npz import MOST_BYTES, MOST_FRAMES, Rows, open_npz, read_member
from emaae.runs.checkpoint import not_written, write_json, write_whole
from emaae.system.errors import BadFile, UserError
from emaae.system.files import open_plain, read_json

MANIFEST = "manifest.json"
# 24 hours of the largest encoding there can be, as CSR without a zero. What is read at a time is
# bounded by the reader.
MOST_ENCODED = MOST_FRAMES * 65536 * 12


# ---- one utterance


def write_encoding(
    path: Path, parts: Iterable[np.ndarray], shape: tuple[int, int], form: str, made_from: str
) -> None:
    """Write the rows (t, C) in `parts`, of which there are `shape` in all, as `form`; UserError.

    made_from: what `made_from` gives back when all of it is there.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = made_from.encode()
            if form == "sparse":
                _write_csr(archive, parts, shape, path.parent)
            else:
                rows = (_narrowed(part, form, path).data for part in parts)
                _write_array(archive, "features", form, shape, rows)

    write_whole(path, write, flushed=False)


def write_times(path: Path, times: np.ndarray) -> None:
    """Write the times (T, 2) of the encoding at `path` beside it, in a folder that is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(not_written(path, error)) from None
    write_whole(_beside(path), lambda file: np.savez(file, times=times), flushed=False)


def made_from(path: Path) -> str | None:
    """What the file at `path` was made from; None unless it is whole and its times are there."""
    with contextlib.suppress(OSError, BadFile, UnicodeDecodeError):
        with open_plain(_beside(path), MOST_BYTES) as file, open_npz(file, str(path)):
            pass
        file = open_plain(path, MOST_ENCODED)
        with file, open_npz(file, str(path), MOST_ENCODED) as archive:
            return archive.comment.decode()
    return None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.npz')}_times.npz")


def _narrowed(part: np.ndarray, dtype: str, path: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(part, dtype=dtype)
    if dtype == "float16" and not np.isfinite(narrow).all():
        raise UserError(
            f"{path} would hold {np.abs(part).max():g}, and float16 ends at 65504: use --format "
            "float32 or sparse"
        )
    return narrow


def _write_array(
    archive: zipfile.ZipFile,
    key: str,
    dtype: Any,
    shape: tuple[int, ...],
    content: Iterable[Any],
) -> None:
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for piece in content:
            member.write(piece)


def _write_csr(
    archive: zipfile.ZipFile, parts: Iterable[np.ndarray], shape: tuple[int, int], scratch: Path
) -> None:
    # scipy wants the numbers, their columns and where rows begin in an array each, and the first
    # of them has a header that says how many there are: they wait on the disk that they go to.
    index = np.int32 if shape[0] * shape[1] < 2**31 else np.int64
    with tempfile.TemporaryFile(dir=scratch) as data, tempfile.TemporaryFile(dir=scratch) as units:
        counts = [np.zeros(1, np.int64)]
        for part in parts:
            rows, columns = np.nonzero(part)
            data.write(np.ascontiguousarray(part[rows, columns], np.float32).data)
            units.write(columns.astype(index).data)
            counts.append(np.bincount(rows, minlength=len(part)))
        begins = np.cumsum(np.concatenate(counts)).astype(index)
        n = int(begins[-1])
        _write_array(archive, "format", "S3", (), [b"csr"])
        _write_array(archive, "shape", np.int64, (2,), [np.array(shape, np.int64).data])
        _write_array(archive, "indptr", index, begins.shape, [begins.data])
        for key, file, dtype in (("indices", units, index), ("data", data, np.float32)):
            file.seek(0)
            _write_array(archive, key, dtype, (n,), iter(lambda file=file: file.read(1 << 20), b""))


class Encoding(NamedTuple):
    """An encoding that is being read: frames, units, and what reads the next n frames (n, C)."""

    n_frames: int
    n_units: int
    read: Any


@contextlib.contextmanager
def open_encoding(path: str | Path) -> Iterator[Encoding]:
    """The encoding in a file, of any form, to be read from its first frame on. Raises BadFile."""
    where = str(path)
    try:
        file = open_plain(path, MOST_ENCODED)
    except OSError as error:
        raise BadFile(f"{where} cannot be read: {error.strerror or error}") from None
    with file, open_npz(file, where, MOST_ENCODED) as archive:
        names = set(archive.namelist())
        yield (_csr if "indptr.npy" in names else _dense)(archive, where)


def _dense(archive: zipfile.ZipFile, where: str) -> Encoding:
    rows = Rows(archive, "features", where)
    if len(rows.shape) != 2:
        raise BadFile(f"{where} has shape {rows.shape}: expected (T, units)")

    def read(n: int) -> np.ndarray:
        return _finite(rows.read(n).astype(np.float32), where)

    return Encoding(*rows.shape, read)


def _csr(archive: zipfile.ZipFile, where: str) -> Encoding:
    form, shape = (read_member(archive, key, where) for key in ("format", "shape"))
    begins = read_member(archive, "indptr", where)
    data, units = Rows(archive, "data", where), Rows(archive, "indices", where)
    whole = (
        form.tobytes() == b"csr"
        and shape.shape == (2,)
        and shape.dtype.kind == begins.dtype.kind == "i"
        and begins.shape == (shape[0] + 1,)
        and begins[0] == 0
        and data.shape == units.shape == (begins[-1],)
        and (np.diff(begins) >= 0).all()
        and (np.diff(begins) <= shape[1]).all()
    )
    if not whole:
        raise BadFile(
            f"{where} contradicts itself: expected a CSR matrix, as scipy.sparse saves it"
        )
    n_frames, n_units = (int(n) for n in shape)
    done = 0

    def read(n: int) -> np.ndarray:
        nonlocal done
        counts = np.diff(begins[done : done + n + 1])
        done += n
        z = np.zeros((n, n_units), np.float32)
        columns, numbers = units.read(int(counts.sum())), data.read(int(counts.sum()))
        if len(columns) and not 0 <= columns.min() <= columns.max() < n_units:
            raise BadFile(f"{where} has a column beyond its {n_units} units")
        z[np.repeat(np.arange(n), counts), columns] = numbers
        return _finite(z, where)

    return Encoding(n_frames, n_units, read)


def _finite(z: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(z).all():
        raise BadFile(f"{where} has numbers that are not finite: make it again")
    return z


# ---- the tree


def claim(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a tree, or compare it with the one that is there. Raises UserError.

    What was made, by which model and in which form must be the same; the rest may differ.
    """
    path = out / MANIFEST
    if not path.is_file():
        others = sorted(entry.name for entry in out.iterdir() if entry.name[0] != ".")
        if others:
            raise UserError(
                f"{out} holds {others[0]} and no {MANIFEST}, so that others made it: expected a "
                "new or empty folder; give another --out"
            )
        write_json(path, manifest)
        return
    before = read_json(path)
    was, now = _identity(before), _identity(manifest)
    if was != now:
        raise UserError(
            f"{out} holds {was}, and {now} were asked for: give another --out, or remove that "
            "folder"
        )


def _identity(manifest: Mapping[str, Any]) -> str:
    """What must be the same of all files in a tree."""
    model = manifest.get("model")
    sha256 = str(model.get("sha256") if isinstance(model, dict) else model)[:12]
    return f"{manifest.get('made')} by model {sha256} as {manifest.get('form')}"
