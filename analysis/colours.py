"""The colours of schedules, the same in all figures and reports, and all other colours."""

from itertools import cycle

from emaae.schedules import SCHEDULES

# For colour-blind readers: Okabe & Ito's colours without the pale yellow, and without the black,
# which is that of the input; then Tol's.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255"),
    *("#7f7f33", "#7f7f7f"),
)
# The schedules that are compared most have the most distinct colours.
_FIRST = ("constant", "linear", "cosine", "log_lambda", "step", "exponential")
# If there are more schedules than colours, dashes and labels tell them apart.
SCHEDULE_COLOURS = dict(
    zip((*_FIRST, *(name for name in SCHEDULES if name not in _FIRST)), cycle(COLOURS))
)

INK, SOFT, FAINT, PAPER = "#22282f", "#66707a", "#e3e6e9", "#ffffff"
SCHEDULE_COLOURS["unknown"] = SOFT  # of runs that left no config
TRUTH, PREDICTION = "#1d3557", "#e07a5f"
ALPHA, SPARSITY, DEAD = "#b08900", "#3d7a5f", "#7d5a9e"
# From the most negative value by way of 0 to the most positive.
SIGNED = ("#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b")
SILENCE_TO_PEAK = (PAPER, "#b9c8d8", "#0b1f36")

# On a dark page each colour is replaced by another; the largest values are brightest.
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
