"""How is a tree of feature files read? One .npz per utterance, as the extractor writes them."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

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


def find_features(root: str | Path, recursive: bool) -> list[tuple[str, Path]]:
    """Utterances of a tree: (identity, file), sorted by identity.

    The identity is the path relative to the root without `.npz`; nothing shorter is unique. Files
    `*_times.npz` and everything that is not `.npz` are left out. Raises UserError.
    """
    root = Path(root)
    if not os.path.isdir(root):
        what = "is not a directory" if os.path.exists(root) else "does not exist (or is hidden)"
        raise UserError(f"{root} {what}: expected a directory of .npz feature files")
    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unlistable):
        # A link may lead back up: each real directory is entered once.
        real = os.path.realpath(folder)
        if real in seen or not recursive:
            folders.clear()
        if real in seen:
            continue
        seen.add(real)
        folders.sort()
        for name in files:
            if _is_features(name):
                path = Path(folder, name)
                found.append((path.relative_to(root).with_suffix("").as_posix(), path))
    if not found:
        below = (name for _, _, files in os.walk(root) for name in files)
        hint = "expected NAME.npz beside NAME_times.npz"
        if not recursive and any(_is_features(name) for name in below):
            hint = "there are some in its sub-directories: add --recursive"
        raise UserError(f"{root} holds no .npz feature files: {hint}")
    return sorted(found)


def _is_features(name: str) -> bool:
    # Names with a leading dot are left behind by file managers.
    return name.endswith(".npz") and not name.endswith("_times.npz") and name[0] != "."


def _unlistable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}")


def read_features(path: str | Path) -> np.ndarray:
    """The feature matrix (T, 14) float32 of one file, checked. Raises UserError."""
    try:
        with open(path, "rb") as file:
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
