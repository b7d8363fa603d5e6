"""The colour of each schedule: the same one in every figure and report."""

from itertools import cycle

from emaae.schedules import SCHEDULES

# Okabe & Ito's colours, which the colour-blind tell apart, but for their pale yellow, and their
# black, which is the input's; then Tol's.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255"),
    *("#7f7f33", "#7f7f7f"),
)
# Those that are compared most are told apart best.
_FIRST = ("constant", "linear", "cosine", "log_lambda", "step", "exponential")
# More schedules than colours share some: line styles and labels tell those apart.
SCHEDULE_COLOURS = dict(
    zip((*_FIRST, *(name for name in SCHEDULES if name not in _FIRST)), cycle(COLOURS))
)
