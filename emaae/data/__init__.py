"""Where do the frames come from? Feature trees, buckets and the generated demo data."""

import importlib.metadata
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from emaae.config import Config
from emaae.data import store
from emaae.data.batches import batches, evaluation_order, training_order
from emaae.data.features import FeatureFile, check_features, find_features, read_features
from emaae.data.reading import Form, Reader, Utterance, read, utterance
from emaae.data.split import Split, check_overlap
from emaae.distributed import after_the_first
from emaae.progress import progress

SPLITS = ("train", "val", "test")

__all__ = ["SPLITS", "Split", "batches", "evaluation_order", "load_splits", "training_order"]


def load_splits(config: Config, wanted: Sequence[str] = SPLITS) -> dict[str, Split]:
    """The splits that a run was given, by name, checked for overlap. Raises UserError.

    wanted: names of `SPLITS` to read, of those that were given. Without directories: the demo data,
    `test` alone for --eval_only.
    """
    form = Form.of(config.keep_loudness, config.data_dtype)
    if config.demo:
        given = ("test",) if config.eval_only else SPLITS
        sources = {name: _demo(name, form) for name in given if name in wanted}
    else:
        source = _bucket if config.bucket else _tree
        roots = {name: getattr(config, f"{name}_dir") for name in wanted}
        sources = {name: source(name, root, config, form) for name, root in roots.items() if root}
    with after_the_first():  # which packs what is not packed yet, and says how far it is
        splits = {
            name: store.load(source, config.cache_folder, config.verify_data)
            for name, source in sources.items()
        }
    for name, split in splits.items():
        if split.skipped:
            warnings.warn(f"{name}: left out {told(split)}", stacklevel=2)
    check_overlap(splits)
    return splits


def told(split: Split) -> str:
    """What a person reads of the files that were left out."""
    names = list(split.skipped)
    few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    n_files = len(split) + len(names)
    return f"{len(names)} of {n_files} files, which are broken: {few} ({split.skipped[names[0]]})"


def _tree(name: str, root: str, config: Config, form: Form) -> store.Source:
    def connect() -> Reader:
        return lambda file: read_features(file.path, file.stamp)

    files = find_features(root, config.recursive)
    place = ("tree", os.path.realpath(root), config.recursive)
    return _listed(name, root, place, files, connect, form, config)


def _bucket(name: str, prefix: str, config: Config, form: Form) -> store.Source:
    from emaae.data.bucket import endpoint, list_features, open_bucket, read_array

    where = f"s3://{config.bucket}/{prefix.strip('/')}"

    def connect() -> Reader:
        # A connection belongs to the process that opened it.
        bucket = open_bucket(config.bucket)

        def read_object(file: FeatureFile) -> np.ndarray:
            array = read_array(bucket, file.path, file.stamp[1])
            return check_features(array, f"s3://{config.bucket}/{file.path}")

        return read_object

    files = list_features(open_bucket(config.bucket), prefix, config.recursive)
    place = ("bucket", endpoint(), where, config.recursive)
    return _listed(name, where, place, files, connect, form, config)


def _listed(
    name: str,
    where: str,
    place: tuple,
    files: list[FeatureFile],
    connect: Callable[[], Reader],
    form: Form,
    config: Config,
) -> store.Source:
    broken: dict[str, str] | None = {} if config.on_bad_file == "skip" else None

    def read_all() -> Iterator[Utterance]:
        utterances = read(files, connect, form, broken)
        return progress(utterances, f"reading {name}", total=len(files), unit="utterances")

    names = tuple(file.identity for file in files)
    state = store.key("\n".join(f"{name}\0{stamp}" for name, _, stamp in files))
    return store.Source(where, place, state, form, read_all, names, broken)


def _demo(name: str, form: Form) -> store.Source:
    def generate_all() -> Iterator[Utterance]:
        # scipy is only needed here, and takes a moment to import.
        from emaae.data.demo import generate

        return (utterance(u.name, u.features, form) for u in generate(name))

    # The generator's own text, since a version of it could be forgotten.
    text = Path(__file__).with_name("demo.py").read_text(encoding="utf-8")
    state = store.key(text, np.__version__, importlib.metadata.version("scipy"))
    return store.Source(f"the demo's {name} split", ("demo", name), state, form, generate_all)
