"""Finding problems in feature trees: errors and warnings.

Errors are data that a run refuses, or that make its results meaningless. Warnings are data that may
be as intended.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from emaae.data.features import (
    ARTICULATORS,
    CHANNELS,
    FRAME_RATE_HZ,
    LOUDNESS_COLUMN,
    SAMPLE_RATE_HZ,
    check_features,
    check_identity,
    find_features,
    frame_times,
    frames_of,
    read_npz,
    read_times,
    times_beside,
)
from emaae.data.reading import digest_of
from emaae.data.split import speaker_of
from emaae.system.errors import BadFile, one_line
from emaae.system.progress import align_columns, progress

PITCH_HZ = (50, 550)
PITCH = CHANNELS.index("pitch")
LLX, LLY = CHANNELS.index("LLX"), CHANNELS.index("LLY")
# Standard deviation of z-scores over a corpus; millimetres and metres are outside this range.
SD_RANGE = (0.2, 3.0)
# LLX and LLY correlate at -0.3 to -0.9 where X grows backwards, 0.3 to 0.9 where it grows forwards.
MAX_LIP_CORRELATION = 0.1
# LibriSpeech's longest utterance has 35 s.
LONG_S = 60.0
# Receptive field of the default encoder in frames.
SHORT_FRAMES = 13
# Tolerated difference between the number of frames and the duration.
SLACK_FRAMES = 2
# Number of findings of each kind that the report lists.
EXAMPLES = 3

ERRORS = {
    "unreadable": "files that cannot be read",
    "columns": f"files that hold no matrix (T, {len(CHANNELS)})",
    "numbers": "files without frames, or with values that are not finite numbers",
    "name": "names that cannot be used for files",
    "shared": "utterances that are in two directories",
    "loudness": "utterances with negative loudness: column 12 is not loudness",
}
WARNINGS = {
    "unused": "utterances with negative loudness, which only runs with --keep_loudness read",
    "rate": f"utterances whose times do not give {FRAME_RATE_HZ} frames a second",
    "sign": f"directories with r(LLX, LLY) > {MAX_LIP_CORRELATION}: X seems to grow forwards",
    "scale": "directories with an articulator's sd outside {} to {}: not z-scores".format(
        *SD_RANGE
    ),
    "pitch": f"utterances with pitch outside {PITCH_HZ[0]} to {PITCH_HZ[1]} Hz",
    "constant": "utterances with a channel that never moves",
    "speakers": "speakers that are in two directories",
    "twice": "utterances that are in one directory twice, under two names",
    "collision": "names that differ only in case, Unicode form or folder",
    "times": "utterances whose times are neither [0, duration] in every row nor one per frame",
    "missing": "utterances without a times file",
    "short": f"utterances of fewer than {SHORT_FRAMES} frames, the encoder's receptive field",
    "long": f"utterances of more than {LONG_S:.0f} s",
}


class Tree:
    """The statistics and findings of one directory with n_files feature files.

    lengths: number of frames of each readable utterance. total (14,), products (14, 14): sums over
    frames of the channels, and of the products of two channels. low, high (14,): minimum and
    maximum of each channel. speakers: of names like LibriSpeech's. findings: places by kind, a key
    of ERRORS or WARNINGS.
    """

    def __init__(self, root: Path, n_files: int):
        n = len(CHANNELS)
        self.root, self.n_files = root, n_files
        self.lengths: list[int] = []
        self.total, self.products = np.zeros(n), np.zeros((n, n))
        self.low, self.high = np.full(n, np.inf), np.full(n, -np.inf)
        self.speakers: set[str] = set()
        self.findings: dict[str, list[str]] = defaultdict(list)

    def add(self, features: np.ndarray) -> None:
        """Add one utterance, features (T, 14)."""
        x = features.astype(np.float64)
        self.lengths.append(len(x))
        self.total += x.sum(0)
        self.products += x.T @ x
        self.low, self.high = np.minimum(self.low, x.min(0)), np.maximum(self.high, x.max(0))

    def mean_and_sd(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel (14,); NaN without frames."""
        n = sum(self.lengths) or np.nan
        mean = self.total / n
        return mean, np.sqrt(np.maximum(np.diag(self.products) / n - mean**2, 0))

    def lip_correlation(self) -> float:
        """Pearson correlation of LLX and LLY over all frames; NaN when one is constant."""
        mean, sd = self.mean_and_sd()
        if not sd[LLX] * sd[LLY] > 0:
            return float("nan")
        covariance = self.products[LLX, LLY] / sum(self.lengths) - mean[LLX] * mean[LLY]
        return float(covariance / (sd[LLX] * sd[LLY]))


def check(roots: Sequence[str | Path], recursive: bool, keep_loudness: bool = False) -> list[Tree]:
    """Read all files of the directories once. Raises UserError for one without features.

    keep_loudness: whether runs will read column 12; then negative loudness is an error.
    """
    trees: list[Tree] = []
    seen: dict[str, tuple[Tree, str]] = {}  # by identity, and by a digest of the content
    for root in roots:
        files = find_features(root, recursive)
        tree = Tree(Path(root), len(files))
        for identity, path, _ in progress(files, f"checking {root}", unit="files"):
            keys = (identity, _check_file(tree, identity, path, keep_loudness) or identity)
            other, twin = next((seen[key] for key in keys if key in seen), (None, ""))
            if other is tree:
                tree.findings["twice"].append(f"{identity} ({twin})")
            elif other is not None:
                tree.findings["shared"].append(f"{identity} ({other.root}: {twin})")
            for key in keys:
                seen.setdefault(key, (tree, identity))
        for kind, where in _wrong_together(tree, [file.identity for file in files], trees):
            tree.findings[kind].append(where)
        trees.append(tree)
    return trees


def _check_file(tree: Tree, identity: str, path: str, keep_loudness: bool) -> str | None:
    """Add one file and its findings; returns a digest of the features, None if it is broken."""
    kind = "name"
    try:
        check_identity(identity, path)
        kind = "unreadable"
        array = read_npz(path)
        kind = "numbers" if array.ndim == 2 and array.shape[1] == len(CHANNELS) else "columns"
        features = check_features(array, path)
    except BadFile as error:
        tree.findings[kind].append(str(error))
        return None
    tree.add(features)
    tree.speakers |= {speaker_of(identity)} - {""}
    wrong = (*_wrong_values(features, keep_loudness), *_wrong_times(path, len(features)))
    for kind, what in wrong:
        tree.findings[kind].append(f"{identity} ({what})")
    return digest_of(features.data)


# These functions yield findings: kind and description.
def _wrong_values(features: np.ndarray, keep_loudness: bool) -> Iterator[tuple[str, str]]:
    n_frames, pitch = len(features), features[:, PITCH]
    if negative := np.count_nonzero(features[:, LOUDNESS_COLUMN] < 0):
        yield "loudness" if keep_loudness else "unused", f"{negative} of {n_frames} frames"
    if outside := np.count_nonzero((pitch < PITCH_HZ[0]) | (pitch > PITCH_HZ[1])):
        span = f"{pitch.min():g} to {pitch.max():g} Hz"
        yield "pitch", f"{outside} of {n_frames} frames, {span}"
    still = [c for c, moved in zip(CHANNELS, np.ptp(features, axis=0)) if not moved]
    if still and n_frames > 1:
        yield "constant", " ".join(still)
    if n_frames < SHORT_FRAMES:
        yield "short", f"{n_frames}"
    elif n_frames > LONG_S * FRAME_RATE_HZ:
        yield "long", f"{n_frames / FRAME_RATE_HZ:.0f} s"


def _wrong_times(path: str, n_frames: int) -> Iterator[tuple[str, str]]:
    try:
        found = read_times(path)
    except BadFile as error:
        yield "times", str(error)
        return
    if found is None:
        yield "missing", f"{times_beside(path)} is not there"
        return
    if found.shape != (n_frames, 2) or found.dtype.kind not in "fiu":
        yield "times", f"{found.dtype} of shape {found.shape} for {n_frames} frames"
        return
    times = found.astype(np.float64)
    (start, end), middle = times[0], times.mean(1)
    if (times == times[0]).all() and start == 0 < end < np.inf:  # of the whole utterance
        rate = n_frames / end
        wrong = abs(n_frames - frames_of(end * SAMPLE_RATE_HZ)) > SLACK_FRAMES
    elif frame_times(n_frames, found) is found:  # of each frame; a single frame has no rate
        rate = (n_frames - 1) / (middle[-1] - middle[0]) if n_frames > 1 else FRAME_RATE_HZ
        wrong = abs(rate / FRAME_RATE_HZ - 1) > 0.01
    else:
        yield "times", " to ".join(f"[{a:g}, {b:g}]" for a, b in times[[0, -1]])
        return
    if wrong:
        yield "rate", f"{rate:.1f} a second"


def _wrong_together(
    tree: Tree, identities: Sequence[str], others: Sequence[Tree]
) -> Iterator[tuple[str, str]]:
    groups = defaultdict(list)
    for identity in identities:
        groups["name", unicodedata.normalize("NFC", identity).casefold()].append(identity)
        groups["last", identity.rpartition("/")[2]].append(identity)
    for group in sorted({tuple(group[:3]) for group in groups.values() if len(group) > 1}):
        yield "collision", " = ".join(group)
    low, high = SD_RANGE
    sds = zip(ARTICULATORS, tree.mean_and_sd()[1])
    wrong = ", ".join(f"{c} {sd:.3g}" for c, sd in sds if sd < low or sd > high)
    if wrong:
        yield "scale", f"{tree.root} ({wrong})"
    r = tree.lip_correlation()
    if r > MAX_LIP_CORRELATION:
        yield "sign", f"{tree.root} (r = {r:.2f})"
    for other in others:
        for speaker in sorted(tree.speakers & other.speakers, key=int):
            yield "speakers", f"{speaker} ({tree.root} and {other.root})"


# ---- the report


def exit_status(trees: Sequence[Tree]) -> int:
    """0 without findings, 1 with warnings only, 2 with an error."""
    kinds = {kind for tree in trees for kind in tree.findings}
    return 2 if kinds & ERRORS.keys() else 1 if kinds else 0


def report(trees: Sequence[Tree]) -> Iterator[str]:
    """Lines: errors and then warnings, the most frequent kinds first; then tables of the trees."""
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
    yield from ("", *_table(trees), "")
    if any(tree.lengths for tree in trees):
        yield from (*_channels([tree for tree in trees if tree.lengths]), "")
    n_errors, n_warnings = counts
    yield f"{n_errors} errors, {n_warnings} warnings" if any(counts) else "all is well"


def _table(trees: Sequence[Tree]) -> list[str]:
    rows = [["directory", "files", "read", "hours", "speakers", "s: min", "median", "max", "r(LL)"]]
    for tree in trees:
        seconds = np.array(tree.lengths or np.nan) / FRAME_RATE_HZ
        measured = seconds.min(), np.median(seconds), seconds.max(), tree.lip_correlation()
        counts = tree.n_files, len(tree.lengths), f"{np.nansum(seconds) / 3600:.2f}"
        cells = (*counts, len(tree.speakers) or "?", *(f"{value:.2f}" for value in measured))
        rows.append([one_line(str(tree.root)), *map(str, cells)])
    return align_columns(rows, left=0)


def _channels(trees: Sequence[Tree]) -> list[str]:
    columns = [["channel", *CHANNELS]]
    for tree in trees:
        of_each = zip(*tree.mean_and_sd(), tree.low, tree.high)
        cells = (
            f"{mean:.2f} ({sd:.2f}), {low:.2f} to {high:.2f}" for mean, sd, low, high in of_each
        )
        columns.append([f"{one_line(tree.root.absolute().name)}: mean (sd), min to max", *cells])
    return align_columns(list(zip(*columns)), left=0)
