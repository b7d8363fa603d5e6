"""The files of encodings: a tree of .npz with the names of the feature tree.

    OUT/103/1240/103-1240-0000.npz         key `features`, (T, units) float32 or float16
    OUT/103/1240/103-1240-0000_times.npz   key `times`, (T, 2), seconds, both columns increasing
    OUT/manifest.json                      which model, form and versions; which units fire

In the form `sparse` a file is a CSR matrix (T, units) of float32, from scipy.sparse.save_npz. Files
are written whole or not at all; files that a power cut truncated are detected and made again. The
zip comment of a file is its stamp: which state of which feature file it was made from.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse

from emaae.data.features import times_beside
from emaae.data.npz import MAX_BYTES, MAX_FRAMES, open_npz, read_member
from emaae.data.reading import cast_frames
from emaae.system import files
from emaae.system.errors import BadFile, UserError

MANIFEST = "manifest.json"
# Bytes of the longest utterance with the most units, in float32.
MAX_ENCODING = MAX_FRAMES * 65536 * 4
CSR_KEYS = ("format", "shape", "indptr", "indices", "data")


# ---- one utterance


def write_encoding(
    path: Path, parts: Iterable[np.ndarray], shape: tuple[int, int], form: str, stamp: str
) -> None:
    """Write an array of this shape (T, C), given as consecutive parts (t, C), in the format `form`.

    stamp: what `read_stamp` returns for the file once it is whole. Raises UserError.
    """
    if form == "sparse":
        matrix = scipy.sparse.vstack([scipy.sparse.csr_matrix(part) for part in parts], "csr")
        save = partial(scipy.sparse.save_npz, matrix=matrix, compressed=False)
    else:
        features, done = np.empty(shape, form), 0
        for part in parts:
            rows = cast_frames(part, form, f"{path} would hold", "--format float32 or sparse")
            features[done : done + len(part)] = rows
            done += len(part)
        save = partial(np.savez, features=features)

    def write(file: BinaryIO) -> None:
        save(file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = stamp.encode()

    files.write_atomically(path, write, fsync=False)


def write_times(path: Path, times: np.ndarray, *, fsync: bool = True) -> None:
    """Write times (T, 2) beside `path`; call this before writing `path`. Raises UserError."""
    files.make_folder(path.parent)
    beside = Path(times_beside(str(path)))
    files.write_atomically(beside, lambda file: np.savez(file, times=times), fsync=fsync)


def read_stamp(path: str | Path) -> str | None:
    """The stamp of the file at `path`; None unless the file and its times are whole."""
    where = str(path)
    with contextlib.suppress(BadFile, UnicodeDecodeError):
        with files.regular_file(times_beside(where), MAX_BYTES) as file, open_npz(file, where):
            pass
        with files.regular_file(path, MAX_ENCODING) as file, open_npz(file, where) as archive:
            return archive.comment.decode()
    return None


def read_encoding(path: str | Path, n_units: int) -> np.ndarray:
    """The encoding (T, n_units) float32 in a file of any form. Raises BadFile."""
    where, limit = str(path), MAX_FRAMES * n_units * 8
    with files.regular_file(path, 2 * limit) as file, open_npz(file, where) as archive:
        if "indptr.npy" in archive.namelist():
            arrays = {key: read_member(archive, key, where, limit) for key in CSR_KEYS}
            z = _from_csr(arrays, n_units, where)
        else:
            z = read_member(archive, "features", where, limit)
    if z.ndim != 2 or z.shape[1] != n_units or not len(z) or z.dtype.kind not in "fiu":
        raise BadFile(
            f"{where} holds {z.dtype} of shape {z.shape}: expected frames of {n_units} units; name "
            "the --model that made it"
        )
    with np.errstate(over="ignore"):
        z = z.astype(np.float32, copy=False)
    if not np.isfinite(z).all():
        raise BadFile(f"{where} has numbers that are not finite: make it again")
    return z


def _from_csr(arrays: Mapping[str, np.ndarray], n_units: int, where: str) -> np.ndarray:
    form, shape, begins, columns, numbers = (arrays[key] for key in CSR_KEYS)
    try:
        n_frames, width = shape.tolist()
        if form.tobytes() != b"csr" or width != n_units or n_frames > MAX_FRAMES:
            raise ValueError
        matrix = scipy.sparse.csr_matrix((numbers, columns, begins), (n_frames, width))
        matrix.check_format(full_check=True)
    except (ValueError, TypeError):
        raise BadFile(
            f"{where} contradicts itself: expected a CSR matrix with {n_units} columns, as "
            "scipy.sparse.save_npz writes it"
        ) from None
    return matrix.toarray()


# ---- the tree


def open_manifest(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a tree; in a new folder, `manifest` is written. Raises UserError.

    In an existing tree the kind of files (`made`), the model, the form and the `source` (see
    `source`) must be those of `manifest`; other entries may differ.
    """
    path = out / MANIFEST
    if path.is_file():
        found = files.read_json(path)
        was, now = description(found), description(manifest)
        before = found.get("source", manifest["source"])  # older manifests lack it
        if was == now and before != manifest["source"]:
            was, now = f"{was} from {before}", f"those from {manifest['source']}"
        if was != now:
            raise UserError(
                f"{out} holds {was}, and {now} were asked for: give another --out, remove that "
                f"folder or, if it was moved, correct `source` in its {MANIFEST}"
            )
        if "source" not in found:
            found["source"] = manifest["source"]
            files.write_json(path, found)
        return found
    others = sorted(entry.name for entry in out.iterdir() if files.is_data(entry.name))
    if others:
        raise UserError(
            f"{out} holds {others[0]} and no {MANIFEST}, so this program did not make it: expected "
            "a new or empty folder; give another --out"
        )
    files.write_json(path, manifest)
    return dict(manifest)


def source(root: str | Path, out: Path) -> str:
    """The tree that `out` is made from, relative to it, or the address in a bucket.

    Raises UserError if `out` is in that tree.
    """
    if "://" in str(root):
        return str(root)
    if out.resolve().is_relative_to(Path(root).resolve()):
        raise UserError(
            f"--out {out} is in {root}, which is read: the next call would read the output; give "
            "another --out, outside of it"
        )
    return os.path.relpath(os.path.realpath(root), out.resolve())


def description(manifest: Mapping[str, Any]) -> str:
    """What the files of a tree are, by which model, and in which form."""
    made, form = manifest.get("made"), manifest.get("form")
    return f"{made} by model {model_sha256(manifest)[:12]} as {form}"


def model_sha256(manifest: Mapping[str, Any]) -> str:
    """The sha256 of the model that made a tree, hexadecimal; "None" when the manifest lacks it."""
    return str(manifest.get("model", {}).get("sha256"))
