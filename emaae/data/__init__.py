"""Where do the frames come from? Feature trees, buckets and the generated demo data."""

from collections.abc import Sequence

from emaae.config import Config
from emaae.data.batches import batches, evaluation_order, training_order
from emaae.data.features import check_features, find_features, read_features
from emaae.data.split import Split, check_overlap
from emaae.progress import progress

SPLITS = ("train", "val", "test")

__all__ = ["SPLITS", "Split", "batches", "evaluation_order", "load_splits", "training_order"]


def load_splits(config: Config, wanted: Sequence[str] = SPLITS) -> dict[str, Split]:
    """The splits that a run was given, by name, checked for overlap. Raises UserError.

    wanted: names of `SPLITS` to read, of those that were given. Without directories: the demo data,
    `test` alone for --eval_only.
    """
    if config.demo:
        given = ("test",) if config.eval_only else SPLITS
        splits = {name: _generate(name, config) for name in given if name in wanted}
    else:
        roots = {name: getattr(config, f"{name}_dir") for name in wanted}
        splits = {name: _read(name, root, config) for name, root in roots.items() if root}
    check_overlap(splits)
    return splits


def _generate(name: str, config: Config) -> Split:
    # scipy is only needed here, and takes a moment to import.
    from emaae.data.demo import generate

    utterances = ((u.name, u.features) for u in generate(name))
    return Split.from_utterances(utterances, config.keep_loudness)


def _read(name: str, root: str, config: Config) -> Split:
    if config.bucket:
        from emaae.data.bucket import list_features, open_bucket, read_array

        bucket = open_bucket(config.bucket)
        found = list_features(bucket, root, config.recursive)
        where = f"s3://{config.bucket}"
        arrays = (
            (identity, check_features(read_array(bucket, key), f"{where}/{key}"))
            for identity, key in found
        )
    else:
        found = find_features(root, config.recursive)
        arrays = ((identity, read_features(path)) for identity, path in found)
    bar = progress(arrays, f"reading {name}", total=len(found), unit="utterances")
    return Split.from_utterances(bar, config.keep_loudness)
