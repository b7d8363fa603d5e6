"""Reading the utterances of a split, some files at a time."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from emaae.data.features import CHANNELS, LOUDNESS_COLUMN, FeatureFile, check_identity
from emaae.system.errors import BadFile, UserError

# Threads wait for disks and buckets. All else, which needs the interpreter's lock, is done by the
# main thread: shared by threads it would take three times as long.
THREADS = 8
# Files that a thread fetches at a time; handing over each file by itself would take half as long
# again. Of LibriSpeech, 16 files have half a megabyte.
FILES_AT_ONCE = 16
# Larger files are handed over by themselves: an hour of features has 10 MB.
MANY_BYTES = 1 << 20

T = TypeVar("T")


class FrameFormat(NamedTuple):
    """The format of stored frames: with or without loudness, float32 or float16."""

    keep_loudness: bool = False
    dtype: str = "float32"

    @property
    def columns(self) -> list[int]:
        """The indices of the columns of a feature file that are stored."""
        return [i for i in range(len(CHANNELS)) if self.keep_loudness or i != LOUDNESS_COLUMN]

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the columns that are stored."""
        return tuple(CHANNELS[i] for i in self.columns)

    def frames(self, name: str, features: np.ndarray) -> np.ndarray:
        """The stored columns (T, D) of features (T, 14). Raises UserError as `cast_frames`."""
        kept, what = features[:, self.columns], f"{name} has values up to"
        return cast_frames(kept, self.dtype, what, "--data_dtype float32")


def cast_frames(array: np.ndarray, dtype: str, what: str, way_out: str) -> np.ndarray:
    """The array in another dtype and in C order. Raises UserError for values beyond float16.

    what: beginning of the message, before the largest value. way_out: flags that solve it.
    """
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=dtype)
    if dtype == "float16" and not np.isfinite(cast).all():
        largest = np.abs(array).max()
        raise UserError(f"{what} {largest:g}, and float16 ends at 65504: use {way_out}")
    return cast


def digest_of(content: bytes | memoryview) -> str:
    """A digest of bytes, such as those of an array in C order, `array.data`."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_files(
    files: Sequence[FeatureFile],
    fetch: Callable[[FeatureFile], Any],
    read: Callable[[FeatureFile, Any], T],
    broken: dict[str, str] | None = None,
    n_others: int = 0,
) -> Iterator[T]:
    """What `read` makes of each file, in the order of the files.

    fetch: gets the content of a file, ahead of `read` and in several threads. read: gets a file
    and its content. broken: a dict that receives the error messages of broken files by identity;
    these files are skipped. Without it the first broken file raises BadFile. Raises UserError for
    other errors, and when all files are broken. n_others: number of good files that need not be
    read.
    """
    for file, fetched in zip(files, _fetched(files, fetch)):
        try:
            check_identity(file.identity, file.path)
            if isinstance(fetched, UserError):
                raise fetched
            result = read(file, fetched)
        except BadFile as error:
            if broken is None:
                raise BadFile(f"{error} (or leave such files out: --on_bad_file skip)") from None
            broken[file.identity] = str(error)
        else:
            yield result
    if broken and len(broken) == len(files) and not n_others:
        raise UserError(f"all {len(files)} files are broken: {next(iter(broken.values()))}")


def _fetched(files: Sequence[FeatureFile], fetch: Callable[[FeatureFile], Any]) -> Iterator[Any]:
    """What `fetch` returns for each file, in order, or its UserError."""

    def fetch_each(part: Sequence[FeatureFile]) -> list[Any]:
        found = []
        for file in part:
            try:
                found.append(fetch(file))
            except UserError as error:
                found.append(error)
        return found

    at_once = 1 if any(file.stamp[0] > MANY_BYTES for file in files) else FILES_AT_ONCE
    pool = ThreadPoolExecutor(THREADS)
    ahead: deque[Future[list[Any]]] = deque()
    try:
        for i in range(0, len(files), at_once):
            ahead.append(pool.submit(fetch_each, files[i : i + at_once]))
            if len(ahead) > THREADS:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
