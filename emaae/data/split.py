"""What is a split? Its utterances end to end in one array, with their names and offsets."""

import functools
import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from emaae.data.features import CHANNELS, LOUDNESS
from emaae.errors import UserError

# LibriSpeech names an utterance speaker-chapter-number.
_LIBRISPEECH = re.compile(r"(?:^|/)(\d+)-\d+-\d{4}$")


@dataclass(frozen=True)
class Split:
    """Utterances of one split.

    names: identities, U of them, sorted. frames (N, D): float32, raw units, all utterances end to
    end. offsets (U + 1,): where each utterance begins. channels: the D column names.
    """

    names: tuple[str, ...]
    frames: Tensor
    offsets: np.ndarray
    channels: tuple[str, ...]

    @classmethod
    def from_utterances(
        cls, utterances: Iterable[tuple[str, np.ndarray]], keep_loudness: bool = False
    ) -> "Split":
        """From (identity, features (T, 14)) pairs; loudness, column 12, is dropped by default."""
        columns = [i for i in range(len(CHANNELS)) if keep_loudness or i != LOUDNESS]
        names, arrays = [], []
        for name, features in utterances:
            names.append(name)
            arrays.append(features[:, columns])
        offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
        frames = torch.from_numpy(np.concatenate(arrays))
        return cls(tuple(names), frames, offsets, tuple(CHANNELS[i] for i in columns))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Frames (T, D) of one utterance."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each utterance (U,)."""
        return np.diff(self.offsets)

    @functools.cached_property
    def starts(self) -> Tensor:
        """First frame of each utterance (U,), where the frames are."""
        return torch.from_numpy(self.offsets[:-1]).to(self.frames.device)

    @functools.cached_property
    def sizes(self) -> Tensor:
        """`lengths` (U,), where the frames are."""
        return torch.from_numpy(self.lengths).to(self.frames.device)

    def to(self, device: torch.device) -> "Split":
        """The same split with its frames on a device."""
        return replace(self, frames=self.frames.to(device))

    def pick(self, indices: Iterable[int]) -> "Split":
        """The utterances at these indices, in that order; at least one."""
        picked = [self[i] for i in indices]
        offsets = np.concatenate([[0], np.cumsum([len(frames) for frames in picked])])
        names = tuple(self.names[i] for i in indices)
        return replace(self, names=names, frames=torch.cat(picked), offsets=offsets)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel (D,), in raw units."""
        frames = self.frames.double()
        return frames.mean(0).float(), frames.std(0, correction=0).float()

    @functools.cached_property
    def digests(self) -> list[str]:
        """A digest of the content of each utterance."""
        return [
            hashlib.blake2b(self[i].cpu().numpy().tobytes(), digest_size=16).hexdigest()
            for i in range(len(self))
        ]

    def fingerprint(self) -> str:
        """A digest of names and contents: equal exactly when the split is."""
        whole = hashlib.blake2b(digest_size=16)
        for name, digest in zip(self.names, self.digests):
            whole.update(f"{name}\0{digest}\n".encode(errors="surrogateescape"))
        return whole.hexdigest()


def check_overlap(splits: Mapping[str, Split]) -> None:
    """Refuse utterances that stand in two splits; warn about speakers that do.

    The same utterance is the same identity, or the same content under another name. Speakers are
    known only of splits in which all names look like LibriSpeech's. Raises UserError.
    """
    owner: dict[str, tuple[str, str]] = {}
    for split, utterances in splits.items():
        seen = {}
        for name, digest in zip(utterances.names, utterances.digests):
            for key in (f"name {name}", f"content {digest}"):
                if key in owner:
                    other, twin = owner[key]
                    same = "" if name == twin else f" (as {twin})"
                    raise UserError(
                        f"utterance {name} of the {split} split is in the {other} split "
                        f"too{same}: splits must share no utterance; remove it from one of them"
                    )
                seen[key] = (split, name)
        owner |= seen

    speakers = {}
    for split, utterances in splits.items():
        matches = [_LIBRISPEECH.search(name) for name in utterances.names]
        if all(matches):
            speakers[split] = {match[1] for match in matches}
    names = list(speakers)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(speakers[first] & speakers[second], key=int)
            if shared:
                few = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
                warnings.warn(
                    f"{len(shared)} speaker(s) are in both {first} and {second} ({few}): "
                    "scores will say little about new speakers; split by speaker",
                    stacklevel=2,
                )
