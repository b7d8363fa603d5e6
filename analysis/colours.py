"""The colour of each schedule, the same one in every figure and report, and those of all else."""

from itertools import cycle

from emaae.schedules import SCHEDULES

# Okabe & Ito's colours, which the colour-blind tell apart, but for their pale yellow, and their
# black, which is the input's; then Tol's.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255"),
    *("#7f7f33", "#7f7f7f"),
)
# The schedules that are compared most have the most distinct colours.
_FIRST = ("constant", "linear", "cosine", "log_lambda", "step", "exponential")
# More schedules than colours share some: line styles and labels tell those apart.
SCHEDULE_COLOURS = dict(
    zip((*_FIRST, *(name for name in SCHEDULES if name not in _FIRST)), cycle(COLOURS))
)

INK, SOFT, FAINT, PAPER = "#22282f", "#66707a", "#e3e6e9", "#ffffff"
TRUTH, PREDICTION = "#1d3557", "#e07a5f"
ALPHA, SPARSITY, DEAD = "#b08900", "#3d7a5f", "#7d5a9e"
# From the least to the most, about a middle where nothing is.
SIGNED = ("#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b")
SILENCE_TO_PEAK = (PAPER, "#b9c8d8", "#0b1f36")

# The colours of a dark page in place of the others, brightest for the most.
DARK = {
    "#2166ac": "#8fd0ff",
    "#92c5de": "#2f6a93",
    "#f4a582": "#96503a",
    "#b2182b": "#ff9f8a",
    INK: "#e4e7ea",
    SOFT: "#9aa4ae",
    FAINT: "#30363d",
    PAPER: "#1a1e23",
    "#0072B2": "#3d9bdc",
    "#009E73": "#1fbf92",
    "#332288": "#8f83ec",
    "#882255": "#d0608f",
    TRUTH: "#a9c7ee",
    ALPHA: "#d6ac1e",
    SPARSITY: "#62b08c",
    DEAD: "#b08fd3",
    "#b9c8d8": "#3c4f66",
    "#0b1f36": "#dbe8f7",
    "#f7f7f7": "#23282e",
}
