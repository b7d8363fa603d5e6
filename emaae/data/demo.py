"""What can be trained on when no recordings are at hand? A generated corpus of speech.

A score of overlapping gestures drives twelve articulators through task dynamics (Saltzman & Munhall
1989, Ecological Psychology 1:333-382); loudness and pitch follow from the same phones. The corpus
has the layout, the names and, scaled, the durations of LibriSpeech features. What recordings lack,
it has: the score, which is the ground truth for probes.

The way down this file: score, movement, speaker, frames.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage, signal

from emaae.config import read_json
from emaae.data.features import ARTICULATORS, frame_times
from emaae.errors import BadFile, UserError
from emaae.progress import progress

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = 320
WINDOW_SAMPLES = 400
FRAME_S = 0.020

# The first simulated instant is at .5 ms, so that every frame centre, (320 i + 200) / 16000 s, is
# itself an instant of the simulation: number 6, 16, 26, ...
STEP_S = 0.002
FIRST_INSTANT_S = 0.0005
FIRST_FRAME_STEP = 6
STEPS_PER_FRAME = 10

MIN_DURATION_S = 0.4  # the shortest utterance that holds a syllable and silence on both sides

RAMP_S = 0.030
CONSONANT_LEAD_S = 0.050
# (strength, natural frequency in Hz) of the gestures of each kind
VOWEL_DYNAMICS = (1.0, 6.0)
CONSONANT_DYNAMICS = (8.0, 12.0)
NEUTRAL_DYNAMICS = (0.06, 2.0)
LOW_PASS = signal.butter(5, 10, fs=1 / STEP_S, output="sos")

LOUDNESS_SMOOTHING_S = 0.040
ACCENT_PROBABILITY = 1 / 3  # of a vowel
ACCENT_S = 0.25
WANDER_CORRELATION = 0.9  # of the pitch in pauses, from one frame to the next

CHAPTER_UTTERANCES = 5
UTTERANCES_AT_ONCE = 32  # bounds memory; each utterance is the same whatever its neighbours

# Brings the 12 articulators of the default corpus to a standard deviation of about 1. A constant,
# not a measurement of the corpus: an utterance must not depend on which others are asked for.
POSITION_SCALE = 1.48


class Recipe(NamedTuple):
    """How much of one split is generated unless told otherwise, and how long its utterances are."""

    speakers: Sequence[int]
    n_utterances: int
    durations_s: tuple[float, ...]  # LibriSpeech's, at the quantiles of DURATION_QUANTILES


class Corpus(NamedTuple):
    """What to generate: a recipe for each split, and a factor of all durations."""

    splits: Mapping[str, Recipe]
    scale: float


DURATION_QUANTILES = (0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0)
TRAIN_CLEAN_100 = (1.41, 4.24, 11.62, 14.00, 15.16, 16.08, 24.52)
DEV_CLEAN = (1.44, 2.37, 3.76, 5.92, 9.27, 16.41, 32.65)
TEST_CLEAN = (1.28, 2.31, 3.68, 5.79, 9.60, 17.84, 34.96)

SPLITS: Mapping[str, Recipe] = {
    "train": Recipe(range(101, 109), 64, TRAIN_CLEAN_100),
    "val": Recipe(range(201, 205), 28, DEV_CLEAN),
    "test": Recipe(range(301, 305), 28, TEST_CLEAN),
}
CORPORA: Mapping[str, Corpus] = {
    "demo": Corpus(SPLITS, scale=0.3),
    # As many utterances and speakers as LibriSpeech has, as long as they are there.
    "librispeech-100h": Corpus(
        {
            "train": Recipe(range(1001, 1252), 28_539, TRAIN_CLEAN_100),
            "val": Recipe(range(2001, 2041), 2_703, DEV_CLEAN),
            "test": Recipe(range(3001, 3041), 2_620, TEST_CLEAN),
        },
        scale=1.0,
    ),
}

# Vowels set every articulator: millimetres from rest, means of eight speakers.
VOWEL_TARGETS_MM = """
      TDX  TDY  TBX  TBY  TTX  TTY  LIX  LIY  ULX  ULY  LLX  LLY
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

# Consonants set only the articulators that they use, in standard deviations from rest. Those before
# the bar make the constriction and are set with weight 1; those after it follow, with
# FOLLOWER_WEIGHT, which was chosen for the correlations between neighbours in recordings.
CONSONANT_TARGETS = """
B P M   ULY -1.7 ULX -0.8 LLY 1.1 LLX -0.9 | LIY 0.6 LIX -0.6
F V     LLX 1.4 LLY 0.7                    |
T D N   TTY 1.2                            | TTX -0.2 TBX -0.2 LIY 0.8 LIX -0.6
S Z     TTY 0.8                            | TBX -0.4 LIY 1.2 LIX -1.3
SH      TTX 0.6 TTY 0.8 TBY 1.2            | LIY 1.2 LIX -1.4 ULX -0.7 LLX -0.7
DH      TTX -1.3                           | TBX -1.0 TDX -0.9
K G NG  TDY 1.9                            | TBY 1.4 TDX -0.4 TBX -0.6
L       TTY 0.5 TTX -0.6 TBY -1.0          | TDX 0.4
R       TTX 1.8 TTY 0.9 TBX 1.8 TDX 1.5    | ULX -0.6
W       ULX -1.4 LLX -1.6 ULY -1.2 LLY 0.9 TDY 0.8 |
"""
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
LOUDNESS = {phone: level for k, level in LOUDNESS_BY_CLASS.items() for phone in k.split()}
VOICELESS = {"P", "T", "K", "F", "S", "SH", SILENCE}


class _Posture(NamedTuple):
    """What a phone wants: target (12,) in standard deviations from rest, weight (12,) 0..1."""

    target: np.ndarray
    weight: np.ndarray


def _vowels(table: str) -> dict[str, _Posture]:
    header, *rows = (line.split() for line in table.strip().splitlines())
    assert tuple(header) == ARTICULATORS
    return {
        phone: _Posture(np.array(mm, dtype=float) / SD_MM, np.ones(len(ARTICULATORS)))
        for phone, *mm in rows
    }


def _consonants(table: str) -> dict[str, _Posture]:
    postures = {}
    for line in table.strip().splitlines():
        posture = _Posture(np.zeros(len(ARTICULATORS)), np.zeros(len(ARTICULATORS)))
        phones, weight = [], 1.0
        words = iter(line.split())
        for word in words:
            if word == "|":
                weight = FOLLOWER_WEIGHT
            elif word in ARTICULATORS:
                posture.target[ARTICULATORS.index(word)] = float(next(words))
                posture.weight[ARTICULATORS.index(word)] = weight
            else:
                phones.append(word)
        postures.update(dict.fromkeys(phones, posture))
    return postures


VOWELS = _vowels(VOWEL_TARGETS_MM)
CONSONANTS = _consonants(CONSONANT_TARGETS)
# As in English: no syllable begins with NG, none ends with W.
ONSETS = tuple(phone for phone in CONSONANTS if phone != "NG")
CODAS = tuple(phone for phone in CONSONANTS if phone != "W")


class Phone(NamedTuple):
    """One segment; an utterance's phones follow each other without gaps."""

    label: str
    start_s: float
    end_s: float


class Gesture(NamedTuple):
    """One articulator's pull towards one target while a phone asks for it.

    target: where this gesture alone would bring the speaker's articulator, in the z-scores of
        `features`.
    weight: 0..1, how much this articulator, of those that the phone uses, is bound to its target.
    start_s, end_s: where the activation is half way up and half way down. A consonant's gestures
        begin before the phone is heard; a vowel's last until the next vowel.
    """

    channel: str
    phone: str
    target: float
    weight: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Utterance:
    """One generated utterance.

    name: path below the split's folder, without suffix: `103/103000/103-103000-0000`.
    features: (T, 14) float32 at 50 Hz; 0..11 are ARTICULATORS in z-scores (Y grows upwards, X
        backwards), 12 is loudness (mean absolute value of the z-scored waveform, >= 0), 13 is pitch
        in Hz (50..550, arbitrary where unvoiced).
    times: (T, 2) float32, start and end of each frame in seconds, both strictly increasing.
    phones, gestures: the score, in order of time.
    """

    name: str
    features: np.ndarray
    times: np.ndarray
    phones: list[Phone]
    gestures: list[Gesture]


@dataclass(frozen=True)
class _Speaker:
    number: int
    transform: np.ndarray  # (12, 12): features = movement @ transform + offset
    offset: np.ndarray  # (12,)
    rate: float  # phone durations are divided by it
    pitch_hz: float


@dataclass(frozen=True)
class _Token:
    """One phone's gestures: which articulators it pulls, where to, how hard, from when to when."""

    phone: str
    target: np.ndarray  # (12,) standard deviations from rest
    weight: np.ndarray  # (12,) 0..1, 0 where the phone leaves the articulator alone
    strength: float
    frequency_hz: float
    start_s: float
    end_s: float


def generate(
    split: str,
    seed: int = 0,
    n_utterances: int | None = None,
    scale: float | None = None,
    like: str = "demo",
) -> list[Utterance]:
    """The utterances of one split; the same arguments give the same numbers.

    split: train, val or test.
    seed: >= 0; another seed gives other speakers and other sentences, of the same kind.
    n_utterances: > 0, the corpus's number unless given. Fewer are the first of more, unchanged.
    scale: > 0, the corpus's unless given (.3 for the demo); multiplies LibriSpeech's durations,
        12.7 s on average in train and 7.4 s elsewhere.
    like: a key of CORPORA.
    """
    parts = _parts(split, seed, n_utterances, scale, like)
    return [utterance for part in parts for utterance in part.generate()]


class _Part(NamedTuple):
    """Some utterances of a split: numbers first, first + 1, ... as many as there are durations."""

    split: str
    speakers: Sequence[int]
    seed: int
    first: int
    durations_s: list[float]

    def generate(self) -> list[Utterance]:
        """Made together, each as it would be alone."""
        speakers: dict[int, _Speaker] = {}
        drafts = []
        for i, duration_s in enumerate(self.durations_s, self.first):
            # Neighbours have different speakers: a few utterances already span the speakers.
            number = self.speakers[i % len(self.speakers)]
            speaker = speakers.setdefault(number, _speaker(number, self.seed))
            rng = _rng(self.seed, self.split, "utterance", i)
            phones = _score(rng, duration_s, speaker.rate)
            tokens = _tokens(rng, phones)
            name = _name(number, i // len(self.speakers))
            drafts.append((name, rng, speaker, phones, tokens))
        movements = _move([tokens for *_, tokens in drafts], self.durations_s)
        pairs = zip(drafts, movements, strict=True)
        return [_utterance(*draft, movement) for draft, movement in pairs]


def _parts(
    split: str, seed: int, n_utterances: int | None, scale: float | None, like: str
) -> list[_Part]:
    """A split in parts that can be made in any order, by any process."""
    corpus = CORPORA[like]
    if split not in corpus.splits:
        raise ValueError(f"split must be one of {', '.join(corpus.splits)}, got {split!r}")
    recipe = corpus.splits[split]
    n_utterances = recipe.n_utterances if n_utterances is None else n_utterances
    scale = corpus.scale if scale is None else scale
    if n_utterances <= 0:
        raise ValueError(f"n_utterances must be at least 1, got {n_utterances}")
    if not 0 < scale < np.inf:
        raise ValueError(f"scale must be a positive factor such as 0.3 or 1, got {scale}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    durations_s = _durations(split, seed, n_utterances, scale, recipe.durations_s)
    return [
        _Part(split, recipe.speakers, seed, i, durations_s[i : i + UTTERANCES_AT_ONCE].tolist())
        for i in range(0, n_utterances, UTTERANCES_AT_ONCE)
    ]


def write_tree(
    out_dir: str | Path,
    seed: int = 0,
    n_utterances: int | None = None,
    scale: float | None = None,
    like: str = "demo",
    jobs: int = 1,
) -> dict[str, dict[str, int]]:
    """Write train, val and test below `out_dir`, and count what was written.

    Per utterance: `<split>/<name>.npz` (key `features`), `<split>/<name>_times.npz` (key `times`)
    and `<split>/<name>_score.json` (`phones` and `gestures`, lists of objects). Arguments are
    those of `generate`, `n_utterances` for each split; jobs: processes. Repeating it gives the same
    bytes, whatever the jobs; files of other names are left alone. Memory holds a few utterances.

    Returns split -> {"speakers", "utterances", "frames"}.
    """
    counts = {}
    with contextlib.ExitStack() as stack:
        each = map if jobs == 1 else stack.enter_context(ProcessPoolExecutor(jobs)).map
        for split in SPLITS:
            parts = _parts(split, seed, n_utterances, scale, like)
            written = each(_write, parts, [Path(out_dir)] * len(parts))
            total = sum(len(part.durations_s) for part in parts)
            shown = progress(
                written,
                f"writing {split}",
                total=total,
                unit="utterances",
                size=lambda w: len(w[1]),
            )
            speakers, frames = zip(*shown)
            counts[split] = {
                "speakers": len(set().union(*speakers)),
                "utterances": total,
                "frames": sum(map(sum, frames)),
            }
    return counts


def _write(part: _Part, out_dir: Path) -> tuple[set[str], list[int]]:
    """Write a part; returns its speakers and the frames of each utterance."""
    utterances = part.generate()
    for utterance in utterances:
        path = out_dir / part.split / utterance.name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(f"{path}.npz", features=utterance.features)
        np.savez(f"{path}_times.npz", times=utterance.times)
        score = {
            "phones": [phone._asdict() for phone in utterance.phones],
            "gestures": [gesture._asdict() for gesture in utterance.gestures],
        }
        Path(f"{path}_score.json").write_text(json.dumps(score) + "\n")
    speakers = {utterance.name.split("/")[0] for utterance in utterances}
    return speakers, [len(utterance.features) for utterance in utterances]


def read_score(path: str | Path) -> tuple[list[Phone], list[Gesture]]:
    """Phones and gestures of the utterance whose features are in the file at `path`. UserError."""
    score = Path(f"{str(path).removesuffix('.npz')}_score.json")
    if not score.is_file():
        raise UserError(
            f"{path} has no {score.name} beside it: phones and gestures are known of generated "
            "speech alone; expected a tree that `python -m emaae demo-data --out DIR` wrote"
        )
    found = read_json(score)
    try:
        phones = [Phone(**entry) for entry in found["phones"]]
        gestures = [Gesture(**entry) for entry in found["gestures"]]
        numbers = [(phone.start_s, phone.end_s) for phone in phones]
        numbers += [(gesture.start_s, gesture.end_s) for gesture in gestures]
        words = [phone.label for phone in phones]
        words += [word for gesture in gestures for word in (gesture.channel, gesture.phone)]
        usable = bool(phones) and all(isinstance(word, str) for word in words)
        usable = usable and np.isfinite(np.array(numbers, dtype=float)).all()
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise BadFile(
            f"{score} is not a score as `python -m emaae demo-data` writes it: expected phones and "
            "gestures with their times; write the tree again"
        )
    return phones, gestures


def _rng(seed: int, *stream: str | int) -> np.random.Generator:
    """An independent generator for each named stream of random numbers."""
    words = [
        int.from_bytes(word.encode(), "big") if isinstance(word, str) else word for word in stream
    ]
    return np.random.default_rng([seed, *words])


def _name(speaker: int, number: int) -> str:
    """LibriSpeech's speaker/chapter/speaker-chapter-number, CHAPTER_UTTERANCES to a chapter."""
    chapter = 1000 * speaker + number // CHAPTER_UTTERANCES
    return f"{speaker}/{chapter}/{speaker}-{chapter}-{number % CHAPTER_UTTERANCES:04d}"


def _durations(
    split: str, seed: int, n_utterances: int, scale: float, quantiles_s: Sequence[float]
) -> np.ndarray:
    """(n_utterances,) seconds by the inverse of LibriSpeech's distribution, times a scale.

    The probabilities step by the golden ratio: any first n of them cover 0..1 evenly, so that even
    a small corpus has LibriSpeech's durations and, nearly, its total.
    """
    start = _rng(seed, split, "durations").uniform()
    probability = (start + np.arange(n_utterances) * (np.sqrt(5) - 1) / 2) % 1
    durations_s = np.interp(probability, DURATION_QUANTILES, quantiles_s)
    return np.maximum(scale * durations_s, MIN_DURATION_S)


def _speaker(number: int, seed: int) -> _Speaker:
    """Speakers with an odd number are men."""
    rng = _rng(seed, "speaker", number)
    n = len(ARTICULATORS)
    mixing = np.eye(n) + 0.05 * rng.standard_normal((n, n))
    return _Speaker(
        number,
        transform=POSITION_SCALE * mixing * rng.lognormal(0, 0.15, n),
        offset=POSITION_SCALE * rng.normal(0, 0.2, n),
        rate=1.2 * rng.lognormal(0, 0.12),
        pitch_hz=(115 if number % 2 else 205) * rng.lognormal(0, 0.12),
    )


def _score(rng: np.random.Generator, duration_s: float, rate: float) -> list[Phone]:
    """Phones that fill 0..duration_s: phrases of syllables, pauses, silence at both ends."""
    margin_s = duration_s / 5  # a very short utterance still has room to speak
    lead_s, tail_s = np.minimum(rng.uniform(0.2, 0.5, 2), margin_s).tolist()
    speech_s = duration_s - lead_s - tail_s

    syllables, total_s, left_in_phrase = [], 0.0, rng.integers(3, 10)
    while total_s < speech_s:
        syllable = []
        if left_in_phrase == 0:
            left_in_phrase = rng.integers(3, 10)
            if rng.uniform() < 0.35:
                syllable.append((SILENCE, rng.lognormal(np.log(0.3), 0.4)))
        left_in_phrase -= 1
        syllable.append((rng.choice(ONSETS), rng.lognormal(np.log(0.075), 0.35) / rate))
        syllable.append((rng.choice(tuple(VOWELS)), rng.lognormal(np.log(0.090), 0.45) / rate))
        if rng.uniform() < 0.4:
            syllable.append((rng.choice(CODAS), rng.lognormal(np.log(0.070), 0.35) / rate))
        syllables.append(syllable)
        total_s += sum(length_s for _, length_s in syllable)

    # The plan is stretched to the time available, which leaves the speaking rate unbiased only if
    # it is as often too short as too long.
    last_s = sum(length_s for _, length_s in syllables[-1])
    if len(syllables) > 1 and total_s - speech_s > last_s / 2:
        syllables.pop()
        total_s -= last_s
    stretch = speech_s / total_s

    phones = [Phone(SILENCE, 0.0, lead_s)]
    for label, length_s in (segment for syllable in syllables for segment in syllable):
        start_s = phones[-1].end_s
        phones.append(Phone(str(label), start_s, start_s + stretch * length_s))
    phones.append(Phone(SILENCE, phones[-1].end_s, duration_s))
    return phones


def _tokens(rng: np.random.Generator, phones: list[Phone]) -> list[_Token]:
    """What each phone of the score asks of the articulators; silence asks for nothing."""
    tokens = []
    for i, (label, start_s, end_s) in enumerate(phones):
        if label == SILENCE:
            continue
        if label in VOWELS:
            # Consonants are superimposed on a continuous movement from vowel to vowel.
            end_s = next(p.start_s for p in phones[i + 1 :] if p.label in (*VOWELS, SILENCE))
            posture, dynamics = VOWELS[label], VOWEL_DYNAMICS
        else:
            start_s -= CONSONANT_LEAD_S
            posture, dynamics = CONSONANTS[label], CONSONANT_DYNAMICS
        target = posture.target + rng.normal(0, 0.2, len(ARTICULATORS))
        tokens.append(_Token(label, target, posture.weight, *dynamics, start_s, end_s))
    return tokens


def _move(tokens: list[list[_Token]], durations_s: list[float]) -> list[np.ndarray]:
    """Movement of several utterances: (instants, 12) each, in standard deviations from rest.

    Saltzman & Munhall (1989): each articulator is a critically damped mass on a spring,

        x'' = -w^2 (x - x0) - 2 w x'

    whose stiffness w^2 and rest position x0 are means over the active gestures, each counted with
    its activation x strength x weight. A weak neutral gesture is always active.
    """
    n_instants = [int(duration_s / STEP_S) for duration_s in durations_s]
    shape = (max(n_instants), len(tokens), len(ARTICULATORS))
    strength, frequency_hz = NEUTRAL_DYNAMICS
    weight = np.full(shape, strength)
    stiffness = np.full(shape, strength * (2 * np.pi * frequency_hz) ** 2)
    target = np.zeros(shape)
    for utterance, utterance_tokens in enumerate(tokens):
        for token in utterance_tokens:
            first = max(0, int((token.start_s - RAMP_S) / STEP_S))
            last = min(shape[0], int((token.end_s + RAMP_S) / STEP_S))
            instants_s = FIRST_INSTANT_S + STEP_S * np.arange(first, last)
            activation = _activation(instants_s, token.start_s, token.end_s)
            pull = token.strength * np.outer(activation, token.weight)
            weight[first:last, utterance] += pull
            target[first:last, utterance] += pull * token.target
            stiffness[first:last, utterance] += pull * (2 * np.pi * token.frequency_hz) ** 2
    target /= weight
    stiffness /= weight

    positions = _integrate(target, stiffness)
    return [positions[:n, i] for i, n in enumerate(n_instants)]


def _activation(instants_s: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """0..1, with raised-cosine ramps that are half way up at start_s and half way down at end_s.

    Where one vowel's ramp meets the next one's, the two add up to 1.
    """
    up = np.clip((instants_s - start_s) / RAMP_S, -0.5, 0.5)
    down = np.clip((end_s - instants_s) / RAMP_S, -0.5, 0.5)
    return (1 + np.sin(np.pi * up)) * (1 + np.sin(np.pi * down)) / 4


def _integrate(target: np.ndarray, stiffness: np.ndarray) -> np.ndarray:
    """Positions (instant, utterance, channel) of damped springs that start at rest (0).

    Semi-implicit Euler: velocity first, then position with the new velocity.
    """
    damping = 2 * np.sqrt(stiffness)
    positions = np.empty_like(target)
    x = np.zeros(target.shape[1:])
    velocity = np.zeros(target.shape[1:])
    for step in range(len(target)):
        velocity -= STEP_S * (stiffness[step] * (x - target[step]) + damping[step] * velocity)
        x += STEP_S * velocity
        positions[step] = x
    return positions


def _utterance(
    name: str,
    rng: np.random.Generator,
    speaker: _Speaker,
    phones: list[Phone],
    tokens: list[_Token],
    movement: np.ndarray,
) -> Utterance:
    """What a speaker's articulators, voice and microphone show of one movement (instants, 12)."""
    n_samples = round(phones[-1].end_s * SAMPLE_RATE_HZ)
    n_frames = (n_samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1
    centres_s = (HOP_SAMPLES * np.arange(n_frames) + WINDOW_SAMPLES / 2) / SAMPLE_RATE_HZ
    at_frames = slice(
        FIRST_FRAME_STEP, FIRST_FRAME_STEP + n_frames * STEPS_PER_FRAME, STEPS_PER_FRAME
    )

    # Sensor noise whose density does not depend on the step: .04 at a step of one frame.
    noise = rng.normal(0, 0.04 * np.sqrt(FRAME_S / STEP_S), movement.shape)
    smooth = signal.sosfiltfilt(LOW_PASS, movement + noise, axis=0)[at_frames]

    articulators = smooth @ speaker.transform + speaker.offset
    loudness = _loudness(phones, len(movement))[at_frames]
    # The waveform is z-scored, and a normal variable's rms is 1.25 times its mean absolute value.
    loudness /= 1.25 * np.sqrt(np.mean(loudness**2))
    pitch_hz = _pitch(rng, phones, centres_s, speaker.pitch_hz)

    features = np.column_stack([articulators, loudness, pitch_hz])
    gestures = [
        Gesture(
            ARTICULATORS[i],
            token.phone,
            float(targets[i]),
            float(token.weight[i]),
            token.start_s,
            token.end_s,
        )
        for token in tokens
        for targets in [token.target * np.diag(speaker.transform) + speaker.offset]
        for i in np.flatnonzero(token.weight)
    ]
    return Utterance(name, features.astype(np.float32), frame_times(n_frames), phones, gestures)


def _loudness(phones: list[Phone], n_instants: int) -> np.ndarray:
    """(n_instants,) relative amplitude: one level per kind of sound, smoothed."""
    instants_s = FIRST_INSTANT_S + STEP_S * np.arange(n_instants)
    levels = np.array([LOUDNESS[phone.label] for phone in phones])
    levels = levels[phone_at(phones, instants_s)]
    return ndimage.uniform_filter1d(levels, round(LOUDNESS_SMOOTHING_S / STEP_S), mode="nearest")


def _pitch(
    rng: np.random.Generator, phones: list[Phone], centres_s: np.ndarray, base_hz: float
) -> np.ndarray:
    """(T,) Hz at the frame centres, from semitones relative to the speaker's base.

    Declination over each stretch between pauses after 't Hart, Collier & Cohen (1990), A Perceptual
    Study of Intonation. Frames without voice get what a pitch tracker makes of them: arbitrary
    values between 50 and 550, never 0.
    """
    n_frames = len(centres_s)
    semitones = np.zeros(n_frames)
    pauses = [phone for phone in phones if phone.label == SILENCE]
    for before, after in pairwise(pauses):
        length_s = after.start_s - before.end_s
        slope = -11 / (length_s + 1.5) if length_s < 5 else -8.5 / length_s
        inside = (centres_s >= before.end_s) & (centres_s < after.start_s)
        semitones[inside] = slope * (centres_s[inside] - (before.end_s + after.start_s) / 2)
    for label, start_s, end_s in phones:
        if label in VOWELS and rng.uniform() < ACCENT_PROBABILITY:
            distance = np.clip((centres_s - (start_s + end_s) / 2) / ACCENT_S, -0.5, 0.5)
            semitones += rng.uniform(2, 5) * np.cos(np.pi * distance)
    semitones += rng.normal(0, 0.3, n_frames)

    labels = np.array([phone.label for phone in phones])[phone_at(phones, centres_s)]
    silent = labels == SILENCE
    voiceless = np.isin(labels, list(VOICELESS)) & ~silent
    voiced = ~voiceless & ~silent
    if voiced.any():
        semitones[voiceless] = np.interp(
            centres_s[voiceless], centres_s[voiced], semitones[voiced]
        ) + rng.normal(0, 1, voiceless.sum())

    innovation = rng.normal(0, 4 * np.sqrt(1 - WANDER_CORRELATION**2), n_frames)
    # Wandering began before the first frame, so that one has the full spread of 4 semitones too.
    innovation[0] /= np.sqrt(1 - WANDER_CORRELATION**2)
    wander = signal.lfilter([1], [1, -WANDER_CORRELATION], innovation)
    semitones[silent] = wander[silent]
    return np.clip(base_hz * 2 ** (semitones / 12), 50, 550)


def phone_at(phones: Sequence[Phone], instants_s: np.ndarray) -> np.ndarray:
    """Index of the phone that contains each instant, the last one's beyond the end."""
    ends_s = np.array([phone.end_s for phone in phones])
    return np.minimum(np.searchsorted(ends_s, instants_s, side="right"), len(phones) - 1)
