"""A split: its utterances, concatenated in one array; batches: their order and masks."""

import functools
import itertools
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emaae.data.reading import FrameFormat, digest_of
from emaae.system.errors import UserError, shortened

# Number of frames whose moments are summed at a time: a float64 copy of all frames would have twice
# the size of the data.
CHUNK_FRAMES = 1 << 16

# Frames larger than this fraction of a GPU's free memory stay in main memory: a training step needs
# memory too.
MAX_GPU_FRACTION = 0.5

# Lengths are jittered by this fraction before sorting, so that batches differ between epochs while
# padding stays small.
JITTER = 0.02


class Summary(NamedTuple):
    """Digests and moments of the frames of a split.

    digests: one per utterance (U,). mean, sd: of each channel (D,), float64, in raw units.
    """

    digests: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Split:
    """The utterances of one split.

    names: the U identities. frames (N, D): all utterances, concatenated; float32 or float16, in raw
    units. offsets (U + 1,): index of the first frame of each utterance, and N. channels: the D
    column names. precomputed: the summary, if it is known. skipped: identity -> error of the broken
    files that were left out. device: of the utterances and batches that the split returns; the
    frames may be on another device, see `to`.
    """

    names: tuple[str, ...]
    frames: Tensor
    offsets: np.ndarray
    channels: tuple[str, ...]
    precomputed: Summary | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")

    @classmethod
    def from_utterances(
        cls, utterances: Iterable[tuple[str, np.ndarray]], form: FrameFormat | None = None
    ) -> "Split":
        """From (identity, features (T, 14)) pairs; without loudness (column 12) by default."""
        form = form or FrameFormat()
        names, arrays = zip(*((name, form.frames(name, array)) for name, array in utterances))
        offsets = offsets_of([len(array) for array in arrays])
        return cls(names, torch.from_numpy(np.concatenate(arrays)), offsets, form.channels)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """The frames (T, D) of one utterance, float32."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]].to(self.device).float()

    @property
    def lengths(self) -> np.ndarray:
        """Number of frames of each utterance (U,)."""
        return np.diff(self.offsets)

    def to(self, device: torch.device) -> "Split":
        """The same split for a model on a device.

        The frames are copied to the device if they fit into half of its free memory. Otherwise they
        stay where they are, and each batch is copied.
        """
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize
        if self.frames.nbytes > MAX_GPU_FRACTION * free:
            return replace(self, precomputed=self.summary, device=device)
        frames = self.frames.to(device)
        return replace(self, frames=frames, precomputed=self.summary, device=frames.device)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """A split of the utterances at these indices, in this order; at least one."""
        names = tuple(self.names[i] for i in indices)
        frames = torch.cat([self[i] for i in indices])
        offsets = offsets_of(self.lengths[list(indices)])
        return Split(names, frames, offsets, self.channels, device=frames.device)

    def mean_and_sd(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel (D,), in raw units."""
        _, mean, sd = self.summary
        return torch.from_numpy(mean).float(), torch.from_numpy(sd).float()

    @functools.cached_property
    def summary(self) -> Summary:
        """Digests and moments of the frames."""
        if self.precomputed is not None:
            return self.precomputed
        frames = self.frames.cpu().numpy()
        digests = tuple(digest_of(frames[a:b].data) for a, b in itertools.pairwise(self.offsets))
        return Summary(digests, *mean_and_sd(frames))

    def fingerprint(self) -> str:
        """A digest of all names and frames; splits with the same digest have the same data."""
        pairs = zip(self.names, self.summary.digests)
        whole = "".join(f"{name}\0{digest}\n" for name, digest in pairs)
        return digest_of(whole.encode(errors="surrogateescape"))


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Offsets (U + 1,) of concatenated utterances of these lengths (U,); the last is their sum."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def mean_and_sd(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) float64 of the columns of frames (N, D)."""
    parts = [frames[i : i + CHUNK_FRAMES] for i in range(0, len(frames), CHUNK_FRAMES)]
    mean = sum(part.sum(0, dtype=np.float64) for part in parts) / len(frames)
    squares = sum(np.square(part - mean).sum(0) for part in parts)
    return mean, np.sqrt(squares / len(frames))


def speaker_of(name: str) -> str:
    """The speaker of a name like LibriSpeech's speaker-chapter-number; "" for other names."""
    match = re.fullmatch(r"(\d+)-\d+-\d{4}", name.rpartition("/")[2])
    return match[1] if match else ""


def check_splits(splits: Mapping[str, Split]) -> None:
    """Raise UserError for an utterance in two splits.

    Utterances are the same if they have the same identity or the same content. Warns about speakers
    in two splits, which are known only for splits in which all names look like LibriSpeech's, and
    about channels that are constant in train alone.
    """
    seen: dict[str, tuple[str, str]] = {}  # name or digest -> split and name
    for split, utterances in splits.items():
        for name, digest in zip(utterances.names, utterances.summary.digests):
            other, twin = seen.get(name) or seen.get(digest) or (split, name)
            if other != split:
                same = "" if name == twin else f" (as {twin})"
                raise UserError(
                    f"utterance {name} of the {split} split is in the {other} split "
                    f"too{same}: splits must share no utterance; remove it from one of them"
                )
            seen[name] = seen[digest] = (split, name)

    speakers = {name: set(map(speaker_of, split.names)) for name, split in splits.items()}
    speakers = {split: known for split, known in speakers.items() if all(known)}
    for first, second in itertools.combinations(speakers, 2):
        shared = sorted(speakers[first] & speakers[second], key=int)
        if shared:
            warnings.warn(
                f"{len(shared)} speaker(s) are in both {first} and {second} ({shortened(shared)}): "
                "scores will tell little about new speakers; split the corpus by speaker",
                stacklevel=2,
            )
    if "train" in splits:
        mean, sd = (values.numpy() for values in splits["train"].mean_and_sd())
        for split, utterances in splits.items():
            other_mean, other_sd = (values.numpy() for values in utterances.mean_and_sd())
            lost = np.flatnonzero((sd == 0) & ((other_sd > 0) | (other_mean != mean)))
            if len(lost):
                names = ", ".join(f"{utterances.channels[i]} ({mean[i]:g})" for i in lost)
                warnings.warn(
                    f"constant in train and not in {split}: {names}; such a channel has no scale, "
                    "and distorts the encoding of other values: make it constant everywhere",
                    stacklevel=2,
                )


# ---- batches


def training_order(lengths: np.ndarray, batch_sz: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of utterance indices, of similar lengths within a batch, in random order.

    Depends only on the arguments, so that a resumed run gets the same batches.
    """
    random = np.random.default_rng([seed, epoch])
    keys = lengths * random.uniform(1 - JITTER, 1 + JITTER, len(lengths))
    parts = np.split(np.argsort(keys, kind="stable"), range(batch_sz, len(keys), batch_sz))
    return [parts[i] for i in random.permutation(len(parts))]


def evaluation_order(lengths: np.ndarray, batch_sz: int) -> list[np.ndarray]:
    """Batches of utterance indices, longest first: if memory is too small, it fails at once."""
    order = np.argsort(-lengths, kind="stable")
    return np.split(order, range(batch_sz, len(order), batch_sz))


def batches(split: Split, order: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields x (batch, D, time) in raw units, zero where padded, and its mask (batch, 1, time).

    A batch may have no utterances. Frames are gathered on their own device, to which the order is
    copied once, so that the CPU need not wait for a GPU. Batches from main memory are copied from
    pinned pages while the previous step is computed.
    """
    if not order:
        return
    source, lengths, counts = split.frames.device, split.lengths, [len(batch) for batch in order]
    starts, sizes = (
        torch.from_numpy(per_utterance[np.concatenate(order)]).to(source).split(counts)
        for per_utterance in (split.offsets, lengths)
    )
    for batch, start, size in zip(order, starts, sizes):
        time = torch.arange(int(lengths[batch].max(initial=1)), device=source)
        real = time < size[:, None]
        frames = split.frames[torch.where(real, start[:, None] + time, 0)]
        mask = real[:, None].to(torch.float32)
        x = frames.transpose(1, 2) * mask
        if split.device != source:
            x, mask = (_copy_to(tensor, split.device) for tensor in (x, mask))
        yield x, mask


def _copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
