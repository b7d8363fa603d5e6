"""Reading the utterances of a split, some files at a time."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from emaae.data.features import CHANNELS, LOUDNESS_COLUMN, FeatureFile, check_identity
from emaae.system.errors import BadFile, UserError

# Threads suffice: disks and buckets are waited for, and decompressing needs no interpreter lock.
# Processes took longer, since their frames have to be copied.
THREADS = 8
# Files that are read before they are asked for, all in memory: an hour of features has 10 MB.
FILES_AHEAD = 16

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
    read: Callable[[FeatureFile], T],
    broken: dict[str, str] | None = None,
    n_others: int = 0,
) -> Iterator[T]:
    """Results of `read` for each file, in the order of the files; several threads call it.

    broken: a dict that receives the error messages of broken files by identity; these files are
    skipped. Without it the first broken file raises BadFile. Raises UserError for other errors, and
    when all files are broken. n_others: number of good files that need not be read.
    """
    if broken is not None:
        broken.clear()
    for future, file in zip(_in_threads(files, read), files):
        try:
            result = future.result()
        except BadFile as error:
            if broken is None:
                raise BadFile(f"{error} (or leave such files out: --on_bad_file skip)") from None
            broken[file.identity] = str(error)
        else:
            yield result
    if broken and len(broken) == len(files) and not n_others:
        raise UserError(f"all {len(files)} files are broken: {next(iter(broken.values()))}")


def _in_threads(
    files: Sequence[FeatureFile], read: Callable[[FeatureFile], T]
) -> Iterator[Future[T]]:
    """What `read` returns or raises for each file, in order."""

    def checked(file: FeatureFile) -> T:
        check_identity(file.identity, file.path)
        return read(file)

    pool = ThreadPoolExecutor(THREADS)
    ahead: deque[Future[T]] = deque()
    try:
        for file in files:
            ahead.append(pool.submit(checked, file))
            if len(ahead) > FILES_AHEAD:
                yield ahead.popleft()
        yield from ahead
    finally:
        pool.shutdown(cancel_futures=True)
