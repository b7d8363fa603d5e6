"""One copy of the data for all runs on a machine: packed once, then memory-mapped.

A store is a folder CACHE/<source>/<state>/ with two files. `frames` holds the concatenated
utterances as raw numbers. `index.json` holds a digest of its own text in the first line, then
names, lengths, digests and moments. <source> is a digest of the location and the format of the
data, <state> a digest of the sizes and times of the files, so changed data get another store.
Nothing is unpickled.
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

# Version of the format; increase it after a change, so that older stores are built again.
FORMAT = 3
BUILDING = "building-"  # prefix of the folder in which a store is built


class Source(NamedTuple):
    """The source of a split.

    label: a name for messages. location: identifies the source, not its content; a new store
    replaces an older one of the same location and format. content_key: differs when the content
    differs. form: format of the stored frames. read: yields identity and features (T, 14) of all
    utterances, in order. broken: identity -> error of the files that the last `read` left out; None
    if a broken file is an error.
    """

    label: str
    location: tuple[Any, ...]
    content_key: str
    form: FrameFormat
    read: Callable[[], Iterator[tuple[str, np.ndarray]]]
    broken: dict[str, str] | None = None


def load(source: Source, cache: Path | None) -> Split:
    """The split of a source, memory-mapped from its store below `cache`, built if it is missing.

    Without a cache, or with a warning if the cache cannot be written, the split is read into
    memory, with the same names, numbers and digests. Raises UserError as `source.read`.
    """
    if cache is not None:
        columns = (source.form.channels, source.form.dtype)
        folder = cache / hash_key(source.location, columns) / hash_key(FORMAT, source.content_key)
        try:
            return _open(folder, source) or _open_or_build(folder, source)
        except BrokenPipeError:  # from printing, not from the cache
            raise
        except OSError as error:
            warnings.warn(
                f"{cache} cannot hold {source.label} ({error.strerror or error}), which is read "
                "into memory instead: free space there, or set another folder with --cache_dir",
                stacklevel=2,
            )
    split = Split.from_utterances(source.read(), source.form)
    return replace(split, skipped=dict(source.broken or {}))


def hash_key(*parts: Any) -> str:
    """A folder name: a digest of the parts."""
    return digest_of(json.dumps(parts).encode())


def _open_or_build(folder: Path, source: Source) -> Split:
    """The split in `folder`, built now unless another process has just built it. OSError."""
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
            with contextlib.suppress(FileNotFoundError):  # a broken store, perhaps mapped by others
                folder.rename(place / f"{folder.name}-{os.getpid()}")
            os.rename(building, folder)
        instead = ", replacing an older copy" if _remove_others(folder) else ""
        built = _open(folder, source)
        assert built is not None
        size = f"{built.frames.nbytes / 1e6:.1f} MB"
        print(f"packed {source.label}: {size} in {place.parent}{instead}", flush=True)
        return built


def _build(folder: Path, source: Source) -> None:
    """Write the files `frames` and `index.json`."""
    names, lengths = [], []
    with open(folder / "frames", "wb") as file:
        for name, features in source.read():
            frames = source.form.frames(name, features)
            names.append(name)
            lengths.append(len(frames))
            file.write(frames.data)
        flush_to_disk(file)  # not the folder: if a power cut loses it, it is built again
    summary = _map(folder, source, names, lengths).summary
    index = {
        "where": source.label,
        "names": names,
        "lengths": lengths,
        "digests": summary.digests,
        "mean": summary.mean.tolist(),
        "sd": summary.sd.tolist(),
        "skipped": source.broken or {},
    }
    text = json.dumps(index, allow_nan=False)
    with open(folder / "index.json", "w", encoding="ascii") as file:
        file.write(f"{hash_key(text)}\n{text}")
        flush_to_disk(file)


def _open(folder: Path, source: Source) -> Split | None:
    """The split in `folder`; None if it is missing, broken, or lacks files that `source` needs."""
    try:
        digest, _, text = (folder / "index.json").read_text(encoding="latin1").partition("\n")
        index = json.loads(text) if digest == hash_key(text) else None
        if index is None or (index["skipped"] and source.broken is None):
            return None
        summary = Summary(tuple(index["digests"]), np.array(index["mean"]), np.array(index["sd"]))
        split = _map(folder, source, index["names"], index["lengths"])
    except (FileNotFoundError, BlockingIOError, ValueError):
        # Missing, being removed by another process, or truncated.
        return None
    return replace(split, precomputed=summary, skipped=index["skipped"])


def _map(folder: Path, source: Source, names: Sequence[str], lengths: Sequence[int]) -> Split:
    """A split whose frames are memory-mapped: processes share the pages, and a write copies a page.

    A shared lock on the file prevents its removal while it is mapped; on a network disk a removal
    would break a run on another machine. Raises ValueError if the file is too short.
    """
    channels = source.form.channels
    with open(folder / "frames", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        mapped = np.memmap(file, source.form.dtype, "c", shape=(sum(lengths), len(channels)))
    frames = torch.from_numpy(np.asarray(mapped))
    return Split(tuple(names), frames, offsets_of(lengths), channels)


def _remove_others(kept: Path) -> bool:
    """Remove other stores beside `kept`, except mapped ones; returns whether any was removed."""
    removed = False
    for other in set(kept.parent.iterdir()) - {kept}:
        with contextlib.suppress(OSError), open(other / "frames", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
            removed = True
    return removed
