"""Reading the utterances of a split, one by one or by several processes."""

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

# Fewer files are read by one process before several would have begun.
FILES_FOR_PROCESSES = 500
# More processes would wait for the one that puts their frames together.
MAX_PROCESSES = 8
# Files that a process reads before it hands them over: 32 of LibriSpeech's fill a megabyte.
FILES_AT_ONCE = 32

T = TypeVar("T")


class FrameFormat(NamedTuple):
    """How frames are kept: with or without loudness, and as float32 or float16."""

    keep_loudness: bool = False
    dtype: str = "float32"

    @property
    def columns(self) -> list[int]:
        """The columns of a feature file that are kept."""
        return [i for i in range(len(CHANNELS)) if self.keep_loudness or i != LOUDNESS_COLUMN]

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of these columns."""
        return tuple(CHANNELS[i] for i in self.columns)

    def frames(self, name: str, features: np.ndarray) -> np.ndarray:
        """The features (T, 14) of an utterance as (T, D). Raises UserError beyond float16."""
        kept, what = features[:, self.columns], f"{name} has values up to"
        return cast_frames(kept, self.dtype, what, "--data_dtype float32")


def cast_frames(array: np.ndarray, dtype: str, what: str, way_out: str) -> np.ndarray:
    """The array in another dtype and in C order. Raises UserError beyond float16's range.

    what: the beginning of the message; the largest value comes next. way_out: the flags to use.
    """
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, dtype=dtype)
    if dtype == "float16" and not np.isfinite(found).all():
        most = np.abs(array).max()
        raise UserError(f"{what} {most:g}, and float16 ends at 65504: use {way_out}")
    return found


def digest_of(content: bytes | memoryview) -> str:
    """A digest of bytes, such as those of an array in C order, `array.data`."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_files(
    files: Sequence[FeatureFile],
    read: Callable[[FeatureFile], T],
    broken: dict[str, str] | None = None,
) -> Iterator[T]:
    """What `read` makes of each of the files, in their order, in one or several processes.

    broken: gets the identities of broken files and why they are; without it, the first file, in
    their order, that raises an error does so here. Raises UserError when all are broken.
    """
    if broken is not None:
        broken.clear()
    if len(files) < FILES_FOR_PROCESSES:
        found: Iterator[T | UserError] = (_read(file, read) for file in files)
    else:
        found = _in_processes(files, read)
    for one, file in zip(found, files):
        if not isinstance(one, UserError):
            yield one
        elif not isinstance(one, BadFile):
            raise one
        elif broken is None:
            raise BadFile(f"{one} (or leave such files out: --on_bad_file skip)")
        else:
            broken[file.identity] = str(one)
    if broken and len(broken) == len(files):
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
    """Read the files, in their order; one that cannot be read gives its error.

    Process i of n reads the parts i, i + n, ... and writes to a pipe of its own: it waits when it
    is far ahead, and ends by itself when its parent is gone, even after a SIGKILL.
    """
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    n = min(max(2, n_cpus()), MAX_PROCESSES)
    # Forked, as torch's own loaders are: a new interpreter would import torch before it could read.
    fork = multiprocessing.get_context("fork")
    readers: list[Connection] = []
    processes = []

    def work(mine: Sequence[Sequence[FeatureFile]], writer: Connection) -> None:
        for reader in readers:
            reader.close()  # the parent's end: a pipe breaks once no process could read it
        # Signals reach all processes of the group; workers ignore them and the parent ends them.
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
            writer.close()
        for i in range(len(parts)):
            yield from readers[i % n].recv()
    except (EOFError, OSError):  # it was killed between two messages, or within one
        raise UserError(
            "a process that reads features ended early: if nothing is said above, it was "
            "killed, probably for lack of memory; free some and start again"
        ) from None
    finally:
        for process, reader in zip(processes, readers):
            process.kill()
            process.join()
            reader.close()
