"""Phones and gestures of generated speech, frame by frame."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emaae.data.demo import generate, read_score
from emaae.data.features import (
    ARTICULATORS,
    SPLITS,
    find_features,
    frame_times,
    read_features,
    read_times,
)
from emaae.data.phones import Gesture, Phone, phone_at

LABELS = ("phone", "gesture")
REST = "rest"


class Labelled(NamedTuple):
    """One utterance: features (T, 14), and the label of each frame (T,) by the name of the set."""

    features: np.ndarray
    labels: Mapping[str, np.ndarray]


# Utterances by the name of the split.
Splits = Mapping[str, Sequence[Labelled]]


def gesture_labels(gestures: Sequence[Gesture], centres_s: np.ndarray) -> np.ndarray:
    """The articulators (T,) that the gesture at each frame's centre controls.

    Of several gestures the consonant counts rather than the vowel, which controls all articulators,
    and then the one that begins last. Phones that control the same articulators are the same
    gesture; `rest` is none.
    """
    bound = defaultdict(list)
    for gesture in gestures:
        if gesture.weight == 1:
            bound[gesture.start_s, gesture.end_s, gesture.phone].append(gesture.channel)
    vowels_first = sorted(bound, key=lambda key: (len(bound[key]) < len(ARTICULATORS), key))
    labels = np.full(len(centres_s), REST, dtype=object)
    for start_s, end_s, phone in vowels_first:
        active = (start_s <= centres_s) & (centres_s < end_s)
        labels[active] = " ".join(bound[start_s, end_s, phone])
    return labels.astype(str)


def labelled(
    features: np.ndarray, times: np.ndarray | None, phones: list[Phone], gestures: list[Gesture]
) -> Labelled:
    """Features (T, 14) with the labels at the middle of each frame's time."""
    centres_s = frame_times(len(features), times).mean(1, dtype=np.float64)
    phone = np.array([phone.label for phone in phones])[phone_at(phones, centres_s)]
    return Labelled(features, {"phone": phone, "gesture": gesture_labels(gestures, centres_s)})


def read_split(
    split: str, folder: str | Path | None, recursive: bool = True, most: int | None = None
) -> list[Labelled]:
    """Utterances of a folder that demo-data wrote or, without a folder, of the demo data.

    most: how many at most, the first ones. Raises UserError.
    """
    if not folder:
        spoken = generate(split)[:most]
        return [labelled(u.features, u.times, u.phones, u.gestures) for u in spoken]
    return [
        labelled(read_features(file.path), read_times(file.path), *read_score(file.path))
        for file in find_features(folder, recursive)[:most]
    ]


def read_splits(data: Path | None) -> Splits:
    """Train, val and test of a tree that demo-data wrote, or of the demo data. Raises UserError."""
    return {split: read_split(split, data and data / split) for split in SPLITS}
