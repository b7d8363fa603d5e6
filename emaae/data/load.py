"""The splits of a run, from feature trees, buckets or the generated demo data."""

import importlib.metadata
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emaae.config import Config
from emaae.data import bucket, store
from emaae.data.bucket import Fetched, array_in
from emaae.data.features import (
    SPLITS,
    FeatureFile,
    check_features,
    find_features,
    read_bytes,
    read_times,
    stamp_of,
    times_beside,
)
from emaae.data.reading import FrameFormat, read_files
from emaae.data.split import Split, check_splits
from emaae.system.distributed import main_process_first
from emaae.system.errors import shortened
from emaae.system.progress import progress


def load_splits(config: Config, wanted: Sequence[str] = SPLITS) -> dict[str, Split]:
    """The splits of a run, by name, checked for overlap. Raises UserError.

    wanted: which of `SPLITS` to read; those without a directory are left out. A run without any
    directory gets the demo data: all splits, or only `test` with --eval_only.
    """
    form = FrameFormat(config.keep_loudness, config.data_dtype)
    if config.uses_demo:
        given = ("test",) if config.eval_only else SPLITS
        sources = {name: _demo(name, form) for name in given if name in wanted}
    else:
        roots = {name: getattr(config, f"{name}_dir") for name in wanted}
        sources = {name: _source(name, root, config, form) for name, root in roots.items() if root}
    with main_process_first():  # the main process packs the data and shows the progress
        splits = {name: store.load(source, config.cache_folder) for name, source in sources.items()}
    for name, split in splits.items():
        if split.skipped:
            names = list(split.skipped)
            warnings.warn(
                f"{name}: left out {len(names)} of {len(split) + len(names)} files, which are "
                f"broken: {shortened(names)} ({split.skipped[names[0]]})",
                stacklevel=2,
            )
    check_splits(splits)
    return splits


class Listing(NamedTuple):
    """The feature files of a tree, or under a prefix of a bucket, before any is read.

    label: the root of the tree, or the address of the prefix. location: identifies the place, not
    its content. files: sorted by identity. fetch: returns the content of a file, for
    `features_in`; several threads may call it. read_times: returns the content of its times file,
    None without one. times_stamp: differs after a change of the times file.
    """

    label: str
    location: tuple
    files: list[FeatureFile]
    fetch: Callable[[FeatureFile], Fetched]
    read_times: Callable[[FeatureFile], np.ndarray | None]
    times_stamp: Callable[[FeatureFile], Any]


def list_source(root: str, recursive: bool, in_bucket: str | None = None) -> Listing:
    """The features below a directory, or below a prefix of a bucket. Raises UserError."""
    if in_bucket:
        return _list_bucket(in_bucket, root, recursive)
    return Listing(
        label=root,
        location=("tree", os.path.realpath(root), recursive),
        files=find_features(root, recursive),
        fetch=lambda file: Fetched(file.path, read_bytes(file.path, file.stamp), {}),
        read_times=lambda file: read_times(file.path),
        times_stamp=lambda file: stamp_of(times_beside(file.path)),
    )


def _list_bucket(name: str, prefix: str, recursive: bool) -> Listing:
    handle, label = bucket.open_bucket(name), f"s3://{name}/{prefix.strip('/')}"
    files, stamps = bucket.list_features(handle, prefix, recursive)

    def read_times(file: FeatureFile) -> np.ndarray | None:
        key = times_beside(file.path)
        return array_in(bucket.fetch(handle, key), "times") if key in stamps else None

    return Listing(
        label=label,
        location=("bucket", bucket.endpoint(), label, recursive),
        files=files,
        fetch=lambda file: bucket.fetch(handle, file.path, str(file.stamp[1])),
        read_times=read_times,
        times_stamp=lambda file: stamps.get(times_beside(file.path)),
    )


def features_in(fetched: Fetched) -> np.ndarray:
    """The features (T, 14) float32 in a file or an object, checked. Raises BadFile."""
    return check_features(array_in(fetched), fetched.where)


def _source(name: str, root: str, config: Config, form: FrameFormat) -> store.Source:
    listing = list_source(root, config.recursive, config.bucket)
    broken: dict[str, str] | None = {} if config.on_bad_file == "skip" else None

    def named(file: FeatureFile, fetched: Fetched) -> tuple[str, np.ndarray]:
        return file.identity, features_in(fetched)

    def read_all() -> Iterator[tuple[str, np.ndarray]]:
        utterances = read_files(listing.files, listing.fetch, named, broken)
        return progress(utterances, f"reading {name}", total=len(listing.files), unit="utterances")

    state = store.hash_key("\n".join(f"{name}\0{stamp}" for name, _, stamp in listing.files))
    return store.Source(listing.label, listing.location, state, form, read_all, broken)


def _demo(name: str, form: FrameFormat) -> store.Source:
    def generate_all() -> Iterator[tuple[str, np.ndarray]]:
        # Imported here because scipy is slow to import and not needed otherwise.
        from emaae.data.demo import generate

        return ((one.name, one.features) for one in generate(name))

    # The key contains the source text of the generator: a version number might not be updated.
    modules = ("demo.py", "phones.py", "synthesis.py")
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in modules]
    state = store.hash_key(texts, np.__version__, importlib.metadata.version("scipy"))
    return store.Source(f"the demo's {name} split", ("demo", name), state, form, generate_all)
