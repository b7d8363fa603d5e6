"""Feature trees: one .npz per utterance, as the extractor writes them."""

import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from emaae.data.npz import MAX_BYTES, load_npz
from emaae.system.errors import BadFile, UserError
from emaae.system.files import check_folder, is_data, regular_file

# The parts of a corpus that a run reads.
SPLITS = ("train", "val", "test")
# Tongue dorsum, body and tip, lower incisor, upper and lower lip.
ARTICULATORS = tuple(f"{of}{axis}" for of in ("TD", "TB", "TT", "LI", "UL", "LL") for axis in "XY")
# Columns of a feature file. Articulators: z-scores of the extractor's template speaker (X grows
# backwards, Y upwards); loudness: dimensionless, >= 0; pitch: Hz.
CHANNELS = (*ARTICULATORS, "loudness", "pitch")
LOUDNESS_COLUMN = CHANNELS.index("loudness")
# The extractor computes a frame from a window of 400 samples at 16 kHz, every 320 samples.
SAMPLE_RATE_HZ, WINDOW_SAMPLES, HOP_SAMPLES = 16_000, 400, 320
FRAME_RATE_HZ = SAMPLE_RATE_HZ // HOP_SAMPLES


class FeatureFile(NamedTuple):
    """A file, or an object in a bucket, that holds the features of one utterance.

    identity: the name of the utterance. path: of the file, or the key of the object. stamp: size,
    and time of the last change (ns) or ETag; it differs after a change.
    """

    identity: str
    path: str
    stamp: tuple[int, int | str]


def find_features(root: str | Path, recursive: bool) -> list[FeatureFile]:
    """The feature files of a tree, sorted by identity; their stamp is (bytes, mtime in ns).

    The identity is the path relative to the root without `.npz` (in any case); the file name alone
    need not be unique. Left out are files `*_times.npz`, files that are not `.npz`, and paths that
    `is_data` rejects. A dangling link is listed; reading it fails. Raises UserError.
    """
    root = str(Path(root))
    check_folder(root, root, ".npz feature files")
    found = [
        FeatureFile(without_npz(name), path, stamp_of(path))
        for name, path in files_below(root, recursive, _is_features)
    ]
    if not found:
        hint = "expected NAME.npz beside NAME_times.npz"
        if not recursive and any(files_below(root, True, _is_features)):
            hint = "there are some in its sub-directories: add --recursive"
        raise UserError(f"{root} holds no .npz feature files: {hint}")
    return sort_distinct(found)


def stamp_of(path: str) -> tuple[int, int]:
    """Size, and time of the last change in ns; zeros for a missing file or a dangling link."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def sort_distinct(files: list[FeatureFile]) -> list[FeatureFile]:
    """Files sorted by identity. Raises UserError when two have the same identity."""
    files = sorted(files)
    for one, next_one in itertools.pairwise(files):
        if one.identity == next_one.identity:
            raise UserError(
                f"{one.path} and {next_one.path} would be the same utterance, {one.identity}: "
                "rename or remove one"
            )
    return files


def files_below(
    root: str, recursive: bool, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """The files of a tree that `is_data` and `wanted(name)` accept: relative path, and path.

    Follows links; reads each folder once, also when links form a loop. Raises UserError for a
    folder that cannot be listed.
    """
    start = len(os.path.join(root, ""))
    seen = set()
    for folder, folders, names in os.walk(root, onerror=_cannot_list, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # reached by a link again
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(filter(is_data, folders)) if recursive else []
        below = os.path.join(folder, "")
        for name in names:
            if wanted(name) and is_data(name):
                yield below[start:] + name, below + name


def _cannot_list(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from None


def _is_features(name: str) -> bool:
    name = name.lower()
    return name.endswith(".npz") and not name.endswith("_times.npz")


def without_npz(path: str) -> str:
    """The path without a final `.npz` (in any case)."""
    return path[: -len(".npz")] if path.lower().endswith(".npz") else path


def times_beside(path: str) -> str:
    """The path (or key) of the times that belong to the features at a path (or key)."""
    stem = without_npz(path)
    return f"{stem}_times{path[len(stem) :]}"


def check_identity(identity: str, where: str) -> None:
    """Raise BadFile for an identity with `..` or empty parts, or with control characters.

    Names in a bucket are arbitrary, and files such as reconstructions are named by them.
    """
    if not all(part.strip(".") for part in identity.split("/")) or not identity.isprintable():
        raise BadFile(
            f"{where}: the name {identity!r} must have no control characters and no empty, `.` or "
            "`..` parts, since output files get this name; rename it"
        )


def read_bytes(path: str | Path, stamp: tuple[int, int | str] | None = None) -> bytes:
    """The content of a feature file. Raises BadFile.

    stamp: of the file when it was listed; raises UserError if the file has changed since then.
    """
    with regular_file(path, MAX_BYTES) as file:
        status = os.fstat(file.fileno())
        if stamp is not None and stamp != (status.st_size, status.st_mtime_ns):
            raise UserError(f"{path} has changed since it was listed: start again")
        return file.read()


def read_npz(path: str | Path, key: str = "features") -> np.ndarray:
    """The array `key` of one .npz, or its only 2-D array. Raises BadFile."""
    return load_npz(io.BytesIO(read_bytes(path)), str(path), key)


def read_features(path: str | Path) -> np.ndarray:
    """The feature matrix (T, 14) float32 of one file, checked. Raises BadFile."""
    return check_features(read_npz(path), str(path))


def read_times(path: str | Path) -> np.ndarray | None:
    """The times that belong to the features at `path`; None without a times file. BadFile."""
    times_path = times_beside(str(path))
    return read_npz(times_path, "times") if os.path.exists(times_path) else None


def frames_of(n_samples: float) -> float:
    """Number of frames in n_samples of audio; its fraction is the rest that gives no frame."""
    return (n_samples - WINDOW_SAMPLES) / HOP_SAMPLES + 1


def frame_centres(n_frames: int) -> np.ndarray:
    """The centre of the window of each frame (n_frames,), in seconds."""
    return (HOP_SAMPLES * np.arange(n_frames) + WINDOW_SAMPLES / 2) / SAMPLE_RATE_HZ


def frame_times(n_frames: int, found: np.ndarray | None = None) -> np.ndarray:
    """Start and end of each frame in seconds, (n_frames, 2), both strictly increasing.

    found: the content of a times file. It is returned if it has the times of each frame. Otherwise
    (times of the whole utterance in every row, unusable or None) a frame is 20 ms around its
    centre.
    """
    if found is not None and found.shape == (n_frames, 2) and found.dtype.kind == "f":
        per_frame = np.isfinite(found).all() and (np.diff(found, axis=0) > 0).all()
        per_frame = per_frame and (found[:, 0] < found[:, 1]).all()
        if per_frame and (n_frames > 1 or found[0, 1] - found[0, 0] <= 2 / FRAME_RATE_HZ):
            return found
    centres, half = frame_centres(n_frames), 0.5 / FRAME_RATE_HZ
    return np.stack([centres - half, centres + half], 1).astype(np.float32)


def check_features(array: np.ndarray, where: str) -> np.ndarray:
    """The array as (T, 14) float32. Raises BadFile, which names `where`, unless it is features."""
    if array.ndim != 2 or array.shape[1] != len(CHANNELS):
        raise BadFile(
            f"{where} has shape {array.shape}: expected (T, {len(CHANNELS)}), the columns "
            f"{' '.join(CHANNELS)}"
        )
    if len(array) == 0:
        raise BadFile(f"{where} has no frames: expected at least one; remove the file")
    if array.dtype.kind not in "fiu":
        raise BadFile(f"{where} has dtype {array.dtype}: expected real numbers such as float32")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        frame, column = wrong[0]
        raise BadFile(
            f"{where} has {array[frame, column]} at frame {frame}, column {CHANNELS[column]} "
            f"({len(wrong)} such values): expected finite numbers; extract the file again "
            "or remove it"
        )
    return array
