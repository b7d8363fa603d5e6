"""Reading the utterances of a split, one by one or by several processes."""

import atexit
import contextlib
import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

import numpy as np

from emaae.data.features import CHANNELS, LOUDNESS_COLUMN, FeatureFile, check_identity
from emaae.system.devices import n_cpus
from emaae.system.errors import BadFile, UserError
from emaae.system.signals import SIGNALS

# One process reads fewer files than these before several processes have started.
FILES_FOR_PROCESSES = 500
# More processes would only wait for the main process, which collects the frames.
MAX_PROCESSES = 8
# Files that a process reads before it sends them: 32 of LibriSpeech's have a megabyte.
FILES_AT_ONCE = 32

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
    """Results of `read` for each file, in the order of the files, by one or several processes.

    broken: a dict that receives the error messages of broken files by identity; these files are
    skipped. Without it the first broken file raises BadFile. Raises UserError for other errors, and
    when all files are broken. n_others: number of good files that need not be read.
    """
    if broken is not None:
        broken.clear()
    if len(files) < FILES_FOR_PROCESSES:
        results: Iterator[T | UserError] = (_read(file, read) for file in files)
    else:
        results = _in_processes(files, read)
    for result, file in zip(results, files):
        if not isinstance(result, UserError):
            yield result
        elif not isinstance(result, BadFile):
            raise result
        elif broken is None:
            raise BadFile(f"{result} (or leave such files out: --on_bad_file skip)")
        else:
            broken[file.identity] = str(result)
    if broken and len(broken) == len(files) and not n_others:
        raise UserError(f"all {len(files)} files are broken: {next(iter(broken.values()))}")


def _read(file: FeatureFile, read: Callable[[FeatureFile], T]) -> T | UserError:
    try:
        check_identity(file.identity, file.path)
        return read(file)
    except UserError as error:
        return error


def _in_processes(
    files: Sequence[FeatureFile], read: Callable[[FeatureFile], T]
) -> Iterator[T | UserError]:
    """Results of `read`, or its UserErrors, for each file in order.

    Process i of n reads the parts i, i + n, ... and sends them through its own pipe. It waits while
    the pipe is full, and ends by itself when the parent process ends, even by SIGKILL.
    """
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    n = min(max(2, n_cpus()), MAX_PROCESSES)
    # Forked, like torch's data loaders: a new interpreter would first import torch.
    fork = multiprocessing.get_context("fork")
    readers: list[Connection] = []
    processes = []

    def work(mine: Sequence[Sequence[FeatureFile]], writer: Connection) -> None:
        for reader in readers:
            reader.close()  # so that only the parent has it, and the pipe breaks when it ends
        # A signal reaches all processes of the group; workers ignore it, the parent ends them.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError):
            for part in mine:
                writer.send([_read(file, read) for file in part])

    try:
        for i in range(n):
            reader, writer = fork.Pipe(duplex=False)
            readers.append(reader)
            processes.append(fork.Process(target=work, args=(parts[i::n], writer), daemon=True))
            processes[-1].start()
            # If this generator is still open at exit, multiprocessing would wait for it for ever.
            atexit.register(processes[-1].kill)
            writer.close()
        for i in range(len(parts)):
            yield from readers[i % n].recv()
    except (EOFError, OSError):  # a process was killed between two messages, or within one
        raise UserError(
            "a process that reads features ended early: without an error above, it was killed, "
            "probably for lack of memory; free some memory and start again"
        ) from None
    finally:
        for process, reader in zip(processes, readers):
            process.kill()
            process.join()
            reader.close()
