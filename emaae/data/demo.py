"""A generated corpus of speech, to train on without recordings.

A score of overlapping gestures drives twelve articulators by task dynamics (Saltzman & Munhall
1989, Ecological Psychology 1:333-382); loudness and pitch follow from the same phones. The corpus
has the layout, the names and, scaled, the durations of LibriSpeech features. Unlike recordings it
has the score, which is the ground truth for probes. phones.py defines the targets of each phone,
synthesis.py makes utterances from them.
"""

import itertools
import json
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emaae.data import synthesis
from emaae.data.features import FRAME_RATE_HZ
from emaae.data.npz import MAX_FRAMES
from emaae.data.phones import Gesture, Phone
from emaae.system.errors import BadFile, UserError
from emaae.system.files import read_json
from emaae.system.progress import progress
from emaae.system.signals import end_with_parent

MIN_DURATION_S = 0.4  # of an utterance: a syllable with silence on both sides

UTTERANCES_PER_CHAPTER = 5
# Simulated together are at most so many utterances and, unless there is only one, seconds in all.
# This bounds memory, and changes no utterance.
CHUNK_UTTERANCES, CHUNK_S = 32, 1200.0


class Recipe(NamedTuple):
    """The speakers of a split, and its default number and durations of utterances."""

    speakers: Sequence[int]
    n_utterances: int
    durations_s: tuple[float, ...]  # LibriSpeech's, at the quantiles of DURATION_QUANTILES
    scale: float = 1.0  # multiplies all durations


DURATION_QUANTILES = (0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0)
TRAIN_CLEAN_100 = (1.41, 4.24, 11.62, 14.00, 15.16, 16.08, 24.52)
DEV_CLEAN = (1.44, 2.37, 3.76, 5.92, 9.27, 16.41, 32.65)
TEST_CLEAN = (1.28, 2.31, 3.68, 5.79, 9.60, 17.84, 34.96)

CORPORA: Mapping[str, Mapping[str, Recipe]] = {
    "demo": {
        "train": Recipe(range(101, 109), 64, TRAIN_CLEAN_100, scale=0.3),
        "val": Recipe(range(201, 205), 28, DEV_CLEAN, scale=0.3),
        "test": Recipe(range(301, 305), 28, TEST_CLEAN, scale=0.3),
    },
    # The numbers of speakers and utterances of LibriSpeech, and its durations.
    "librispeech-100h": {
        "train": Recipe(range(1001, 1252), 28_539, TRAIN_CLEAN_100),
        "val": Recipe(range(2001, 2041), 2_703, DEV_CLEAN),
        "test": Recipe(range(3001, 3041), 2_620, TEST_CLEAN),
    },
}


def generate(
    split: str,
    seed: int = 0,
    n_utterances: int | None = None,
    scale: float | None = None,
    like: str = "demo",
) -> list[synthesis.GeneratedUtterance]:
    """The utterances of one split; the same arguments give the same numbers.

    split: train, val or test.
    seed: >= 0; another seed gives other speakers and other sentences of the same kind.
    n_utterances: > 0 (default: that of the corpus); a smaller number gives the first utterances of
        a larger one.
    scale: > 0 (default: that of the corpus, .3 for the demo); multiplies LibriSpeech's durations,
        on average 12.7 s in train, 7.6 s in val and 7.9 s in test.
    like: a key of CORPORA.

    Raises ValueError for an unknown split, and UserError for utterances of over four hours.
    """
    parts = _chunks(split, seed, n_utterances, scale, like)
    return [utterance for part in parts for utterance in part.generate()]


class _Chunk(NamedTuple):
    """Some utterances of a split: numbers first, first + 1, ..., one for each duration."""

    split: str
    speakers: Sequence[int]
    seed: int
    first: int
    durations_s: list[float]

    def generate(self) -> list[synthesis.GeneratedUtterance]:
        """The utterances. They are simulated together, without effect on each other."""
        drafts = []
        for i, duration_s in enumerate(self.durations_s, self.first):
            # Speakers take turns, so that a few utterances already cover all of them.
            number = self.speakers[i % len(self.speakers)]
            speaker = synthesis.draw_speaker(number, self.seed)
            rng = synthesis.random_stream(self.seed, self.split, "utterance", i)
            phones = synthesis.draw_phones(rng, duration_s, speaker.rate)
            tokens = synthesis.plan_gestures(rng, phones)
            name = _name(number, i // len(self.speakers))
            drafts.append(synthesis.Draft(name, rng, speaker, phones, tokens))
        return list(map(synthesis.make_utterance, drafts, synthesis.simulate_movement(drafts)))


def _chunks(
    split: str, seed: int, n_utterances: int | None, scale: float | None, like: str
) -> list[_Chunk]:
    """A split in chunks, which any process can generate in any order. Raises as `generate`."""
    recipes = CORPORA[like]
    if split not in recipes:
        raise ValueError(f"split must be one of {', '.join(recipes)}, got {split!r}")
    recipe = recipes[split]
    n_utterances = recipe.n_utterances if n_utterances is None else n_utterances
    scale = recipe.scale if scale is None else scale
    # Durations are LibriSpeech's quantiles at `probability`, which advances by the golden ratio
    # modulo 1. The first n values cover 0..1 evenly for any n, so that small corpora, too, have
    # LibriSpeech's distribution and, nearly, its mean.
    start = synthesis.random_stream(seed, split, "durations").uniform()
    probability = (start + np.arange(n_utterances) * (np.sqrt(5) - 1) / 2) % 1
    durations_s = scale * np.interp(probability, DURATION_QUANTILES, recipe.durations_s)
    durations_s = np.maximum(durations_s, MIN_DURATION_S)
    longest_s = durations_s.max(initial=MIN_DURATION_S)
    if longest_s * FRAME_RATE_HZ > MAX_FRAMES:
        raise UserError(
            f"--scale {scale:g} gives utterances of {longest_s:g} s, expected at most 4 hours, as "
            "long as features may be: lower it"
        )
    size = max(1, min(CHUNK_UTTERANCES, int(CHUNK_S / longest_s)))
    return [
        _Chunk(split, recipe.speakers, seed, i, durations_s[i : i + size].tolist())
        for i in range(0, n_utterances, size)
    ]


def write_tree(
    out_dir: str | Path,
    seed: int = 0,
    n_utterances: int | None = None,
    scale: float | None = None,
    like: str = "demo",
    jobs: int = 1,
) -> dict[str, dict[str, int]]:
    """Write the splits train, val and test below `out_dir`; returns counts.

    Per utterance: `<split>/<name>.npz` (key `features`), `<split>/<name>_times.npz` (key `times`)
    and `<split>/<name>_score.json` (`phones` and `gestures`, lists of objects). Arguments as for
    `generate`; n_utterances: in each split; jobs: processes. The same arguments give the same
    bytes, for any jobs; files of other names are left alone. Memory holds a few utterances.

    Returns split -> {"speakers", "utterances", "frames"}. Raises UserError if a split contains
    features that were not generated, so that they are not mixed unnoticed.
    """
    for path in (p for split in CORPORA[like] for p in Path(out_dir, split).rglob("*.npz")):
        stem = str(path).removesuffix(".npz").removesuffix("_times")
        if not Path(f"{stem}_score.json").exists():
            raise UserError(f"{path} was not generated: do not mix the two, name another --out")
    chunks = {split: _chunks(split, seed, n_utterances, scale, like) for split in CORPORA[like]}
    counts = {}
    # Without their parent, the processes would wait for chunks forever.
    with ProcessPoolExecutor(jobs, initializer=end_with_parent, initargs=(signal.SIGKILL,)) as pool:
        each = map if jobs == 1 else pool.map
        for split, parts in chunks.items():
            done = progress(
                each(_write, parts, [Path(out_dir)] * len(parts)),
                f"writing {split}",
                total=sum(len(part.durations_s) for part in parts),
                unit="utterances",
                size=len,
            )
            speakers, n_frames = zip(*itertools.chain.from_iterable(done))
            sizes = {"speakers": len(set(speakers)), "utterances": len(n_frames)}
            counts[split] = sizes | {"frames": sum(n_frames)}
    return counts


def _write(part: _Chunk, out_dir: Path) -> list[tuple[str, int]]:
    """Write the utterances of a chunk; returns speaker and number of frames of each."""
    utterances = part.generate()
    for utterance in utterances:
        path = out_dir / part.split / utterance.name
        path.parent.mkdir(parents=True, exist_ok=True)
        phones = [phone._asdict() for phone in utterance.phones]
        gestures = [gesture._asdict() for gesture in utterance.gestures]
        score = json.dumps({"phones": phones, "gestures": gestures})
        Path(f"{path}_score.json").write_text(f"{score}\n")  # first: marks the others as generated
        np.savez(f"{path}.npz", features=utterance.features)
        np.savez(f"{path}_times.npz", times=utterance.times)
    return [(one.name.partition("/")[0], len(one.features)) for one in utterances]


def read_score(path: str | Path) -> tuple[list[Phone], list[Gesture]]:
    """Phones and gestures of the utterance with features at `path`. Raises UserError."""
    score = Path(f"{str(path).removesuffix('.npz')}_score.json")
    if not score.is_file():
        raise UserError(
            f"{path} has no {score.name} beside it: phones and gestures are known only for "
            "generated speech; expected a tree that `python -m emaae demo-data --out DIR` wrote"
        )
    found = read_json(score)
    try:
        phones = [Phone(**entry) for entry in found["phones"]]
        gestures = [Gesture(**entry) for entry in found["gestures"]]
    except (KeyError, TypeError):
        raise BadFile(
            f"{score} is not a score from `python -m emaae demo-data`: expected phones and "
            "gestures with their times; write the tree again"
        ) from None
    return phones, gestures


def _name(speaker: int, number: int) -> str:
    """A name like LibriSpeech's, speaker/chapter/speaker-chapter-number, from a running number."""
    chapter = 1000 * speaker + number // UTTERANCES_PER_CHAPTER
    return f"{speaker}/{chapter}/{speaker}-{chapter}-{number % UTTERANCES_PER_CHAPTER:04d}"
