"""How is a tree of feature files read? One .npz per utterance, as the extractor writes them."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from emaae.errors import UserError

# Tongue dorsum, body and tip, lower incisor, upper and lower lip.
ARTICULATORS = (
    *("TDX", "TDY", "TBX", "TBY", "TTX", "TTY"),
    *("LIX", "LIY", "ULX", "ULY", "LLX", "LLY"),
)
# Columns of a feature file. Articulators are z-scores of the extractor's template speaker (X grows
# backwards, Y upwards), loudness is dimensionless and >= 0, pitch is in Hz.
CHANNELS = (*ARTICULATORS, "loudness", "pitch")
LOUDNESS = CHANNELS.index("loudness")
FRAME_RATE_HZ = 50


class FeatureFile(NamedTuple):
    """A file or an object that holds the features of one utterance.

    identity: the utterance's. path: where it is read. stamp: changes when the file does.
    """

    identity: str
    path: str
    stamp: tuple[int, int | str]


def find_features(root: str | Path, recursive: bool) -> list[FeatureFile]:
    """Utterances of a tree, sorted by identity; their stamp is (bytes, ns of the last change).

    The identity is the path relative to the root without `.npz`; nothing shorter is unique. Files
    `*_times.npz` and everything that is not `.npz` are left out. Raises UserError.
    """
    root = str(Path(root))
    if not os.path.isdir(root):
        what = "is not a directory" if os.path.exists(root) else "does not exist (or is hidden)"
        raise UserError(f"{root} {what}: expected a directory of .npz feature files")
    found = sorted(_features_below(root, recursive))
    if not found:
        below = (name for _, _, files in os.walk(root) for name in files)
        hint = "expected NAME.npz beside NAME_times.npz"
        if not recursive and any(_is_features(name) for name in below):
            hint = "there are some in its sub-directories: add --recursive"
        raise UserError(f"{root} holds no .npz feature files: {hint}")
    return found


def _features_below(root: str, recursive: bool) -> Iterator[FeatureFile]:
    # Listing is most of what a second start of a large corpus does: hence no os.walk and no Path,
    # which would double it.
    waiting, seen = [""], set()
    while waiting:
        folder = waiting.pop()
        path = os.path.join(root, folder)
        try:
            real = os.stat(path)
            with os.scandir(path) as listing:
                entries = list(listing)
        except OSError as error:
            raise _unlistable(path, error) from None
        if (real.st_dev, real.st_ino) in seen:
            continue  # a link may lead back up: each real directory is entered once
        seen.add((real.st_dev, real.st_ino))
        folders = []
        for entry in entries:
            if _is_folder(entry):
                folders.append(entry.name)
            elif _is_features(entry.name):
                try:
                    now = entry.stat()
                except OSError as error:
                    raise _unlistable(entry.path, error) from None
                stamp = (now.st_size, now.st_mtime_ns)
                yield FeatureFile(folder + entry.name[: -len(".npz")], entry.path, stamp)
        if not recursive:
            return
        waiting += (f"{folder}{name}/" for name in sorted(folders, reverse=True))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_features(name: str) -> bool:
    # Names with a leading dot are left behind by file managers.
    return name.endswith(".npz") and not name.endswith("_times.npz") and name[0] != "."


def _unlistable(path: str, error: OSError) -> UserError:
    return UserError(f"{path} cannot be listed: {error.strerror}")


def read_features(path: str | Path, stamp: tuple[int, int] | None = None) -> np.ndarray:
    """The feature matrix (T, 14) float32 of one file, checked. Raises UserError.

    stamp: of the file when it was listed; a file that has changed since is refused.
    """
    try:
        with open(path, "rb") as file:
            now = os.fstat(file.fileno())
            if stamp is not None and stamp != (now.st_size, now.st_mtime_ns):
                raise UserError(f"{path} has changed since it was listed: start again")
            array = load_npz(file, str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return check_features(array, str(path))


def load_npz(file: BinaryIO, where: str) -> np.ndarray:
    """The array `features` of an .npz, or its only 2-D array. Never unpickles.

    `where` names the file in errors. Raises UserError.
    """
    with _errors_named(where):
        start = file.read(6)
        file.seek(0)
        if start and not start.startswith((b"PK", b"\x93NUMPY", b"\x80")):
            raise UserError(f"{where} is not an .npz (it begins {start!r}): extract it again")
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{where} is a bare array: expected an .npz with the key `features`")
        with archive:
            keys = ["features"] if "features" in archive.files else archive.files
            arrays = {key: archive[key] for key in keys}
    # What is not an array comes as bytes.
    arrays = {key: array for key, array in arrays.items() if isinstance(array, np.ndarray)}
    if "features" in arrays:
        return arrays["features"]
    matrices = [key for key, array in arrays.items() if array.ndim == 2]
    if len(matrices) == 1:
        return arrays[matrices[0]]
    raise UserError(
        f"{where} has no key `features` and {len(matrices)} 2-D arrays among its keys "
        f"({', '.join(arrays) or 'none'}): save the (T, 14) matrix under the key `features`"
    )


def check_features(array: np.ndarray, where: str) -> np.ndarray:
    """The array as (T, 14) float32, or a UserError that names `where` and what is wrong."""
    if array.ndim != 2 or array.shape[1] != len(CHANNELS):
        raise UserError(
            f"{where} has shape {array.shape}: expected (T, {len(CHANNELS)}), the columns "
            f"{' '.join(CHANNELS)}"
        )
    if len(array) == 0:
        raise UserError(f"{where} has no frames: expected at least one; remove the file")
    if array.dtype.kind not in "fiu":
        raise UserError(f"{where} has dtype {array.dtype}: expected real numbers such as float32")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        frame, column = wrong[0]
        raise UserError(
            f"{where} has {array[frame, column]} at frame {frame}, column {CHANNELS[column]} "
            f"({len(wrong)} such values): expected finite numbers; extract the file again "
            "or remove it"
        )
    return array


@contextlib.contextmanager
def _errors_named(where: str) -> Iterator[None]:
    """Broken archives fail in many ways; each becomes one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except EOFError:
        raise UserError(f"{where} is empty or truncated: copy or extract it again") from None
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise UserError(
                f"{where} holds pickled objects, which are never loaded: expected plain numbers, "
                "saved with np.savez(file, features=array)"
            ) from None
        raise UserError(f"{where} is not a readable .npz ({error}): extract it again") from None
    except MemoryError:
        raise UserError(
            f"{where} says that it holds more than fits into memory: extract it again"
        ) from None
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{where} is not a readable .npz ({reason}): extract it again") from None
