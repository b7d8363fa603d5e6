"""One copy of the data for all runs of a machine: packed once, then memory-mapped.

CACHE/<source>/<state>/ holds `frames`, the utterances end to end as raw numbers, and `index.json`:
a line with a digest of what follows, then names, lengths, digests and moments. <source> is a digest
of where the data come from and of their form, <state> one of the files' sizes and times: what has
changed has another name. Nothing in it is ever unpickled.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from emaae.data.reading import Form, Utterance
from emaae.data.split import Known, Split, edges, moments

# Raised when what lies in a store changes, so that older stores are built again.
FORMAT = 3
BUILDING = "building-"  # the folder that a store is built in


@dataclass(frozen=True)
class Source:
    """Where a split comes from.

    where: what a person calls it. place: what stays when its content changes, and its store is
    replaced. state: what changes with it. read: all utterances, in their order. broken: which files
    were left out when it was read last, and why; None when a broken file ends the reading.
    """

    where: str
    place: tuple[Any, ...]
    state: str
    form: Form
    read: Callable[[], Iterator[Utterance]]
    broken: dict[str, str] | None = None


def load(source: Source, cache: Path | None, verify: bool = False) -> Split:
    """The split of a source, mapped from its store below `cache`, which is built where it lacks.

    Without a cache, or when it cannot be written (a warning), it is read into memory: the same
    names, numbers and digests. `verify` reads the source too and compares. Raises UserError as the
    source does when it is read.
    """
    if cache is None:
        return _in_memory(source)
    folder = cache / key(source.place, source.form) / key(FORMAT, source.state)
    try:
        split = None if verify else _open_if_whole(folder, source)
        return _packed(folder, source, verify) if split is None else split
    except OSError as error:
        warnings.warn(
            f"{cache} cannot hold {source.where} ({error.strerror or error}), which is read into "
            "memory instead: free some space there, or name another folder by --cache_dir",
            stacklevel=2,
        )
    return _in_memory(source)


def _in_memory(source: Source) -> Split:
    split = Split.of(source.form, source.read())
    return replace(split, skipped=dict(source.broken or {}))


def key(*parts: Any) -> str:
    """A name for a folder that is another one when any of the parts is."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _packed(folder: Path, source: Source, verify: bool) -> Split:
    """The split in `folder`, which is built there unless another process has just done it."""
    shelf = folder.parent
    shelf.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shelf.mkdir(mode=0o700, exist_ok=True)
    with _alone(shelf, source.where):
        try:
            split = _open(folder, source)
            wrong = _difference(split, source) if verify and split is not None else None
        except _Broken as error:
            split, wrong = None, str(error)
        if split is not None and not wrong:
            if verify:
                print(f"the store of {source.where} holds what was read again", flush=True)
            return split
        if wrong:
            print(f"the store of {source.where} is built again: {wrong}", flush=True)
        split = None  # which would keep it from being removed
        with contextlib.suppress(FileNotFoundError):
            folder.rename(shelf / f"{folder.name}-{os.getpid()}")  # others may have it mapped
        for leavings in shelf.glob(f"{BUILDING}*"):
            shutil.rmtree(leavings)  # of a process that was killed
        building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=shelf))
        try:
            n_bytes = _build(building, source)
            os.rename(building, folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        replaced = _remove_others(folder)
        print(
            f"packed {source.where}: {n_bytes / 1e6:.1f} MB in {shelf.parent}"
            + (", in place of what it was before" if replaced else ""),
            flush=True,
        )
        built = _open(folder, source)
        assert built is not None
        return built


@contextlib.contextmanager
def _alone(shelf: Path, where: str) -> Iterator[None]:
    """Only one process of the machine at a time; the lock ends with it however it ends."""
    with open(shelf / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that packs {where}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, source: Source) -> int:
    """Write frames and index; returns the bytes of the frames."""
    names, lengths, digests = [], [], []
    with open(folder / "frames", "wb") as file:
        for name, frames, content in source.read():
            names.append(name)
            lengths.append(len(frames))
            digests.append(content)
            file.write(frames.data)
        _flush(file)
    frames = _map(folder / "frames", source.form, sum(lengths))
    mean, sd = moments(frames)
    index = {
        "where": source.where,
        "names": names,
        "lengths": lengths,
        "digests": digests,
        "mean": mean.tolist(),
        "sd": sd.tolist(),
        "skipped": source.broken or {},
    }
    text = json.dumps(index, allow_nan=False)
    with open(folder / "index.json", "w", encoding="ascii") as file:
        file.write(f"{key(text)}\n{text}")
        _flush(file)
    return frames.nbytes


def _flush(file: IO[Any]) -> None:
    # Content only: a folder that a power cut takes back is built again.
    file.flush()
    os.fsync(file.fileno())


class _Broken(OSError):
    """A store that says what cannot be."""


def _open_if_whole(folder: Path, source: Source) -> Split | None:
    with contextlib.suppress(_Broken, BlockingIOError):  # locked by who removes it
        return _open(folder, source)
    return None


def _open(folder: Path, source: Source) -> Split | None:
    """The split in `folder`; None when there is none. Raises _Broken for what was changed."""
    try:
        digest, _, text = (folder / "index.json").read_text(encoding="latin1").partition("\n")
    except FileNotFoundError:
        return None
    if digest != key(text):
        raise _Broken("its index is not as it was written")
    index = json.loads(text)
    skipped, form = index["skipped"], source.form
    if skipped and source.broken is None:
        raise _Broken(f"{len(skipped)} broken files were left out of it")
    try:
        frames = _map(folder / "frames", form, sum(index["lengths"]))
    except FileNotFoundError:
        raise _Broken("its frames are missing") from None
    known = Known(tuple(index["digests"]), np.array(index["mean"]), np.array(index["sd"]))
    names = tuple(index["names"])
    ends = edges(index["lengths"])
    return Split(names, torch.from_numpy(frames), ends, form.channels, known, skipped)


def _map(path: Path, form: Form, n_frames: int) -> np.ndarray:
    """Frames (N, D) in the pages that all processes share; who writes gets a page of its own.

    As long as they are mapped, the file is locked against removal: a disk over a network would take
    it away from under a run on another machine.
    """
    shape = (n_frames, len(form.channels))
    with open(path, "rb") as file:
        expected = n_frames * len(form.channels) * np.dtype(form.dtype).itemsize
        found = os.fstat(file.fileno()).st_size
        if found != expected:
            raise _Broken(f"its frames should fill {expected} bytes and fill {found}")
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return np.asarray(np.memmap(file, form.dtype, "c", shape=shape))


def _remove_others(kept: Path) -> int:
    """Remove the stores beside `kept` that no process has mapped; returns how many they were."""
    removed = 0
    for other in kept.parent.iterdir():
        if other == kept or not other.is_dir():
            continue
        with contextlib.suppress(OSError), open(other / "frames", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
            removed += 1
    return removed


def _difference(split: Split, source: Source) -> str | None:
    """Read the source and say in which utterance a store differs from it, if it does."""
    frames, n_read = split.frames.numpy(), 0
    for name, read, content in source.read():
        begin, end = split.offsets[n_read : n_read + 2] if n_read < len(split) else (0, 0)
        as_stored = (split.names[n_read : n_read + 1], split.digests[n_read : n_read + 1])
        if as_stored != ((name,), (content,)) or frames[begin:end].tobytes() != read.tobytes():
            return f"{name} differs from what it was read from"
        n_read += 1
    if n_read < len(split):
        return f"{split.names[n_read]} is not there any more"
    return None
