"""Every metric that a run logs: what it is, its range, which way is better, when it is logged.

The linter of sweep files, the terminal, model cards and the documentation take their words from
here. `python -m emaae.metric_table` prints the tables of docs/metrics.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from emaae.data.features import CHANNELS

SCORE = "select/score"
# The range of metrics that are not a single number.
COUNTS = "counts"
# Logged for the train split too; all others only for val and test.
TRAIN_METRICS = ("loss", "mse", "penalty", "slow", "sparsity")
# Metrics in the short tables of the terminal, model cards and the report: those of a split, without
# its name, and those that have no split.
SUMMARY = ("fvu", "r_articulators", "sparsity", "live_sparsity", "l0", "dead", "score")
SUMMARY_AT_END = (
    "shift/persistence", "shift/persistence_within", "shift/persistence_null",
    "lowpass/gain_0.2", "shift/distinct_units", "shift/noise_gain",
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A metric, or several that are explained together.

    names: without the split, separated by commas; CHANNEL stands for any channel. meaning: formula
    and source, in Markdown. brief: a few words for tables that show the metric alone.
    """

    names: str
    meaning: str
    range: str = ""
    better: Literal["lower", "higher", ""] = ""
    brief: str = ""

    @property
    def short_description(self) -> str:
        """A description for tables that show the metric alone."""
        return self.brief or self.meaning

    def each_name(self) -> Iterator[str]:
        """The names, with every channel's instead of CHANNEL."""
        for name in self.names.split(", "):
            channels = CHANNELS if "CHANNEL" in name else [""]
            yield from (name.replace("CHANNEL", channel) for channel in channels)


# Of a split, such as `val/fvu`.
SPLIT_METRICS = (
    Metric(
        "loss",
        "(1 - alpha) (mse + b slow) + alpha penalty (+ weight penalty), b = `--slow_coefficient`; "
        "compare at one alpha only",
        ">= 0",
        "lower",
    ),
    Metric("mse", "mean (y - x)^2 over frames and channels", ">= 0", "lower"),
    Metric(
        "penalty",
        "the term that alpha weighs, unweighted. l1: sum abs(z) / (C N). l1_decoder_norm: sum of "
        "abs(z_c) norm(W_c) over units and frames / N. tv: mean over live units of sum (z_t+1 - "
        "z_t)^2 / sum (z_t - mean)^2",
        ">= 0",
        "lower",
    ),
    Metric(
        "slow",
        "with `--slow_coefficient`: tv, or tvu, where the mean is that of the utterance",
        "0 to 4",
        "lower",
    ),
    Metric(
        "fvu",
        "fraction of variance unexplained: sum (y - x)^2 / sum (x - mean)^2",
        ">= 0; the mean gives 1",
        "lower",
        brief="fraction of variance unexplained, 0 is perfect",
    ),
    Metric("fvu/CHANNEL", "the same for one channel", ">= 0", "lower"),
    Metric("r/CHANNEL", "Pearson correlation of y and x", "-1 to 1", "higher"),
    Metric(
        "r_articulators",
        "mean of r over the 12 articulators",
        "-1 to 1",
        "higher",
        brief="mean correlation of the 12 articulator coordinates",
    ),
    Metric("sparsity", "fraction of encoding values that are exactly 0", "0 to 1", "higher"),
    Metric(
        "live_sparsity",
        "the same among units that fire at all; undefined when none does",
        "0 to 1",
        "higher",
        brief="the same, of the units that fire at all",
    ),
    Metric(
        "l0",
        "active units per frame, C (1 - sparsity)",
        "0 to C",
        "lower",
        brief="units that are not 0, per frame",
    ),
    Metric("active_mean", "mean of z where it is not 0", "> 0"),
    Metric(
        "dead",
        "fraction of units that fire on no frame of the split",
        "0 to 1",
        "lower",
        brief="fraction of units that are never on",
    ),
    Metric(
        "hoyer",
        "mean over frames that are not silent of (sqrt(C) - L1/L2) / (sqrt(C) - 1) (Hoyer 2004)",
        "0 uniform to 1 one-hot",
        "higher",
    ),
    Metric(
        "density_log10",
        "units per bin of log10 of the fraction of frames on which they fire: 20 bins from -5 to 0",
        COUNTS,
    ),
    Metric(
        "self_similarity_20ms, self_similarity_80ms, persistence_within, participation_ratio, "
        "distinct_units, noise_gain",
        "as `shift/...` below, of one utterance in 16 of the split, 8 to 32 in all, the same in "
        "every epoch",
    ),
    Metric(
        "score",
        "fvu + max(0, s - live_sparsity) / s + max(0, p - persistence_within) / p, s = "
        "`--target_sparsity`, p = `--target_persistence` (0 leaves the term out); what is "
        "undefined counts as 0, so an encoding that is dead, dense or forgets at once costs at "
        "least 1",
        ">= 0",
        "lower",
        brief="what selects weights and models",
    ),
)
# Those of the selected epoch on the validation split, which are logged once more at the end.
SELECTED = tuple(
    f"select/{name}"
    for metric in SPLIT_METRICS
    for name in metric.names.split(", ")
    if metric.range != COUNTS and "/" not in name and name != "score"
)
# Of a run or of an epoch.
RUN_METRICS = (
    Metric(
        SCORE, "the lowest `val/score`, once, at the end: what a sweep minimises", ">= 0", "lower"
    ),
    Metric(
        ", ".join(SELECTED), "those of the selected epoch on the validation split, once, at the end"
    ),
    Metric("select/epoch", "the epoch whose weights were selected, from 1"),
    Metric("alpha", "weight of the penalty in this epoch", "0 to 1"),
    Metric("select/alpha", "that in the selected epoch", "0 to 1"),
    Metric(
        "lambda_eff",
        "the pressure that alpha really applies: alpha / (1 - alpha) D / C; without / C for "
        "l1_decoder_norm, which is a sum over units",
        ">= 0",
    ),
    Metric(
        "k_fraction",
        "with an activation other than relu: the fraction of values that it keeps in training",
        "0 to 1",
    ),
    Metric(
        "lr, epoch",
        "learning rate of the epoch's last step, muon's that of the convolutions; epochs finished",
    ),
)
# Of the selected weights, on the test split where there is one.
SHIFT_METRICS = (
    Metric(
        "shift/self_similarity_20ms, shift/self_similarity_80ms",
        "mean over live units of sum (z_t - mean)(z_t+k - mean) / (1/2 sum [(z_t - mean)^2 + "
        "(z_t+k - mean)^2]), k = 1 and 4 frames, pairs within an utterance",
        "-1 to 1",
        "higher",
        brief="similarity to the encoding one and four frames later",
    ),
    Metric(
        "shift/half_life_ms",
        "the lag at which self-similarity first falls to 1/2; 500 means 500 or more",
        "0 to 500 ms",
        "higher",
        brief="ms until similarity falls to 1/2",
    ),
    Metric(
        "shift/persistence",
        "half-life of the encoding / half-life of the input; a bound when one of them is 500",
        "> 0; 1 keeps the input's",
        "higher",
        brief="half-life, in units of the input's",
    ),
    Metric(
        "shift/persistence_within",
        "the same with every utterance centred on its own mean, so that a speaker's offset is no "
        "tolerance",
        "> 0",
        "higher",
        brief="the same within utterances",
    ),
    Metric(
        "shift/persistence_weighted",
        "`shift/persistence` with each unit weighted by its variance times the squared norm of "
        "the weights that read it",
        "> 0",
        "higher",
        brief="the same, units weighted by what the decoder reads of them",
    ),
    Metric(
        "shift/persistence_null",
        "`shift/persistence_within` of 64 random projections of single frames, each thresholded "
        "to the `live_sparsity` of the encoding: what sparsity alone leaves",
        "> 0",
        brief="that of random projections of equal sparsity",
    ),
    Metric(
        "shift/gain_10ms",
        "how far a shift by half a frame moves the encoding, relative to how far it moves the "
        "input, both in units of their sd",
        ">= 0; 1 moves as the input",
        "lower",
        brief="how far a shift by 10 ms moves it, in units of the input's",
    ),
    Metric(
        "shift/equivariance_error",
        "sum norm(E(x shifted by half a frame) - E(x) shifted so)^2 / sum norm(z - mean)^2",
        ">= 0; 0 for a linear encoder",
        brief="how far the encoding is from following a shift by 10 ms",
    ),
    Metric(
        "lowpass/gain_0.2",
        "fvu of the input smoothed at 0.2 of the Nyquist frequency (5 Hz) / fvu of the decoded "
        "encoding smoothed so",
        "> 1 survives better than the input",
        "higher",
        brief="how much better than the input it survives smoothing",
    ),
    Metric(
        "lowpass/auc_ratio",
        "mean over ten cutoffs of the fvu of the decoded smoothed encoding / the same mean of the "
        "smoothed input",
        "> 0; 1 for an identity",
        "lower",
        brief="the same over ten cutoffs, inverted",
    ),
    Metric(
        "shift/participation_ratio",
        "directions in which the encoding varies: tr(S)^2 / norm(S)^2, S its covariance",
        "1 to C",
        brief="directions in which the encoding varies",
    ),
    Metric(
        "shift/distinct_units",
        "units, where those that correlate by more than .9 count once: sum over units of 1 / "
        "their number",
        "0 to C",
        "higher",
        brief="units, copies counted once",
    ),
    Metric(
        "shift/noise_gain",
        "fvu that noise of a tenth of each unit's sd adds, in units of that noise's variance",
        "1 for an identity",
        "lower",
        brief="fvu that noise on the encoding adds",
    ),
    Metric(
        "shift/input_half_life_ms, shift/input_self_similarity_20ms, "
        "shift/input_self_similarity_80ms, shift/input_participation_ratio",
        "the input's own",
    ),
)

BY_NAME = {
    f"{split}/{name}": metric
    for metric in SPLIT_METRICS
    for name in metric.each_name()
    for split in ("train", "val", "test")
    if split != "train" or name in TRAIN_METRICS
}
BY_NAME |= {
    name: metric for metric in (*RUN_METRICS, *SHIFT_METRICS) for name in metric.each_name()
}
BY_NAME |= {name: BY_NAME[name.replace("select/", "val/")] for name in SELECTED}


def logged_each_epoch(name: str) -> bool:
    """Whether a metric is logged in every epoch rather than once."""
    return not name.startswith(("test/", "select/", "shift/", "lowpass/"))


def tables() -> tuple[str, str]:
    """The metrics in Markdown: those of a split and of an epoch, and those of shifts."""
    return _table((*SPLIT_METRICS, *RUN_METRICS)), _table(SHIFT_METRICS)


def _table(metrics: tuple[Metric, ...]) -> str:
    lines = ["| name | meaning | range | better |", "|---|---|---|---|"]
    for m in metrics:
        names = ", ".join(f"`{name}`" for name in m.names.split(", "))
        cells = (names, m.meaning, m.range, m.better)
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(tables()))
