"""Encoding and decoding whole corpora in windows, which limit the memory of the convolutions.

A window consists of some frames of an utterance, its own frames, and of context on either side
(half a receptive field of the convolutions). The results for its own frames equal those of the
whole utterance up to rounding. Windows of several utterances share a batch, in which padding
changes nothing. Memory holds one batch and its utterances, with their encodings in the form in
which they are written, and the few files that are fetched ahead (see `emaae.data.reading`).

    from emaae.corpus.encode import encode

    z = encode(model, features)  # (T, D) -> (T, units), any T
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emaae.corpus import encodings
from emaae.data.bucket import Fetched, open_bucket, write_array
from emaae.data.features import (
    CHANNELS,
    FRAME_RATE_HZ,
    LOUDNESS_COLUMN,
    FeatureFile,
    check_identity,
    find_features,
    frame_times,
    read_times,
    stamp_of,
    times_beside,
)
from emaae.data.load import Listing, features_in
from emaae.data.reading import FrameFormat, read_files
from emaae.loading import load_model, model_file
from emaae.models import CNNAutoEncoder
from emaae.runs.folder import git_commit, versions
from emaae.runs.read import read_or_empty
from emaae.system.devices import pick_device
from emaae.system.errors import BadFile, UserError, one_line
from emaae.system.files import lock_folder, make_folder, sha256, write_json
from emaae.system.progress import progress

# Frames in a batch, padding included, and in a window. At 1024 units the widest activations of a
# batch are 16 MB on a CPU, about its cache, and 256 MB on a GPU.
WINDOW_FRAMES = {"cpu": 1 << 12, "cuda": 1 << 16}
# Utterances longer than five minutes have their own progress bar.
LONG_FRAMES = 5 * 60 * FRAME_RATE_HZ


# ---- arrays


@dataclass(frozen=True, eq=False)
class NamedFrames:
    """A sequence (T, D), T > 0, and its name. Raises ValueError for any other shape."""

    name: Any
    frames: np.ndarray

    def __post_init__(self) -> None:
        if self.frames.ndim != 2 or not len(self.frames):
            raise ValueError(
                f"expected one utterance (T, D) with frames, got shape {self.frames.shape}"
            )


class _Window(NamedTuple):
    source: NamedFrames
    frames: np.ndarray  # (t, D), its own frames with context
    inner: slice  # of its own frames


# Each source with its result in consecutive parts (t, C).
Results: TypeAlias = Iterator[tuple[NamedFrames, Iterator[np.ndarray]]]


def encode(model: CNNAutoEncoder, features: np.ndarray, window_frames: int = 0) -> np.ndarray:
    """The encoding (T, units) float32 of raw features (T, D), computed on the model's device.

    window_frames: frames in a window, 0 for `WINDOW_FRAMES`; the result does not depend on it.
    Raises ValueError for another number of channels.
    """
    if features.shape[1:] != (model.input_dim,):
        raise ValueError(
            f"expected features (T, {model.input_dim}), got {features.shape}: a model without "
            "loudness takes np.delete(features, 12, axis=1)"
        )
    _, parts = next(encode_each(model, [NamedFrames(None, features)], window_frames))
    return np.concatenate(list(parts))


def decode(model: CNNAutoEncoder, z: np.ndarray, window_frames: int = 0) -> np.ndarray:
    """The raw features (T, D) float32 of an encoding (T, units).

    window_frames: see `encode`. Raises ValueError for another number of units.
    """
    if z.shape[1:] != (model.inner_size,):
        raise ValueError(f"expected an encoding (T, {model.inner_size}), got {z.shape}")
    _, parts = next(decode_each(model, [NamedFrames(None, z)], window_frames))
    return np.concatenate(list(parts))


def encode_each(
    model: CNNAutoEncoder, sources: Iterable[NamedFrames], window_frames: int = 0
) -> Results:
    """Yield each source of raw features (T, D) with its encoding in consecutive parts (t, units).

    Read the parts of a source before the next source. Batches have the least padding if consecutive
    sources have similar lengths.
    """
    context = model.receptive_field() // 2
    return _run_in_windows(model, model.encode, context, sources, window_frames)


def decode_each(
    model: CNNAutoEncoder, sources: Iterable[NamedFrames], window_frames: int = 0
) -> Results:
    """Yield each source (T, units) with its raw features in parts (t, D), as `encode_each`."""
    context = model.decoder_receptive_field() // 2
    return _run_in_windows(model, model.decode, context, sources, window_frames)


def _run_in_windows(
    model: CNNAutoEncoder,
    run: Callable[[Tensor, Tensor], Tensor],
    context: int,
    sources: Iterable[NamedFrames],
    window_frames: int,
) -> Results:
    device, dtype = model.mean.device, model.mean.dtype
    window_frames = window_frames or WINDOW_FRAMES[device.type]
    windows = (w for source in sources for w in _windows(source, context, window_frames))

    def parts() -> Iterator[tuple[NamedFrames, np.ndarray]]:
        for batch in _batches(windows, window_frames + 2 * context):
            arrays = [torch.from_numpy(np.array(w.frames, dtype=np.float32)) for w in batch]
            x = pad_sequence(arrays, batch_first=True).transpose(1, 2).contiguous()
            mask = pad_sequence([torch.ones(len(w.frames)) for w in batch], batch_first=True)
            with torch.inference_mode():
                out = run(x.to(device, dtype), mask[:, None].to(device))
            for window, one in zip(batch, out.float().cpu().numpy()):
                yield window.source, one[:, window.inner].T

    for source, group in groupby(parts(), key=lambda part: part[0]):
        yield source, (part for _, part in group)


def _windows(source: NamedFrames, context: int, size: int) -> Iterator[_Window]:
    """Windows with at most `size` own frames and `context` frames on either side."""
    frames = source.frames
    for begin in range(0, len(frames), size):
        start, end = max(0, begin - context), min(begin + size, len(frames))
        yield _Window(source, frames[start : end + context], slice(begin - start, end - start))


def _batches(windows: Iterable[_Window], max_frames: int) -> Iterator[list[_Window]]:
    """Consecutive windows in batches of at most `max_frames` frames, padding included."""
    batch: list[_Window] = []
    longest = 0
    for window in windows:
        longest = max(longest, len(window.frames))
        if batch and longest * (len(batch) + 1) > max_frames:
            yield batch
            batch, longest = [], len(window.frames)
        batch.append(window)
    if batch:
        yield batch


# ---- trees


class TreeResult(NamedTuple):
    """Numbers of utterances written and kept; skipped: those left out, with the reason.

    n_others: number of files in the tree whose source is there no more.
    """

    written: int
    kept: int
    skipped: Mapping[str, str]
    n_others: int

    def summary(self, out: Path) -> str:
        """A few lines for the terminal."""
        kept = f", {self.kept} were there already" if self.kept else ""
        lines = [f"{out}: {self.written} utterances written{kept}"]
        lines += [f"left out: {name} ({why})" for name, why in self.skipped.items()]
        if self.n_others:
            lines.append(f"{out} holds {self.n_others} more, whose source is gone: remove them?")
        return "\n".join(one_line(line) for line in lines)


@contextlib.contextmanager
def open_model(ref: str, device: str = "auto") -> Iterator[tuple[CNNAutoEncoder, dict[str, Any]]]:
    """Load a model onto a device; yields the model, and entries about it for a manifest.

    ref: see `loading.model_file`. Raises UserError.
    """
    with model_file(ref) as path:
        model = load_model(path, pick_device(device))
        entry = {"ref": str(ref), "type": model.get_type(), "sha256": sha256(path)}
        yield model, {"model": entry, "versions": versions(), "git_commit": git_commit()}


def encode_tree(
    model: CNNAutoEncoder,
    listing: Listing,
    out: Path,
    form: str,
    made_by: Mapping[str, Any],
    *,
    skip_broken: bool = False,
) -> TreeResult:
    """Write the encodings of all utterances of a listing (`list_source`) into a tree.

    form: one of `config.ENCODING_FORMATS`. made_by: entries of the manifest, among them `model`
    with its `sha256`. The manifest also gets the number of `units` and the units that `fired`,
    those above 0 in any encoding. Complete encodings of unchanged features are kept; a tree of
    another model or form is refused. skip_broken: leave broken files out instead of raising. Raises
    UserError.
    """
    frame_format = FrameFormat(keep_loudness=model.input_dim == len(CHANNELS))
    skipped: dict[str, str] = {}
    fired = np.zeros(model.inner_size, bool)

    def source(file: FeatureFile, fetched: Fetched) -> NamedFrames:
        frames = frame_format.frames(file.identity, features_in(fetched))
        return NamedFrames((file, listing.read_times(file)), frames)

    def note_active(z: np.ndarray) -> np.ndarray:
        fired[(z > 0).any(0)] = True
        return z

    files, manifest = listing.files, {"made": "encodings", "form": form} | dict(made_by)
    stamps = {file: _stamp(file, listing.times_stamp(file)) for file in files}
    with _locked_output(out, listing.label, manifest, stamps) as (before, todo):
        kept = len(files) - len(todo)
        # A unit may have fired only in an encoding that is replaced now.
        replaces = any(_path(out, file).exists() for file in todo)
        if todo:  # unknown until all files are written
            write_json(out / encodings.MANIFEST, before | {"fired": None})
        broken = skipped if skip_broken else None
        sources = read_files(todo, listing.fetch, source, broken, n_others=kept)
        encoded = ((one, map(note_active, z)) for one, z in encode_each(model, sources))
        done = progress(encoded, "encoding", total=len(files), done=kept, unit="utterances")
        _write(done, out, form, model.inner_size, stamps)
        _remove_outdated(out, skipped)
        if kept and before.get("fired") is not None and not replaces:
            fired[before["fired"]] = True
        elif kept:  # also after a killed process, or for a tree of an older program
            for file in set(files) - set(todo):
                note_active(encodings.read_encoding(_path(out, file), model.inner_size))
        indices = np.flatnonzero(fired).tolist()
        write_json(out / encodings.MANIFEST, before | {"fired": indices, "units": model.inner_size})
    return TreeResult(len(todo) - len(skipped), kept, skipped, _n_others(out, files))


def open_upload(where: str) -> tuple[Any, str]:
    """The bucket and the prefix of s3://BUCKET or s3://BUCKET/PREFIX. Raises UserError."""
    scheme, _, place = where.partition("://")
    name, _, prefix = place.strip("/").partition("/")
    if scheme != "s3" or not name:
        raise UserError(f"--upload must be s3://BUCKET or s3://BUCKET/PREFIX, got {where}")
    return open_bucket(name), prefix


def upload_tree(out: Path, bucket: Any, prefix: str, n_units: int) -> int:
    """Put a tree of encodings into a bucket as cottoncandy's raw arrays; returns how many were new.

    PREFIX/103/1240/103-1240-0000 is an encoding (T, n_units) float32, whatever the form of the
    tree, and ..._times its times (T, 2). Arrays that are already there, made from the same
    features, are left; those of another model or form are refused. Raises UserError.
    """
    n_new, made = 0, encodings.description(read_or_empty(out / encodings.MANIFEST))
    for file in progress(find_features(out, recursive=True), "uploading", unit="utterances"):
        state = encodings.read_stamp(file.path) or ""
        key = f"{prefix}/{file.identity}".strip("/")
        z = encodings.read_encoding(file.path, n_units)
        times = frame_times(len(z), read_times(file.path))
        n_new += write_array(bucket, key, z, made, state)
        write_array(bucket, f"{key}_times", times, made, state)
    return n_new


def decode_tree(
    model: CNNAutoEncoder, root: str, out: Path, made_by: Mapping[str, Any], *, recursive: bool
) -> TreeResult:
    """Decode a tree of encodings into a tree of features (T, 14).

    Loudness is 0 if the model has no loudness. Times are those of the encodings. Keeps and refuses
    files as `encode_tree`; encodings of another model are refused. Raises UserError.
    """
    found = read_or_empty(Path(root) / encodings.MANIFEST)
    if found and encodings.model_sha256(found) != encodings.model_sha256(made_by):
        raise UserError(f"{root} has encodings of another model: name the --model that made them")

    def source(file: FeatureFile) -> NamedFrames:
        z = encodings.read_encoding(file.path, model.inner_size)
        return NamedFrames((file, read_times(file.path)), z)

    def widened(part: np.ndarray) -> np.ndarray:
        has_loudness = part.shape[1] == len(CHANNELS)
        return part if has_loudness else np.insert(part, LOUDNESS_COLUMN, 0, axis=1)

    files = find_features(root, recursive)
    stamps = {file: _stamp(file, stamp_of(times_beside(file.path))) for file in files}
    manifest = {"made": "features", "form": "float32"} | dict(made_by)
    with _locked_output(out, root, manifest, stamps) as (_, todo):
        kept = len(files) - len(todo)
        decoded = ((one, map(widened, y)) for one, y in decode_each(model, map(source, todo)))
        done = progress(decoded, "decoding", total=len(files), done=kept, unit="utterances")
        _write(done, out, "float32", len(CHANNELS), stamps)
    return TreeResult(len(todo), kept, {}, _n_others(out, files))


def _write(
    done: Results, out: Path, form: str, n_columns: int, stamps: Mapping[FeatureFile, str]
) -> None:
    """Write results into a tree; the name of each source is (file, its times)."""
    for source, parts in done:
        (file, times), n_frames = source.name, len(source.frames)
        if n_frames > LONG_FRAMES:
            parts = progress(parts, file.identity, unit="windows")
        path = _path(out, file)
        encodings.write_times(path, frame_times(n_frames, times), fsync=False)
        encodings.write_encoding(path, parts, (n_frames, n_columns), form, stamps[file])


def _n_others(out: Path, files: Iterable[FeatureFile]) -> int:
    known = {file.identity for file in files}
    return sum(file.identity not in known for file in find_features(out, recursive=True))


def _remove_outdated(out: Path, skipped: Iterable[str]) -> None:
    """Remove the encodings that left-out files gave before they were broken."""
    for identity in skipped:
        with contextlib.suppress(BadFile):
            check_identity(identity, identity)  # such as ../x, which is outside of the folder
            for path in (f"{identity}.npz", f"{identity}_times.npz"):
                (out / path).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked_output(
    out: Path, root: str, manifest: Mapping[str, Any], stamps: Mapping[FeatureFile, str]
) -> Iterator[tuple[dict[str, Any], list[FeatureFile]]]:
    """Lock the folder `out`; yields its manifest, and the files that are still to do.

    root: the tree that is read, which must not contain `out`, or the address of a bucket. stamps:
    those of all its files, see `_stamp`.
    """
    manifest = {**manifest, "source": encodings.source(root, out)}
    make_folder(out)
    with lock_folder(out) or contextlib.nullcontext():
        found = encodings.open_manifest(out, manifest)
        for stray in out.rglob(".*.tmp"):
            stray.unlink()  # of a process that was killed while it wrote
        todo = [f for f in stamps if encodings.read_stamp(_path(out, f)) != stamps[f]]
        # The largest first: too little memory shows early, and neighbours have similar lengths.
        yield found, sorted(todo, key=lambda file: -file.stamp[0])


def _path(out: Path, file: FeatureFile) -> Path:
    return out / f"{file.identity}.npz"


def _stamp(file: FeatureFile, times_stamp: Any) -> str:
    """A text that changes when the file or its times change."""
    return json.dumps([file.identity, *file.stamp, times_stamp])
