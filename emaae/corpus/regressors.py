"""Regressors of brain responses from encodings: a design matrix for each story.

    z (frames, units) at their times -> one value per TR (Lanczos) -> z-scores within the story
    -> copies delayed by some TRs (FIR) -> without the first and last TRs

The value of unit u at TR time t is sum_i w(t - t_i) z_iu c d. t_i is the middle of frame i, d the
frame period in seconds, and w the Lanczos window w(x) = sinc(c x) sinc(c x / a) for |c x| < a = 3,
0 elsewhere. The rate c is 1 / TR in Hz, or the frame rate if that is lower; amplitudes at c / 2 are
halved (Duchon 1979, "Lanczos filtering in one and two dimensions"; as in Huth et al. 2016, "Natural
speech reveals the semantic maps that tile human cerebral cortex"). The factor c d keeps a constant
encoding unchanged; far from all utterances the value is 0. Delays let a linear model find the shape
of the haemodynamic response (Nishimoto et al. 2011).
"""

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from emaae.corpus.encodings import MANIFEST, model_sha256, open_manifest, read_encoding, source
from emaae.data.features import (
    FRAME_RATE_HZ,
    check_identity,
    find_features,
    frame_times,
    read_times,
    times_beside,
)
from emaae.data.reading import digest_of
from emaae.runs.read import read_or_empty
from emaae.system.errors import BadFile, UserError, needs_extra
from emaae.system.files import make_folder, read_text, write_atomically, write_json
from emaae.system.progress import progress

LANCZOS_LOBES = 3  # of the window on either side
TRS_AT_ONCE = 64  # whose weights of frames are in memory together
MAX_TRS = 10_000_000  # of a story; more are probably times in another unit


class StoryUtterance(NamedTuple):
    """An utterance in a story: the file of its encoding, and when it begins there, in seconds."""

    path: str
    onset_s: float


# The utterances of each story, in order, by the name of the story.
Stories: TypeAlias = Mapping[str, Sequence[StoryUtterance]]


@dataclass(frozen=True)
class Design:
    """Settings of the design matrices.

    units: the columns of the encoding that are used. tr_s: seconds between TRs, whose times are
    their middles (k + 1/2) tr_s; or tr_times: by story, the times themselves in seconds, strictly
    increasing. delays: in TRs. trim: TRs that are left out at the beginning and at the end.
    """

    units: Sequence[int]
    tr_s: float | None = None
    tr_times: Mapping[str, np.ndarray] = field(default_factory=dict)
    delays: Sequence[int] = (1, 2, 3, 4)
    trim: tuple[int, int] = (0, 0)


# ---- the formulas


def lanczos_window(x: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """w(x) for x in seconds: 1 at 0, 0 at other multiples of 1 / cutoff_hz and beyond the third."""
    t = x * cutoff_hz
    return np.where(np.abs(t) < LANCZOS_LOBES, np.sinc(t) * np.sinc(t / LANCZOS_LOBES), 0.0)


def lanczos_resample(frames: np.ndarray, times_s: np.ndarray, tr_times_s: np.ndarray) -> np.ndarray:
    """Frames (T, C), 20 ms each, at times_s (T,) as values (n, C) float32 at TR times (n,).

    There must be two TRs or more, and times must increase. Raises UserError.
    """
    check_increasing("the frames", times_s)
    check_increasing("the TRs", tr_times_s)
    values = np.zeros((len(tr_times_s), frames.shape[1]))
    _add_resampled(values, tr_times_s, frames, times_s)
    return values.astype(np.float32)


def _add_resampled(
    values: np.ndarray, tr_times_s: np.ndarray, frames: np.ndarray, times_s: np.ndarray
) -> None:
    """Add the contribution of frames (T, C) at times (T,) to the values (n, C) at TR times (n,)."""
    steps = np.diff(tr_times_s)
    tr_s = np.mean(steps[steps < 1.5 * np.median(steps)])  # a pause of the scanner is no TR
    cutoff = min(FRAME_RATE_HZ, 1 / float(tr_s))
    reach = LANCZOS_LOBES / cutoff
    first, last = np.searchsorted(tr_times_s, (times_s[0] - reach, times_s[-1] + reach))
    for i in range(first, last, TRS_AT_ONCE):
        trs = slice(i, min(i + TRS_AT_ONCE, last))
        at = tr_times_s[trs]
        near = slice(*np.searchsorted(times_s, (at[0] - reach, at[-1] + reach)))
        weights = lanczos_window(at[:, None] - times_s[near], cutoff)
        values[trs] += weights @ frames[near] * (cutoff / FRAME_RATE_HZ)


def zscored(values: np.ndarray, kept: slice = slice(None)) -> np.ndarray:
    """Z-scores (n, C) float32 of columns, by mean and standard deviation of the kept rows.

    A column that is constant in the kept rows becomes 0.
    """
    mean, sd = values[kept].mean(0), values[kept].std(0)
    varies = sd > 1e-6 * np.abs(mean) + 1e-12
    return np.where(varies, (values - mean) / np.where(varies, sd, 1), 0).astype(np.float32)


def delayed(values: np.ndarray, delays: Sequence[int]) -> np.ndarray:
    """Copies of `values` (n, C), moved down by each delay (up if negative): (n, C len(delays)).

    The columns of the first delay come first. Rows moved in from outside are 0.
    """
    n = len(values)
    padded = np.pad(values.astype(np.float32), ((n, n), (0, 0)))
    within = (max(-n, min(n, delay)) for delay in delays)
    return np.concatenate([padded[n - delay : 2 * n - delay] for delay in within], axis=1)


def check_increasing(what: str, times_s: np.ndarray) -> None:
    """Raise UserError unless the times (n,) are finite and each is later than the one before."""
    good = np.isfinite(times_s)
    good[1:] &= times_s[1:] > times_s[:-1]
    if not good.all():
        before = max(0, int(np.argmin(good)) - 1)
        some = ", ".join(f"{t:g}" for t in times_s[before : before + 2])
        raise UserError(
            f"the times of {what} must be finite and each later than the one before, got {some} s "
            f"from no. {before + 1} on"
        )


# ---- stories


def _read_onsets(path: str | Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table of onsets, each with the number of its line. Raises UserError."""
    try:
        # Some programs begin a file with a byte order mark.
        text = read_text(path).removeprefix("\ufeff")
        first = text.partition("\n")[0]
        separator = "\t" if "\t" in first else ","
        reader = csv.DictReader(text.splitlines(), delimiter=separator, skipinitialspace=True)
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--onsets {path} cannot be read: {error}") from None
    if not {"utterance", "onset"} <= set(reader.fieldnames or ()):
        raise UserError(
            f"--onsets {path} must have the columns utterance and onset (in seconds), and perhaps "
            f"story, got {first[:100]!r}"
        )
    if not rows:
        raise UserError(f"--onsets {path} has no rows: expected one for each utterance")
    return rows


def read_stories(root: str | Path, onsets: str | Path | None) -> Stories:
    """The utterances of each story in order, from a tree of encodings. Raises UserError.

    onsets: a table with the columns utterance, onset and perhaps story; without it each utterance
    is a story, named after the utterance.
    """
    files = {file.identity: file.path for file in find_features(root, recursive=True)}
    if onsets is None:
        return {identity: [StoryUtterance(path, 0.0)] for identity, path in files.items()}
    found = defaultdict(list)
    for number, row in _read_onsets(onsets):
        where = f"--onsets {onsets}:{number}"
        name = (row["utterance"] or "").removesuffix(".npz")
        if name not in files:
            raise UserError(f"{where}: utterance {name!r}, expected one below {root}")
        try:
            onset = float(row["onset"])
        except (TypeError, ValueError):
            onset = math.nan
        if not math.isfinite(onset):
            raise UserError(f"{where}: onset {row['onset']!r}, expected seconds")
        story = row.get("story") or "story"
        check_identity(story, where)
        found[story].append(StoryUtterance(files[name], onset))
    return {story: sorted(some, key=lambda one: one.onset_s) for story, some in found.items()}


def read_tr_times(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """TR times (n,) in seconds of each story, from a file for all or STORY.txt for each."""
    path = Path(path)
    found = {}
    for name in names:
        file = path / f"{name}.txt" if path.is_dir() else path
        try:
            text = read_text(file).removeprefix("\ufeff")
            found[name] = np.array([float(line) for line in text.split()])
        except (OSError, ValueError) as error:
            raise UserError(
                f"--tr_times {file} cannot be read ({error}): expected seconds, one a line"
            ) from None
        check_increasing(f"--tr_times {file}", found[name])
    return found


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The manifest of a tree of encodings, with `units` and `fired`. Raises UserError."""
    path = Path(root) / MANIFEST
    found = read_or_empty(path)
    if found.get("fired") is None:  # also while it is encoded, and after that was interrupted
        raise UserError(
            f"{path} does not say which units fire: expected a tree of encodings, as `python -m "
            "emaae encode` writes it; that command also completes an older tree"
        )
    return found


def live_units(root: str | Path, units_of: str | Path) -> list[int]:
    """The units that fire in the tree `units_of`, of the same model as `root`. Raises UserError."""
    known = read_manifest(units_of)
    if model_sha256(known) != model_sha256(read_manifest(root)):
        raise UserError(
            f"--units_of {units_of} has encodings of another model than {root}: expected the same"
        )
    if not known["fired"]:
        raise UserError(f"no unit fires in {units_of}: nothing to regress on")
    return known["fired"]


def design_matrix(
    name: str, spoken: Sequence[StoryUtterance], n_units: int, design: Design
) -> tuple[np.ndarray, np.ndarray]:
    """TR times (n,) in seconds and design matrix (n, units len(delays)) float32 of one story.

    Memory holds one utterance and the story's values. Raises UserError.
    """
    centres: list[np.ndarray] = []
    for one in spoken:
        found = read_times(one.path)
        if found is None or frame_times(len(np.atleast_1d(found)), found) is not found:
            raise BadFile(
                f"{times_beside(one.path)} must have the start and the end of each frame in "
                "seconds, both increasing: encode the features again"
            )
        at = one.onset_s + found.mean(1, dtype=np.float64)
        if centres and at[0] <= centres[-1][-1]:
            raise UserError(
                f"the story {name}: utterances must not overlap, and {Path(one.path).stem} begins "
                f"at {at[0]:g} s, before the one before it ends at {centres[-1][-1]:g} s"
            )
        centres.append(at)
    if design.tr_s is None:
        times = design.tr_times[name]
    else:
        if spoken[0].onset_s < 0:
            raise UserError(
                f"the story {name} begins at {spoken[0].onset_s:g} s, and with --tr the first TR "
                "begins at 0 s: give onsets of 0 or later, or --tr_times"
            )
        end_s = centres[-1][-1]
        if end_s > MAX_TRS * design.tr_s:
            raise UserError(
                f"the story {name} ends after {end_s:g} s, more than {MAX_TRS} TRs of "
                f"{design.tr_s:g} s: give --tr and onsets in seconds"
            )
        times = (np.arange(math.ceil(end_s / design.tr_s)) + 0.5) * design.tr_s
    kept = slice(design.trim[0], max(0, len(times) - design.trim[1]))
    if len(times[kept]) < 2:
        raise UserError(
            f"the story {name} has {len(times)} TRs, and --trim {design.trim[0]} {design.trim[1]} "
            "leaves fewer than two: trim less, give a shorter --tr or more --tr_times, or join "
            "utterances into stories by --onsets"
        )
    values = np.zeros((len(times), len(design.units)))
    for one, at in zip(spoken, centres):
        z = read_encoding(one.path, n_units)[:, design.units]
        if len(z) != len(at):
            raise BadFile(
                f"{times_beside(one.path)} has the times of {len(at)} frames, and the encoding "
                f"{len(z)}: encode the features again"
            )
        _add_resampled(values, times, z, at)
    matrix = delayed(zscored(values, kept), design.delays)[kept]
    if not matrix.any():
        raise UserError(
            f"the regressors of story {name} are all 0: no encoding changes within its TRs, "
            f"{times[kept][0]:g} to {times[kept][-1]:g} s, at these delays; give TR times and "
            "onsets in seconds from the same start"
        )
    return times[kept], matrix


def column_names(units: Sequence[int], delays: Sequence[int]) -> list[str]:
    """unit_17_tr2 is unit 17 two TRs ago; in the order of the columns of `design_matrix`."""
    return [f"unit_{unit}_tr{delay}" for delay in delays for unit in units]


# ---- files


def write_regressors(
    root: str | Path, out: Path, design: Design, stories: Stories, form: str
) -> dict[str, int]:
    """Write the design matrix of each story; returns the number of TRs of each.

    npz: OUT/STORY.npz with X (n, columns) float32, tr_times (n,) and columns; csv or parquet:
    OUT/STORY.csv, a pandas table of the same columns after tr_time. OUT/manifest.json says what
    they were made from, how, and which units were left out. A folder of anything else, or of
    another design, is refused. Raises UserError.
    """
    made = read_manifest(root)
    onsets = {
        name: [(os.path.relpath(one.path, root), one.onset_s) for one in spoken]
        for name, spoken in stories.items()
    }
    tr_times = {name: times.tolist() for name, times in design.tr_times.items()}
    manifest = {
        "made": "regressors",
        "form": form,
        "source": source(root, out),
        "model": made.get("model"),
        "tr_s": design.tr_s,
        "delays_trs": list(design.delays),
        "trim_trs": list(design.trim),
        "onsets_and_tr_times": digest_of(json.dumps([onsets, tr_times]).encode()),
        "lanczos_lobes": LANCZOS_LOBES,
        "zscored": "within stories",
        "units": list(design.units),
        "units_left_out": sorted(set(range(made["units"])) - set(design.units)),
    }
    make_folder(out)
    found = open_manifest(out, manifest)  # refuses another tree, such as one of encodings
    found["model"] = manifest["model"]  # its sha256 is compared already; its path may differ
    changed = [name for name, value in manifest.items() if found.get(name) != value]
    if changed and any(out.rglob(f"*.{form}")):
        raise UserError(
            f"{out} holds regressors of another design (see {', '.join(changed)} in its "
            f"{MANIFEST}): give another --out, or remove that folder"
        )
    write_json(out / MANIFEST, manifest)  # the first call may have failed at a mistake
    names = column_names(design.units, design.delays)
    lengths = {}
    for name, spoken in progress(stories.items(), "regressors", unit="stories"):
        times, matrix = design_matrix(name, spoken, made["units"], design)
        _write_story(out / f"{name}.{form}", times, matrix, names)
        lengths[name] = len(times)
    write_json(out / MANIFEST, manifest | {"trs": lengths})
    return lengths


def _write_story(path: Path, times: np.ndarray, matrix: np.ndarray, names: Sequence[str]) -> None:
    make_folder(path.parent)
    if path.suffix == ".npz":
        write = partial(np.savez, X=matrix, tr_times=times, columns=np.array(names))
    else:
        with needs_extra("analysis"):
            import pandas
        if path.suffix == ".parquet":
            with needs_extra("parquet"):
                import pyarrow  # noqa: F401
        table = pandas.DataFrame(matrix, columns=list(names))
        table.insert(0, "tr_time", times)
        write = partial(table.to_csv if path.suffix == ".csv" else table.to_parquet, index=False)
    write_atomically(path, write)
