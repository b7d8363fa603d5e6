"""The phones of generated speech: articulatory targets and loudness of each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emaae.data.features import ARTICULATORS

# Vowels have a target for every articulator: millimetres from rest, means of eight speakers, for
#     TDX  TDY  TBX  TBY  TTX  TTY  LIX  LIY  ULX  ULY  LLX  LLY
VOWEL_TARGETS_MM = """
IY   -2.7  5.0 -3.7  5.1 -3.2  1.5 -0.7  1.7  0.7  0.5  0.0 -0.1
IH   -1.3 -0.2 -1.3  1.0 -1.6  1.3 -0.4  1.2  0.6  0.4  0.2  0.3
EH    0.0 -3.4  0.2 -2.6 -0.1 -1.1  0.4 -1.3  0.9  0.3  1.2 -2.3
AE   -0.2 -3.3 -0.1 -4.3 -0.1 -4.5  1.2 -3.8  1.2  0.2  2.5 -5.0
AA    4.1 -4.2  4.6 -4.5  4.4 -2.8  1.3 -2.9 -0.4 -0.2  0.7 -2.5
AH    1.5 -4.3  1.4 -5.2  0.6 -2.1  0.4 -0.2  0.0  0.0 -0.1  0.2
AO    5.0 -1.8  5.7 -2.4  6.2 -2.5  1.0 -1.8 -1.2 -0.8 -0.4  0.3
UH    2.6  0.4  2.6  0.0  2.8 -0.2  0.0  1.5 -0.9  0.0 -0.6  1.5
UW   -0.2  3.0 -0.3  2.1 -0.2  0.6 -1.0  2.6 -1.3 -0.6 -1.9  4.1
"""
SD_MM = np.array([2.9, 4.6, 3.6, 4.1, 3.7, 3.0, 1.3, 2.0, 1.3, 1.4, 1.8, 3.1])

# Consonants have targets only for the articulators that they use, in standard deviations from rest.
# Articulators before the bar make the constriction and have weight 1; articulators after it follow
# passively and have FOLLOWER_WEIGHT, chosen to match the correlations between neighbouring
# articulators in recordings.
CONSONANT_TARGETS = {
    "B P M": "ULY -1.7 ULX -0.8 LLY 1.1 LLX -0.9 | LIY 0.6 LIX -0.6",
    "F V": "LLX 1.4 LLY 0.7",
    "T D N": "TTY 1.2 | TTX -0.2 TBX -0.2 LIY 0.8 LIX -0.6",
    "S Z": "TTY 0.8 | TBX -0.4 LIY 1.2 LIX -1.3",
    "SH": "TTX 0.6 TTY 0.8 TBY 1.2 | LIY 1.2 LIX -1.4 ULX -0.7 LLX -0.7",
    "DH": "TTX -1.3 | TBX -1.0 TDX -0.9",
    "K G NG": "TDY 1.9 | TBY 1.4 TDX -0.4 TBX -0.6",
    "L": "TTY 0.5 TTX -0.6 TBY -1.0 | TDX 0.4",
    "R": "TTX 1.8 TTY 0.9 TBX 1.8 TDX 1.5 | ULX -0.6",
    "W": "ULX -1.4 LLX -1.6 ULY -1.2 LLY 0.9 TDY 0.8",
}
FOLLOWER_WEIGHT = 0.15

SILENCE = "SIL"
LOUDNESS_BY_CLASS = {
    "IY IH EH AE AA AH AO UH UW": 1.0,
    "M N NG L R W": 0.55,
    "V Z DH": 0.30,
    "F S SH": 0.25,
    "P T K B D G": 0.05,
    SILENCE: 0.02,
}
PHONE_LOUDNESS = {phone: level for k, level in LOUDNESS_BY_CLASS.items() for phone in k.split()}
VOICELESS = ("P", "T", "K", "F", "S", "SH")


def _posture(row: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets (12,) and weights (12,) of a consonant, from a row of `CONSONANT_TARGETS`."""
    targets, weights = np.zeros((2, len(ARTICULATORS)))
    for part, weight in zip(row.split("|"), (1.0, FOLLOWER_WEIGHT)):
        words = part.split()
        for articulator, target in zip(words[::2], words[1::2]):
            i = ARTICULATORS.index(articulator)
            targets[i], weights[i] = float(target), weight
    return targets, weights


# For each phone: targets (12,) in standard deviations from rest, and weights (12,), 0..1.
VOWELS = {
    phone: (np.array(mm, dtype=float) / SD_MM, np.ones(len(ARTICULATORS)))
    for phone, *mm in map(str.split, VOWEL_TARGETS_MM.strip().splitlines())
}
CONSONANTS = {
    phone: _posture(row) for phones, row in CONSONANT_TARGETS.items() for phone in phones.split()
}
# As in English: no syllable begins with NG, and no syllable ends with W.
ONSETS = tuple(phone for phone in CONSONANTS if phone != "NG")
CODAS = tuple(phone for phone in CONSONANTS if phone != "W")


class Phone(NamedTuple):
    """One segment; an utterance's phones follow each other without gaps."""

    label: str
    start_s: float
    end_s: float


class Gesture(NamedTuple):
    """The movement of one articulator towards one target of a phone.

    target: the position that this gesture alone would reach, in the z-scores of `features`.
    weight: 0..1; 1 for a main articulator of the phone, FOLLOWER_WEIGHT for a passive one.
    start_s, end_s: when the activation is half way up and half way down. Gestures of a consonant
        begin before the phone; those of a vowel last until the next vowel or silence.
    """

    channel: str
    phone: str
    target: float
    weight: float
    start_s: float
    end_s: float


def phone_at(phones: Sequence[Phone], instants_s: np.ndarray) -> np.ndarray:
    """Index of the phone at each instant; the last phone after the end."""
    borders_s = [phone.end_s for phone in phones[:-1]]
    return np.searchsorted(borders_s, instants_s, side="right")
