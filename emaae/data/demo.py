"""A generated corpus of speech, to train on when no recordings are at hand.

A score of overlapping gestures drives twelve articulators through task dynamics (Saltzman & Munhall
1989, Ecological Psychology 1:333-382); loudness and pitch follow from the same phones. The corpus
has the layout, the names and, scaled, the durations of LibriSpeech features. What recordings lack,
it has: the score, which is the ground truth for probes. What each phone asks for stands in
phones.py, how an utterance is made of it in synthesis.py.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emaae.data.phones import (
    Gesture,
    Phone,
)
from emaae.data.synthesis import (
    Speaker,
    Utterance,
    draw_score,
    draw_speaker,
    gestures_of,
    make_utterance,
    move,
    random_of,
)
from emaae.system.errors import BadFile, UserError
from emaae.system.files import read_json
from emaae.system.progress import progress

MIN_DURATION_S = 0.4  # the shortest utterance that holds a syllable and silence on both sides

CHAPTER_UTTERANCES = 5
UTTERANCES_AT_ONCE = 32  # bounds memory; each utterance is the same whatever its neighbours


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
        speakers: dict[int, Speaker] = {}
        drafts = []
        for i, duration_s in enumerate(self.durations_s, self.first):
            # Neighbours have different speakers: a few utterances already span the speakers.
            number = self.speakers[i % len(self.speakers)]
            speaker = speakers.setdefault(number, draw_speaker(number, self.seed))
            rng = random_of(self.seed, self.split, "utterance", i)
            phones = draw_score(rng, duration_s, speaker.rate)
            tokens = gestures_of(rng, phones)
            name = _name(number, i // len(self.speakers))
            drafts.append((name, rng, speaker, phones, tokens))
        movements = move([tokens for *_, tokens in drafts], self.durations_s)
        pairs = zip(drafts, movements, strict=True)
        return [make_utterance(*draft, movement) for draft, movement in pairs]


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
    start = random_of(seed, split, "durations").uniform()
    probability = (start + np.arange(n_utterances) * (np.sqrt(5) - 1) / 2) % 1
    durations_s = np.interp(probability, DURATION_QUANTILES, quantiles_s)
    return np.maximum(scale * durations_s, MIN_DURATION_S)
