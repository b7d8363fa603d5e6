"""Everything that is wrong with a tree of features, the worst first.

An error is what a run refuses, or what makes its numbers mean something else; a warning is what may
be meant.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emaae.data.features import (
    ARTICULATORS,
    CHANNELS,
    FRAME_RATE_HZ,
    HOP_SAMPLES,
    LOUDNESS_COLUMN,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    check_features,
    check_identity,
    find_features,
    read_times,
)
from emaae.data.npz import MAX_BYTES, load_npz
from emaae.data.reading import digest_of
from emaae.data.split import speaker_of
from emaae.system.errors import BadFile, one_line
from emaae.system.files import regular_file
from emaae.system.progress import progress

PITCH_HZ = (50, 550)
PITCH = CHANNELS.index("pitch")
LLX, LLY = CHANNELS.index("LLX"), CHANNELS.index("LLY")
# Standard deviations of z-scores over a corpus; millimetres and metres are beyond.
SCALE = (0.2, 3.0)
# Of LLX and LLY: -0.3 to -0.9 where X grows backwards, and as much above 0 where it does not.
MAX_LIP_CORRELATION = 0.1
# LibriSpeech's longest utterance has 35 s.
LONG_S = 60.0
# Shorter ones have fewer frames than the default encoder sees at once.
SHORT_FRAMES = 13
# Frames that rounding may add to or take from a duration.
SLACK_FRAMES = 2
# Findings of each kind that the report names.
EXAMPLES = 3

ERRORS = {
    "unreadable": "files that cannot be read",
    "columns": f"files that hold no matrix (T, {len(CHANNELS)})",
    "numbers": "files without frames, or with something else than finite numbers",
    "name": "names that cannot be used for files",
    "shared": "utterances that are in two directories",
    "loudness": "utterances with negative loudness: column 12 is something else",
}
WARNINGS = {
    "unused": "utterances with negative loudness, which runs read with --keep_loudness alone",
    "rate": f"utterances that do not have {FRAME_RATE_HZ} frames a second by their times",
    "sign": f"directories with r(LLX, LLY) > {MAX_LIP_CORRELATION}: X seems to grow forwards",
    "scale": f"directories with an articulator's sd beyond {SCALE[0]} to {SCALE[1]}: no z-scores",
    "pitch": f"utterances with pitch outside {PITCH_HZ[0]} to {PITCH_HZ[1]} Hz",
    "constant": "utterances with a channel that never moves",
    "speakers": "speakers that are in two directories",
    "twice": "utterances that are in one directory twice, under two names",
    "collision": "names that differ by case, Unicode form or folder alone",
    "times": "utterances whose times are neither [0, duration] in every row nor each frame's own",
    "missing": "utterances without times beside them",
    "short": f"utterances of less than {SHORT_FRAMES} frames, which the encoder sees at once",
    "long": f"utterances of more than {LONG_S:.0f} s",
}


@dataclass
class Tree:
    """The findings about one directory.

    keep_loudness: whether column 12 counts. n_files: of features. lengths: frames of each
    utterance that could be read. total (14,), products (14, 14): sums over frames of each channel,
    and of each channel times each.
    """

    root: Path
    keep_loudness: bool = False
    n_files: int = 0
    lengths: list[int] = field(default_factory=list)
    total: np.ndarray = field(default_factory=lambda: np.zeros(len(CHANNELS)))
    products: np.ndarray = field(default_factory=lambda: np.zeros((len(CHANNELS), len(CHANNELS))))
    low: np.ndarray = field(default_factory=lambda: np.full(len(CHANNELS), np.inf))
    high: np.ndarray = field(default_factory=lambda: np.full(len(CHANNELS), -np.inf))
    speakers: set[str] = field(default_factory=set)
    findings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def mean_and_sd(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel (14,); NaN without frames."""
        n = sum(self.lengths) or np.nan
        mean = self.total / n
        return mean, np.sqrt(np.maximum(np.diag(self.products) / n - mean**2, 0))

    def lip_correlation(self) -> float:
        """Pearson correlation of LLX and LLY over all frames; NaN when one never moves."""
        mean, sd = self.mean_and_sd()
        if not sd[LLX] * sd[LLY] > 0:
            return float("nan")
        covariance = self.products[LLX, LLY] / sum(self.lengths) - mean[LLX] * mean[LLY]
        return float(covariance / (sd[LLX] * sd[LLY]))

    def add(self, features: np.ndarray) -> None:
        """Count one utterance, features (T, 14)."""
        x = features.astype(np.float64)
        self.lengths.append(len(x))
        self.total += x.sum(0)
        self.products += x.T @ x
        self.low, self.high = np.minimum(self.low, x.min(0)), np.maximum(self.high, x.max(0))


def check(roots: Sequence[str | Path], recursive: bool, keep_loudness: bool = False) -> list[Tree]:
    """Read everything below the directories once. Raises UserError when one holds no features.

    keep_loudness: whether runs are to read column 12, so that nonsense there is an error.
    """
    trees: list[Tree] = []
    seen: dict[str, tuple[Tree, str]] = {}  # by identity, and by a digest of the content
    for root in roots:
        tree = Tree(Path(root), keep_loudness)
        files = find_features(root, recursive)
        tree.n_files = len(files)
        for identity, path, _ in progress(files, f"checking {root}", unit="files"):
            keys = (identity, _check_file(tree, identity, path) or identity)
            other, twin = next((seen[key] for key in keys if key in seen), (None, ""))
            if other is tree:
                tree.findings["twice"].append(f"{identity} ({twin})")
            elif other is not None:
                tree.findings["shared"].append(f"{identity} ({other.root}: {twin})")
            for key in keys:
                seen.setdefault(key, (tree, identity))
        _check_names(tree, [file.identity for file in files])
        _check_whole(tree, trees)
        trees.append(tree)
    return trees


def _check_file(tree: Tree, identity: str, path: str) -> str | None:
    """Note what is wrong with one file; returns a digest of what it holds, None when broken."""
    kind = "name"
    try:
        check_identity(identity, path)
        kind = "unreadable"
        with regular_file(path, MAX_BYTES) as file:
            array = load_npz(file, path)
        kind = "numbers" if array.ndim == 2 and array.shape[1] == len(CHANNELS) else "columns"
        features = check_features(array, path)
    except BadFile as error:
        tree.findings[kind].append(str(error))
        return None
    tree.add(features)
    _check_values(tree, identity, features)
    _check_times(tree, identity, path, len(features))
    if speaker := speaker_of(identity):
        tree.speakers.add(speaker)
    return digest_of(features.data)


def _check_values(tree: Tree, identity: str, features: np.ndarray) -> None:
    n_frames = len(features)
    negative = int((features[:, LOUDNESS_COLUMN] < 0).sum())
    if negative:
        kind = "loudness" if tree.keep_loudness else "unused"
        tree.findings[kind].append(f"{identity} ({negative} of {n_frames} frames)")
    pitch = features[:, PITCH]
    outside = int(((pitch < PITCH_HZ[0]) | (pitch > PITCH_HZ[1])).sum())
    if outside:
        some = f"{outside} of {n_frames} frames, {pitch.min():g} to {pitch.max():g} Hz"
        tree.findings["pitch"].append(f"{identity} ({some})")
    if n_frames > 1:
        still = [c for c, r in zip(CHANNELS, np.ptp(features, axis=0)) if r == 0]
        if still:
            tree.findings["constant"].append(f"{identity} ({' '.join(still)})")
    if n_frames < SHORT_FRAMES:
        tree.findings["short"].append(f"{identity} ({n_frames})")
    elif n_frames > LONG_S * FRAME_RATE_HZ:
        tree.findings["long"].append(f"{identity} ({n_frames / FRAME_RATE_HZ:.0f} s)")


def _check_times(tree: Tree, identity: str, path: str, n_frames: int) -> None:
    try:
        times = read_times(path)
    except BadFile as error:
        tree.findings["times"].append(str(error))
        return
    if times is None:
        tree.findings["missing"].append(identity)
        return
    if times.shape != (n_frames, 2) or times.dtype.kind not in "fiu":
        what = f"{times.dtype} of shape {times.shape} for {n_frames} frames"
        tree.findings["times"].append(f"{identity} ({what})")
        return
    times = times.astype(np.float64)
    (start, end), middle = times[0], times.mean(1)
    if (times == times[0]).all() and start == 0 < end < np.inf:  # the whole utterance's
        expected = (end * SAMPLE_RATE_HZ - WINDOW_SAMPLES) / HOP_SAMPLES + 1
        wrong = abs(n_frames - expected) > SLACK_FRAMES
        rate = n_frames / end
    elif np.isfinite(times).all() and end > start and (np.diff(middle) > 0).all():
        # Each frame's own; a single one has no rate.
        rate = (n_frames - 1) / (middle[-1] - middle[0]) if n_frames > 1 else FRAME_RATE_HZ
        wrong = abs(rate / FRAME_RATE_HZ - 1) > 0.01
    else:
        first, last = (f"[{a:g}, {b:g}]" for a, b in (times[0], times[-1]))
        tree.findings["times"].append(f"{identity} ({first} to {last})")
        return
    if wrong:
        tree.findings["rate"].append(f"{identity} ({rate:.1f} a second)")


def _check_names(tree: Tree, identities: Iterable[str]) -> None:
    alike, last = defaultdict(list), defaultdict(list)
    for identity in identities:
        alike[unicodedata.normalize("NFC", identity).casefold()].append(identity)
        last[identity.rpartition("/")[2]].append(identity)
    groups = {tuple(group[:3]) for group in (*alike.values(), *last.values()) if len(group) > 1}
    for group in sorted(groups):
        tree.findings["collision"].append(" = ".join(group))


def _check_whole(tree: Tree, others: Sequence[Tree]) -> None:
    sd = tree.mean_and_sd()[1][: len(ARTICULATORS)]
    wrong = [f"{c} {s:.3g}" for c, s in zip(ARTICULATORS, sd) if not SCALE[0] <= s <= SCALE[1]]
    if wrong and tree.lengths:
        tree.findings["scale"].append(f"{tree.root} ({', '.join(wrong)})")
    r = tree.lip_correlation()
    if r > MAX_LIP_CORRELATION:
        tree.findings["sign"].append(f"{tree.root} (r = {r:.2f})")
    for other in others:
        for speaker in sorted(tree.speakers & other.speakers, key=int):
            tree.findings["speakers"].append(f"{speaker} ({tree.root} and {other.root})")


# ---- the report


def exit_status(trees: Sequence[Tree]) -> int:
    """0 when nothing is wrong, 1 for warnings alone, 2 with an error."""
    kinds = {kind for tree in trees for kind in tree.findings}
    return 2 if kinds & ERRORS.keys() else 1 if kinds else 0


def report(trees: Sequence[Tree]) -> Iterator[str]:
    """Lines: the findings, errors first and then the most frequent, and a table of the trees."""
    counts = []
    for level, kinds in (("error", ERRORS), ("warning", WARNINGS)):
        places = {
            kind: [w for tree in trees for w in tree.findings.get(kind, ())] for kind in kinds
        }
        counts.append(sum(map(len, places.values())))
        for kind, where in sorted(places.items(), key=lambda item: -len(item[1])):
            if where:
                yield f"{level} ({len(where)}): {kinds[kind]}"
                yield from (f"    {one_line(one)}" for one in where[:EXAMPLES])
                if len(where) > EXAMPLES:
                    yield f"    and {len(where) - EXAMPLES} more"
    yield from ("", *_table(trees), "", *_channels(trees), "")
    n_errors, n_warnings = counts
    yield f"{n_errors} errors, {n_warnings} warnings" if any(counts) else "all is well"


def _table(trees: Sequence[Tree]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        ("directory", "files", "read", "hours", "speakers", "s: min", "median", "max", "r(LL)")
    ]
    for tree in trees:
        seconds = np.array(tree.lengths or np.nan) / FRAME_RATE_HZ
        rows.append(
            (
                str(tree.root),
                str(tree.n_files),
                str(len(tree.lengths)),
                f"{sum(tree.lengths) / FRAME_RATE_HZ / 3600:.2f}",
                str(len(tree.speakers) or "?"),
                *(f"{s:.2f}" for s in (seconds.min(), np.median(seconds), seconds.max())),
                f"{tree.lip_correlation():.2f}",
            )
        )
    yield from _aligned(rows)


def _channels(trees: Sequence[Tree]) -> Iterator[str]:
    rows = [("channel", *(f"{tree.root.name}: mean (sd), min to max" for tree in trees))]
    moments = [tree.mean_and_sd() for tree in trees]
    for i, channel in enumerate(CHANNELS):
        cells = (
            f"{mean[i]:.2f} ({sd[i]:.2f}), {tree.low[i]:.2f} to {tree.high[i]:.2f}"
            for tree, (mean, sd) in zip(trees, moments)
        )
        rows.append((channel, *cells))
    yield from _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        first, *others = (one_line(cell) for cell in row)
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:]))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
