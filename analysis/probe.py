"""Which phones and gestures does an encoding show? `python -m analysis.probe REF...` predicts them.

A linear probe (Alain & Bengio 2016, "Understanding intermediate layers using linear classifier
probes"): multinomial logistic regression from one frame of a frozen encoding to the label of that
frame. It is fitted to the train split, its L2 penalty is chosen on val, and its accuracy is that on
test, which has other speakers. Labels come from the score of generated speech.

A wide encoding may be better for reasons other than training. Therefore the same probe is fitted to
the raw features of that frame, to those of all frames that the encoder sees, and to the encoding of
an untrained model of the same architecture.

Shifts are as in `emaae.shift`: the input is delayed, its first and last frames are held, the labels
stay in place. Probes are fitted without shifts.
"""

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import emaae
from analysis import kernels
from analysis.costs import Codec
from analysis.labels import LABELS, Labelled, Splits, read_splits
from analysis.programs import named, program, run_program
from analysis.tables import Row, frame, markdown, write
from emaae.data.features import CHANNELS, SPLITS
from emaae.data.split import mean_and_sd
from emaae.models import CNNAutoEncoder
from emaae.system.errors import UserError, needs_extra
from emaae.system.progress import progress

SHIFTS = {1: "20ms", 2: "40ms", 3: "60ms"}  # frames, to either side
DELAYS = range(-3, 4)
# L2 penalties beside the mean cross-entropy, strongest first: each fit begins where the last ended.
L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
MAX_STEPS = 500
ENCODING = "encoding"

# Raw features (T, 14) of one utterance -> what the probe reads (T, n).
View = Callable[[np.ndarray], np.ndarray]


# ---- what a probe reads


def shifted(frames: np.ndarray, delay: int) -> np.ndarray:
    """Frames (T, ...) that come `delay` frames later, their first and last held at the ends."""
    return frames[np.clip(np.arange(len(frames)) - delay, 0, len(frames) - 1)]


def raw(n_channels: int, n_frames: int = 1) -> View:
    """The view of n_frames frames around each, odd, ends held: (T, n_channels * n_frames)."""
    delays = range(-(n_frames // 2), n_frames // 2 + 1)

    def view(features: np.ndarray) -> np.ndarray:
        frames = features[:, kernels.form_of(n_channels).columns]
        return np.concatenate([shifted(frames, delay) for delay in delays], axis=1)

    return view


def untrained(model: CNNAutoEncoder, train: Sequence[Labelled]) -> CNNAutoEncoder:
    """A model of the same architecture, random weights (seed 0), that standardises by `train`."""
    frames = np.concatenate([raw(model.input_dim)(u.features) for u in train])
    return kernels.untrained(model, 0, *map(torch.from_numpy, mean_and_sd(frames)))


# ---- the probe


def fit(
    x: np.ndarray,
    labels: np.ndarray,
    x_val: np.ndarray,
    labels_val: np.ndarray,
    strengths: Sequence[float] = L2,
) -> tuple[Any, float]:
    """The probe of frames x (N, n) and their labels (N,) with the best accuracy on val.

    Returns scikit-learn's pipeline and the strength of its penalty. It minimises the mean
    cross-entropy + l2 / 2 ||weights||^2 of standardised inputs. Strengths are tried from the
    strongest on, until val gets worse; of two that are as good the stronger is taken. Raises
    UserError without scikit-learn, and for labels that are all the same.
    """
    with needs_extra("analysis"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    if len(set(labels)) < 2:
        raise UserError(
            f"all frames have the label {labels[0]}: expected two or more to tell apart"
        )
    scaler = StandardScaler().fit(x)
    # Newton's method, since neighbouring frames as inputs are too much alike for gradients.
    classifier = LogisticRegression(solver="newton-cg", max_iter=MAX_STEPS, warm_start=True)
    inputs = scaler.transform(x)
    best, best_l2, best_accuracy = None, math.nan, -1.0
    for l2 in sorted(strengths, reverse=True):
        classifier.set_params(C=1 / (l2 * len(x))).fit(inputs, labels)
        probe = make_pipeline(scaler, copy.deepcopy(classifier))
        accuracy = (probe.predict(x_val) == labels_val).mean()
        if accuracy < best_accuracy:
            break
        if accuracy > best_accuracy:
            best, best_l2, best_accuracy = probe, l2, accuracy
    return best, best_l2


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes in `labels` (N,) of the fraction of frames that are right, 0..1.

    Always the same answer gives 1 / classes.
    """
    return float(np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)]))


# ---- the comparison


class Result(NamedTuple):
    """How well an input predicts a set of labels, on the test split.

    model: "" if the input needs none. true: the labels (T,) of each utterance's frames; predicted:
    the same by delay in frames. l2: that of the probe, NaN where there is none.
    """

    model: str
    labels: str
    input: str
    true: list[np.ndarray]
    predicted: Mapping[int, list[np.ndarray]]
    n_inputs: int = 0
    l2: float = math.nan

    def right(self, delay: int = 0) -> np.ndarray:
        """How many frames of each utterance are right (U,)."""
        return np.array([(a == b).sum() for a, b in zip(self.true, self.predicted[delay])])

    @property
    def n_frames(self) -> np.ndarray:
        """Frames of each utterance (U,)."""
        return np.array([len(one) for one in self.true])

    def accuracy(self, delay: int = 0) -> float:
        """The fraction of all frames that are right, 0..1."""
        return float(self.right(delay).sum() / self.n_frames.sum())

    def balanced(self) -> float:
        """The balanced accuracy, 0..1."""
        return balanced_accuracy(np.concatenate(self.true), np.concatenate(self.predicted[0]))

    def shifted(self, n_frames: int) -> float:
        """The accuracy under shifts by n_frames, mean of early and late."""
        return (self.accuracy(-n_frames) + self.accuracy(n_frames)) / 2

    def kept(self, n_frames: int) -> float:
        """The accuracy under shifts by n_frames over that without; NaN if that is 0."""
        return self.shifted(n_frames) / self.accuracy() if self.accuracy() else math.nan

    def row(self) -> Row:
        """The result as a row of a table."""
        fields = ("model", "labels", "input", "n_inputs", "l2")
        row = {name: getattr(self, name) for name in fields}
        row |= {"accuracy": self.accuracy(), "balanced_accuracy": self.balanced()}
        row |= {f"kept_{ms}": self.kept(n) for n, ms in SHIFTS.items()}
        for n, ms in SHIFTS.items():
            row[f"accuracy_{ms}_early"] = self.accuracy(-n)
            row[f"accuracy_{ms}_late"] = self.accuracy(n)
        return row


def measure(
    splits: Splits, model: str, input: str, view: View, delays: Sequence[int] = DELAYS
) -> list[Result]:
    """A probe of each set of labels, fitted to a view of the train split, measured on test."""
    x, x_val = (np.concatenate([view(u.features) for u in splits[s]]) for s in ("train", "val"))
    x_test = {d: [view(shifted(u.features, d)) for u in splits["test"]] for d in delays}
    results = []
    for name in LABELS:
        train, val, true = ([u.labels[name] for u in splits[s]] for s in SPLITS)
        pipeline, l2 = fit(x, np.concatenate(train), x_val, np.concatenate(val))
        predicted = {d: [pipeline.predict(one) for one in x_test[d]] for d in delays}
        results.append(Result(model, name, input, true, predicted, x.shape[1], l2))
    return results


def references(splits: Splits, name: str) -> list[Result]:
    """Always the train split's most frequent label; and labels that are known, but shifted."""
    train, true = ([u.labels[name] for u in splits[s]] for s in ("train", "test"))
    classes, counts = np.unique(np.concatenate(train), return_counts=True)
    most_frequent = [np.full(len(labels), classes[counts.argmax()]) for labels in true]
    known = {d: [shifted(labels, d) for labels in true] for d in DELAYS}
    return [
        Result("", name, "most frequent label", true, dict.fromkeys(DELAYS, most_frequent)),
        Result("", name, "labels themselves", true, known),
    ]


def compare(models: Mapping[str, CNNAutoEncoder], splits: Splits) -> list[Result]:
    """Every input for every model and set of labels; baselines that models share occur once."""
    views: dict[tuple[str, str], View] = {}
    for name, model in models.items():
        frame, context, random_weights = baseline_inputs(model)
        views["", frame] = raw(model.input_dim)
        views["", context] = raw(model.input_dim, model.receptive_field())
        views["", random_weights] = Codec.of(untrained(model, splits["train"])).encoding
        views[name, ENCODING] = Codec.of(model).encoding
    results = [one for labels in LABELS for one in references(splits, labels)]
    for (name, input), view in progress(views.items(), "probing", total=len(views), unit="inputs"):
        results += measure(splits, name, input, view)
    order = ["", *models]
    return sorted(results, key=lambda r: (LABELS.index(r.labels), order.index(r.model)))


def baseline_inputs(model: CNNAutoEncoder) -> tuple[str, str, str]:
    """The baselines of a model's encoding: one frame, its receptive field, random weights."""
    loudness = " with loudness" if model.input_dim == len(CHANNELS) else ""
    norm = "" if model.norm == "none" else f", norm {model.norm}"
    # An untrained threshold is 0: batch_topk is then a ReLU.
    if model.activation == "feature_topk":
        norm += f", {model.activation} {model.gate_frames}"
    return (
        f"raw{loudness}, 1 frame",
        f"raw{loudness}, {model.receptive_field()} frames",
        f"untrained{loudness}, {model.n_encoder} blocks, {model.inner_size} units{norm}",
    )


def difference(a: Result, b: Result) -> tuple[float, float]:
    """The accuracy of a less that of b, and its standard error over utterances.

    Frames of an utterance are not independent, so utterances are the sampling units (the ratio
    estimator of cluster sampling, Cochran 1977, ch. 6). NaN for a single utterance.
    """
    gained, n_frames, n = a.right() - b.right(), a.n_frames, len(a.true)
    mean = gained.sum() / n_frames.sum()
    spread = np.square(gained - mean * n_frames).sum() * n / (n - 1) if n > 1 else math.nan
    return float(mean), float(math.sqrt(spread) / n_frames.sum())


# ---- tables


def table(results: Sequence[Result]) -> str:
    """Markdown, a line per result."""
    head = ["labels", "model", "input", "n", "l2", "accuracy", "balanced"]
    head += [f"±{20 * n} ms" for n in SHIFTS]
    lines = []
    for r in results:
        l2 = "-" if math.isnan(r.l2) else f"{r.l2:g}"
        cells = [r.labels, r.model or "-", r.input, str(r.n_inputs or "-"), l2]
        cells += [f"{r.accuracy():.3f}", f"{r.balanced():.3f}"]
        lines.append(cells + [f"{r.shifted(n):.3f} ({r.kept(n):.0%})" for n in SHIFTS])
    return markdown(head, lines)


def gains(results: Sequence[Result], models: Mapping[str, CNNAutoEncoder]) -> str:
    """Markdown, a line per set of labels and model: its accuracy less that of each baseline."""
    found = {(r.labels, r.model, r.input): r for r in results}
    lines = []
    for labels, (name, model) in itertools.product(LABELS, models.items()):
        own = found[labels, name, ENCODING]
        pairs = [difference(own, found[labels, "", other]) for other in baseline_inputs(model)]
        lines.append([labels, name, *(f"{gain:+.3f} ± {error:.3f}" for gain, error in pairs)])
    return markdown(
        ["labels", "model", "minus raw frame", "minus raw frames", "minus untrained"], lines
    )


HOW_TO_READ = """\
accuracy: fraction of correct test frames; balanced: mean accuracy over labels, rare or frequent.
± ms: mean accuracy with the input shifted early and late (as a fraction of that without a shift).
`labels themselves` is a perfect probe with the same shifts. The fraction means little for an input
that is hardly better than the most frequent label.

Accuracy of the encoding minus that of each baseline, ± standard error over utterances:"""


def main(argv: Sequence[str] | None = None) -> None:
    """Probe the models, print the tables, and write the first one if asked to."""
    parser = program("probe", __doc__, "models", "--data")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write the table there too")
    args = parser.parse_args(argv)
    if args.out is not None:
        named(args.out, ".csv")
    models = {ref: emaae.load_model(ref) for ref in args.models}
    results = compare(models, read_splits(args.data))
    print(f"{table(results)}\n\n{HOW_TO_READ}\n\n{gains(results, models)}")
    if args.out is not None:
        write(frame([result.row() for result in results]), args.out)


if __name__ == "__main__":
    run_program("probe", main)
