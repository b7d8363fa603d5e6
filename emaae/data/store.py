"""One copy of the data for all runs of a machine: packed once, then memory-mapped.

CACHE/<source>/<state>/ holds `frames`, the utterances end to end as raw numbers, and `index.json`:
a line with a digest of what follows, then names, lengths, digests and moments. <source> is a digest
of where the data come from and of their form, <state> one of the files' sizes and times: what has
changed has another name. Nothing in it is ever unpickled.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from emaae.data.reading import FrameFormat, digest_of
from emaae.data.split import Split, Summary, offsets_of
from emaae.system.files import flush_to_disk, lock_folder

# Raised when what lies in a store changes, so that older stores are built again.
FORMAT = 3
BUILDING = "building-"  # the folder that a store is built in


class Source(NamedTuple):
    """The source of a split.

    label: what a person calls it. location: identifies it, whatever its content: a store of the
    same location is replaced. content_key: differs when the content does. form: of what is kept.
    read: identity and features (T, 14) of all utterances, in their order.
    broken: which files were left out when it was read last, and why; None when a broken file ends
    the reading.
    """

    label: str
    location: tuple[Any, ...]
    content_key: str
    form: FrameFormat
    read: Callable[[], Iterator[tuple[str, np.ndarray]]]
    broken: dict[str, str] | None = None


def load(source: Source, cache: Path | None) -> Split:
    """The split of a source, mapped from its store below `cache`, which is built if it is missing.

    Without a cache, or when it cannot be written (a warning), it is read into memory: the same
    names, numbers and digests. Raises UserError as the source does when it is read.
    """
    if cache is not None:
        columns = (source.form.channels, source.form.dtype)
        folder = cache / hash_key(source.location, columns) / hash_key(FORMAT, source.content_key)
        try:
            return _open(folder, source) or _open_or_build(folder, source)
        except BrokenPipeError:  # nobody reads what is printed
            raise
        except OSError as error:
            warnings.warn(
                f"{cache} cannot hold {source.label} ({error.strerror or error}), which is read "
                "into memory instead: free some space there, or name another folder by --cache_dir",
                stacklevel=2,
            )
    split = Split.from_utterances(source.read(), source.form)
    return replace(split, skipped=dict(source.broken or {}))


def hash_key(*parts: Any) -> str:
    """A name for a folder that differs when any of the parts does."""
    return digest_of(json.dumps(parts).encode())


def _open_or_build(folder: Path, source: Source) -> Split:
    """The split in `folder`, which is built there unless another process has just done it."""
    place = folder.parent
    for path in (place.parent, place):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = lock_folder(place, f"waiting for another process that packs {source.label}")
    if lock is None:
        raise OSError("no file can be locked there")
    with lock:
        if split := _open(folder, source):
            return split
        for unfinished in place.glob(f"{BUILDING}*"):
            shutil.rmtree(unfinished)  # left by a process that was killed
        with tempfile.TemporaryDirectory(prefix=BUILDING, dir=place) as building:
            _build(Path(building), source)
            with contextlib.suppress(FileNotFoundError):  # a broken one that others may have mapped
                folder.rename(place / f"{folder.name}-{os.getpid()}")
            os.rename(building, folder)
        instead = ", in place of what it was before" if _remove_others(folder) else ""
        built = _open(folder, source)
        assert built is not None
        size = f"{built.frames.nbytes / 1e6:.1f} MB"
        print(f"packed {source.label}: {size} in {place.parent}{instead}", flush=True)
        return built


def _build(folder: Path, source: Source) -> None:
    """Write frames and index."""
    names, lengths = [], []
    with open(folder / "frames", "wb") as file:
        for name, features in source.read():
            frames = source.form.frames(name, features)
            names.append(name)
            lengths.append(len(frames))
            file.write(frames.data)
        flush_to_disk(file)  # content only: a folder that a power cut takes back is built again
    known = _map(folder, source, names, lengths).summary
    index = {
        "where": source.label,
        "names": names,
        "lengths": lengths,
        "digests": known.digests,
        "mean": known.mean.tolist(),
        "sd": known.sd.tolist(),
        "skipped": source.broken or {},
    }
    text = json.dumps(index, allow_nan=False)
    with open(folder / "index.json", "w", encoding="ascii") as file:
        file.write(f"{hash_key(text)}\n{text}")
        flush_to_disk(file)


def _open(folder: Path, source: Source) -> Split | None:
    """The split in `folder`; None where it is missing, broken, or lacks files that are wanted."""
    try:
        digest, _, text = (folder / "index.json").read_text(encoding="latin1").partition("\n")
        index = json.loads(text) if digest == hash_key(text) else None
        if index is None or (index["skipped"] and source.broken is None):
            return None
        known = Summary(tuple(index["digests"]), np.array(index["mean"]), np.array(index["sd"]))
        split = _map(folder, source, index["names"], index["lengths"])
    except (FileNotFoundError, BlockingIOError, ValueError):
        # Missing, being removed by another process, or cut short.
        return None
    return replace(split, precomputed=known, skipped=index["skipped"])


def _map(folder: Path, source: Source, names: Sequence[str], lengths: Sequence[int]) -> Split:
    """A split with its frames in pages that all processes share; writing to one copies it first.

    The file is locked against removal as long as it is mapped: a network disk would take it away
    from a run on another machine. Raises ValueError when it is too short.
    """
    channels = source.form.channels
    with open(folder / "frames", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        mapped = np.memmap(file, source.form.dtype, "c", shape=(sum(lengths), len(channels)))
    frames = torch.from_numpy(np.asarray(mapped))
    return Split(tuple(names), frames, offsets_of(lengths), channels)


def _remove_others(kept: Path) -> bool:
    """Remove the stores beside `kept` that no process has mapped; returns whether it did."""
    removed = False
    for other in set(kept.parent.iterdir()) - {kept}:
        with contextlib.suppress(OSError), open(other / "frames", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
            removed = True
    return removed
