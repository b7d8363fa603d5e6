"""A split: its utterances end to end in one array, and its batches in their order."""

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

# Frames whose moments are summed at a time: a float64 copy of all would be twice the data.
CHUNK_FRAMES = 1 << 16

# Frames that take more of a GPU's free memory than this stay outside: a step needs some too.
MAX_GPU_FRACTION = 0.5

# Lengths are jittered by this fraction before sorting: enough that an utterance meets new
# neighbours every epoch, little enough that padding stays small.
JITTER = 0.02


class Summary(NamedTuple):
    """Digests and moments of frames.

    digests: of each utterance (U,). mean, sd: float64 (D,), of each channel, in raw units.
    """

    digests: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Split:
    """Utterances of one split.

    names: identities, U of them. frames (N, D): float32 or float16, raw units, all utterances end
    to end. offsets (U + 1,): where each utterance begins. channels: the D column names.
    precomputed: the summary, where it was kept. skipped: identities that were left out, their
    files being broken, and why. device: where utterances and batches are given; the frames
    themselves may lie elsewhere, see `to`.
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
        """From (identity, features (T, 14)) pairs; loudness, column 12, is dropped by default."""
        form = form or FrameFormat()
        names, arrays = zip(*((name, form.frames(name, array)) for name, array in utterances))
        offsets = offsets_of([len(array) for array in arrays])
        return cls(names, torch.from_numpy(np.concatenate(arrays)), offsets, form.channels)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Frames (T, D) float32 of one utterance."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]].to(self.device).float()

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each utterance (U,)."""
        return np.diff(self.offsets)

    def to(self, device: torch.device) -> "Split":
        """The same split for a model on a device.

        The frames move there when they take less than half of its free memory. Otherwise they stay
        where they are, and each batch is sent.
        """
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize
        if self.frames.nbytes > MAX_GPU_FRACTION * free:
            return replace(self, precomputed=self.summary, device=device)
        frames = self.frames.to(device)
        return replace(self, frames=frames, precomputed=self.summary, device=frames.device)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The utterances at these indices, in that order; at least one."""
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
        """A digest of names and contents, equal exactly when these are."""
        pairs = zip(self.names, self.summary.digests)
        whole = "".join(f"{name}\0{digest}\n" for name, digest in pairs)
        return digest_of(whole.encode(errors="surrogateescape"))


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Offsets (U + 1,) of utterances of these lengths that lie end to end, and the end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def mean_and_sd(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) float64 of the columns of frames (N, D)."""
    parts = [frames[i : i + CHUNK_FRAMES] for i in range(0, len(frames), CHUNK_FRAMES)]
    mean = sum(part.sum(0, dtype=np.float64) for part in parts) / len(frames)
    squares = sum(np.square(part - mean).sum(0) for part in parts)
    return mean, np.sqrt(squares / len(frames))


def speaker_of(name: str) -> str:
    """The speaker in LibriSpeech's speaker-chapter-number; "" in other names."""
    match = re.fullmatch(r"(\d+)-\d+-\d{4}", name.rpartition("/")[2])
    return match[1] if match else ""


def check_overlap(splits: Mapping[str, Split]) -> None:
    """Refuse utterances that stand in two splits; warn about speakers that do.

    The same utterance is the same identity, or the same content under another name. Speakers are
    known only of splits in which all names look like LibriSpeech's. Raises UserError.
    """
    seen: dict[str, tuple[str, str]] = {}  # by name and by content: in which split, as which name
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

    speakers = {split: set(map(speaker_of, of.names)) for split, of in splits.items()}
    speakers = {split: known for split, known in speakers.items() if all(known)}
    for first, second in itertools.combinations(speakers, 2):
        shared = sorted(speakers[first] & speakers[second], key=int)
        if shared:
            warnings.warn(
                f"{len(shared)} speaker(s) are in both {first} and {second} ({shortened(shared)}): "
                "scores will say little about new speakers; split by speaker",
                stacklevel=2,
            )


# ---- batches


def training_order(lengths: np.ndarray, batch_sz: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of utterance indices, similar lengths together, in random order.

    A function of its arguments alone: a continued run sees the batches it would have seen.
    """
    random = np.random.default_rng([seed, epoch])
    keys = lengths * random.uniform(1 - JITTER, 1 + JITTER, len(lengths))
    batches = _cut(np.argsort(keys, kind="stable"), batch_sz)
    return [batches[i] for i in random.permutation(len(batches))]


def evaluation_order(lengths: np.ndarray, batch_sz: int) -> list[np.ndarray]:
    """Batches of utterance indices by length, longest first (so memory fails early or never)."""
    return _cut(np.argsort(-lengths, kind="stable"), batch_sz)


def _cut(order: np.ndarray, batch_sz: int) -> list[np.ndarray]:
    return [order[i : i + batch_sz] for i in range(0, len(order), batch_sz)]


def batches(split: Split, order: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    """x (batch, D, time) in raw units, zero where padded, and its mask (batch, 1, time).

    A batch may be of no utterance. Frames are picked where they lie, and the order goes there once:
    a split on the GPU is never waited for. What lies in main memory is sent from pinned pages while
    the step before is computed.
    """
    if not order:
        return
    here, lengths, counts = split.frames.device, split.lengths, [len(batch) for batch in order]
    starts, sizes = (
        torch.from_numpy(of_all[np.concatenate(order)]).to(here).split(counts)
        for of_all in (split.offsets, lengths)
    )
    for batch, start, size in zip(order, starts, sizes):
        time = torch.arange(int(lengths[batch].max(initial=1)), device=here)
        real = time < size[:, None]
        frames = split.frames[torch.where(real, start[:, None] + time, 0)]
        mask = real[:, None].to(torch.float32)
        x = frames.transpose(1, 2) * mask
        if split.device != here:
            x, mask = (_sent(tensor, split.device) for tensor in (x, mask))
        yield x, mask


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
