"""How fast is training on a CPU? `python -m benchmarks.step`

Compares emaae with the plain step of reference.py, and with the peak speed of matrix products and
convolutions on this machine. Each trains on a typical batch of its own order of utterances, with
LibriSpeech's lengths. Times are per real frame, so that the cost of padding is included.
"""

import argparse
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import corpus, reference
from benchmarks.timing import DTYPES, PRECISIONS, TURNS, interleaved, machine, show
from emaae.activations import ACTIVATIONS
from emaae.config import Config
from emaae.data.split import Split, batches, evaluation_order, training_order
from emaae.evaluation import evaluate
from emaae.filters import apply_filters, decode_filtered, windowed_sinc
from emaae.models import CNNAutoEncoder, build_model
from emaae.shift import CUTOFFS, LOWPASS_TAPS, epoch_metrics, sample, shift_tolerance
from emaae.system.devices import keep_freed_memory
from emaae.training import Run, TrainingState, train_epoch

PRESETS = {"5/3": (5, 3), "3/3": (3, 3), "2/2": (2, 2)}


class Silent(Run):
    """A run that ignores all events."""


def model_of(inner_size: int, blocks: tuple[int, int]) -> CNNAutoEncoder:
    """A new model without a normaliser: the noise for the timings is standardised already."""
    torch.manual_seed(0)
    return build_model(inner_size=inner_size, n_encoder=blocks[0], n_decoder=blocks[1])


def ours(
    split: Split, inner_size: int, blocks: tuple[int, int], **knobs: str
) -> Callable[[], None]:
    """A function that trains one epoch; knobs: further settings of `Config`."""
    size = {"inner_size": inner_size, "n_encoder": blocks[0], "n_decoder": blocks[1]}
    config = Config.from_mapping(size | knobs)
    torch.manual_seed(0)
    model = build_model(**config.architecture).to(split.device)
    return epoch_of(TrainingState.begin(model, config), split, config)


def epoch_of(state: TrainingState, split: Split, config: Config) -> Callable[..., None]:
    """A function that trains one epoch at a given alpha, without printing progress."""

    def epoch(alpha: float = 0.25) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train_epoch(state, split, alpha, config, Silent())
        state.end_epoch()

    return epoch


def textbook(split: Split, inner_size: int, blocks: tuple[int, int]) -> Callable[[], None]:
    """A function that does one step of the reference on all utterances as one batch."""
    torch.manual_seed(0)
    model = reference.Reference(inner_size, *blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    return partial(reference.step, model, optimizer, *reference.padded(split))


def settled(heap: Callable[[], None], step: Callable[[], object]) -> Callable[[], None]:
    """A function to call before a timed step: sets up the heap, and warms it up with one step."""

    def before() -> None:
        heap()
        step()

    return before


def peaks() -> dict[str, float]:
    """Peak speed by precision in FLOP per second (a multiply-add is two FLOP).

    The best of matrix products and convolutions: on some CPUs the library of the one reaches only
    half the speed of the other's.
    """
    rate_by_precision = {}
    for name in PRECISIONS:
        dtype, rates = DTYPES[name], []
        for width, n_frames in ((512, 640), (1024, 640)):
            x = torch.randn(8, width, n_frames).to(dtype)
            w = torch.randn(width, width, 3).to(dtype)
            a, b = w.flatten(1), torch.randn(3 * width, 8 * n_frames).to(dtype)
            ways = {
                "matrices": lambda a=a, b=b: torch.mm(a, b),
                "convolution": lambda x=x, w=w: F.conv1d(x, w, padding=1),
            }
            with torch.no_grad():
                rates.append(2 * w.numel() * 8 * n_frames / min(interleaved(ways).values()))
        rate_by_precision[name] = max(rates)
    return rate_by_precision


def flops(inner_size: int, blocks: tuple[int, int]) -> int:
    """FLOP of the forward pass per frame; training needs three times as many."""
    return 2 * sum(weight.numel() for weight in model_of(inner_size, blocks).conv_weights())


def typical_splits(batch_sz: int = 32) -> tuple[Split, Split, str]:
    """Typical batches in random order and in the order of emaae, and a text on their padding."""
    lengths = corpus.lengths()
    at_random = reference.random_order(len(lengths), batch_sz)
    similar = training_order(lengths, batch_sz, 0, 0)
    line = "padding of an epoch: at random x {:.3f}, similar lengths together x {:.3f}".format(
        *(corpus.total_padding(lengths, order) for order in (at_random, similar))
    )
    theirs, own = (corpus.noise(corpus.typical(lengths, order)) for order in (at_random, similar))
    return theirs, own, line


HEAD = ["blocks", "", "ms / 1000 frames", "against the reference", "of the peak"]


def rows_of(
    label: str, candidates: dict, before: dict, frames: dict, work: int, args: argparse.Namespace
) -> Iterator[list[str]]:
    """Time the candidates; the rows of a table that compares them with the first.

    before: see `interleaved`. frames: real frames by candidate. work: FLOP per frame.
    """
    seconds = interleaved(candidates, args.turns, before)
    per_frame = {name: took / frames[name] for name, took in seconds.items()}
    first = next(iter(per_frame.values()))
    for name, took in per_frame.items():
        peak = args.peaks.get(name.split()[-1], args.peaks["float32"])
        of_peak = f"{100 * work / peak / took:.0f} %"
        yield [label, name, f"{1e6 * took:.0f}", f"x {first / took:.2f}", of_peak]


def training(args: argparse.Namespace) -> None:
    """The table of training steps."""
    theirs, own, line = typical_splits()

    def rows() -> Iterator[list[str]]:
        for preset in args.presets.split(","):
            size = (args.inner_size, PRESETS[preset])
            step = textbook(theirs, *size)
            candidates = {"reference": step, "reference, heap kept": step}
            heaps = (reference.heap_as_it_comes, keep_freed_memory)
            before = {name: settled(heap, step) for name, heap in zip(candidates, heaps)}
            frames = dict.fromkeys(candidates, len(theirs.frames))
            for name, precision in PRECISIONS.items():
                candidates[name] = ours(own, *size, precision=precision)
                frames[name] = len(own.frames)
            yield from rows_of(preset, candidates, before, frames, 3 * flops(*size), args)

    print(f"\n## Training\n\n{line}", flush=True)
    show(HEAD, rows())


def activations(args: argparse.Namespace) -> None:
    """The table of training steps with each activation."""
    _, own, _ = typical_splits()
    size = (args.inner_size, PRESETS["5/3"])

    def rows() -> Iterator[list[str]]:
        for label, precision in PRECISIONS.items():
            ways = {
                name: ours(own, *size, precision=precision, activation=name) for name in ACTIVATIONS
            }
            took = interleaved(ways, args.turns)
            for name, seconds in took.items():
                ms = f"{1e6 * seconds / len(own.frames):.1f}"
                yield [label, name, ms, f"x {seconds / took['relu']:.2f}"]

    print("\n## Activations")
    show(["5/3", "activation", "ms / 1000 frames", "against relu"], rows())


def validation(args: argparse.Namespace) -> None:
    """The table of validation."""
    theirs, own, _ = typical_splits()
    size = (args.inner_size, PRESETS["5/3"])
    model, textbook_model = model_of(*size), reference.Reference(args.inner_size, *PRESETS["5/3"])
    x, mask = reference.padded(theirs)
    own_x, own_mask = next(batches(own, evaluation_order(own.lengths, 32)))

    def ours_once(batch_sz: int, bf16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            evaluate(model, own, Config(batch_sz=batch_sz), 0.25)

    no_grad = torch.no_grad()
    theirs_once = no_grad(partial(reference.loss, textbook_model, x, mask))
    candidates = {
        "reference, loss alone": theirs_once,
        "all metrics, batches of 32, float32": partial(ours_once, 32),
        "the same, batches of 8, float32": partial(ours_once, 8),
        "the model alone, float32": no_grad(partial(model, own_x, own_mask)),
    }
    if "bfloat16" in PRECISIONS:
        candidates["(not offered) all metrics, bfloat16"] = partial(ours_once, 32, True)
    frames = dict.fromkeys(candidates, len(own.frames))
    frames["reference, loss alone"] = len(theirs.frames)
    before = {
        "reference, loss alone": settled(reference.heap_as_it_comes, theirs_once),
        "all metrics, batches of 32, float32": settled(keep_freed_memory, partial(ours_once, 32)),
    }
    print("\n## Validation")
    show(HEAD, rows_of("5/3", candidates, before, frames, flops(*size), args))


def decoded_one_by_one(model: CNNAutoEncoder, z: torch.Tensor, filters: torch.Tensor) -> None:
    """Compute the result of `decode_filtered` by its definition, one filter after the other."""
    for filtered_z in apply_filters(z, filters):
        model.decode(filtered_z[None])


@torch.no_grad()
def low_pass(args: argparse.Namespace) -> None:
    """The table of the low-pass evaluation of one utterance."""
    model, rows = model_of(args.inner_size, PRESETS["5/3"]), []
    for cutoffs in (CUTOFFS, np.linspace(0.05, 0.9, 20)):
        filters = torch.stack([windowed_sinc(LOWPASS_TAPS, float(cutoff)) for cutoff in cutoffs])
        for n_frames in (100, 400, 635, 1200):
            z = model.encode(torch.randn(1, 13, n_frames))[0]
            ways = {
                "by definition": partial(decoded_one_by_one, model, z, filters),
                "commuted": partial(decode_filtered, model, z, filters),
            }
            definition, commuted = interleaved(ways, args.turns).values()
            ms = [f"{1e3 * definition:.0f}", f"{1e3 * commuted:.0f}"]
            rows.append([str(len(cutoffs)), str(n_frames), *ms, f"x {definition / commuted:.1f}"])
    print("\n## Low-pass evaluation")
    show(["cutoffs", "frames", "filter first, ms / utterance", "convolution first, ms", ""], rows)


def metrics(args: argparse.Namespace) -> None:
    """The cost of the metrics of shifts: those of every epoch, and those of the selected model."""
    model, rows = model_of(args.inner_size, PRESETS["5/3"]), []
    for n in (28, 320, 2703):
        split = corpus.noise(corpus.lengths(n) * 7 // 13)  # as long as those of dev-clean
        ways = {
            "epoch": partial(evaluate, model, split, Config(), 0.25),
            "shifts": partial(epoch_metrics, model, sample(split)),
        }
        epoch, shifts = interleaved(ways, args.turns if n < 1000 else 1).values()
        rest = epoch - shifts
        rows.append([str(n), f"{rest:.2f}", f"{shifts:.2f}", f"{100 * shifts / rest:.1f} %"])
    print("\n## Metrics of every epoch")
    show(["validation utterances", "other metrics, s", "tolerance to shifts, s", "increase"], rows)

    split = corpus.noise(corpus.lengths(95))
    with contextlib.redirect_stdout(io.StringIO()):
        took = interleaved({"all": partial(shift_tolerance, model, split)}, 1)
    print(
        f"\nAll metrics of the selected model on {len(split.frames) / 50 / 60:.1f} minutes of "
        f"speech: {took['all']:.0f} s",
        flush=True,
    )


def scaling(args: argparse.Namespace) -> None:
    """The tables of cost by length and by number of utterances."""
    splits = {
        f"{s} s": corpus.noise(np.full(max(1, 6000 // (50 * s)), 50 * s)) for s in (1, 2, 5, 13, 35)
    }
    ways = {name: ours(s, args.inner_size, PRESETS["5/3"]) for name, s in splits.items()}
    seconds = interleaved(ways, args.turns)
    per_frame = {name: took / len(splits[name].frames) for name, took in seconds.items()}
    rows = [[k, f"{1e6 * v:.0f}", f"x {v / per_frame['13 s']:.2f}"] for k, v in per_frame.items()]
    print("\n## Cost against length, float32")
    show(["length of utterances", "training, ms / 1000 frames", "against 13 s"], rows)

    def epoch_without_a_model(split: Split) -> None:
        for _ in batches(split, training_order(split.lengths, 32, 0, 0)):
            pass

    splits = {f"{n}": corpus.noise(corpus.lengths(n)) for n in (1000, 5000, 30_000)}
    ways = {name: partial(epoch_without_a_model, split) for name, split in splits.items()}
    seconds = interleaved(ways, args.turns)
    rows = [
        [name, f"{took:.2f}", f"{1e6 * took / len(splits[name].frames):.2f}"]
        for name, took in seconds.items()
    ]
    print("\n## Cost against number")
    show(["utterances", "an epoch's batches, s", "ms / 1000 frames"], rows)


def memory(args: argparse.Namespace) -> None:
    """The table of peak memory, each row from a process of its own."""
    rows = []
    for name in ("nothing", "reference", "float32, heap not kept", *PRECISIONS):
        command = [sys.executable, "-m", "benchmarks.step", f"--inner_size={args.inner_size}"]
        done = subprocess.run(
            [*command, f"--peak_memory_of={name}"], capture_output=True, text=True, check=True
        )
        rows.append([name, f"{int(done.stdout) / 2**20:.2f}"])
    print("\n## Memory")
    show(["two steps at 5/3", "peak memory, GiB"], rows)


def two_steps(name: str, inner_size: int) -> None:
    """Print the peak memory of this process in KiB after two steps.

    name: nothing, reference, or a precision, which "..., heap not kept" may follow.
    """
    theirs, own, _ = typical_splits()
    if name != "nothing":
        size = (inner_size, PRESETS["5/3"])
        if name in PRECISIONS:
            keep_freed_memory()
        precision = PRECISIONS.get(name.split(",")[0])
        step = ours(own, *size, precision=precision) if precision else textbook(theirs, *size)
        step(), step()
    # getrusage would include the peak of the parent process.
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\s*(\d+)", status)[1])


TABLES = {
    f.__name__: f for f in (training, activations, validation, low_pass, metrics, scaling, memory)
}


def main() -> None:
    """Print the tables, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inner_size", type=int, default=1024, help="units (default: 1024)")
    help_turns = "timings of each (default: %(default)s)"
    parser.add_argument("--turns", type=int, default=TURNS, help=help_turns)
    help_presets = "blocks of encoder/decoder in the table of training (default: %(default)s)"
    parser.add_argument("--presets", default="5/3,3/3,2/2", help=help_presets)
    parser.add_argument("--only", choices=TABLES, help="print one table (default: all)")
    parser.add_argument("--peak_memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory_of:
        two_steps(args.peak_memory_of, args.inner_size)
        return
    print(f"# Speed on a CPU\n\n{machine()}\n")
    args.peaks = peaks()
    rates = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in args.peaks.items())
    print(f"matrix peak, GFLOP/s: {rates}", flush=True)
    for name in [args.only] if args.only else TABLES:
        keep_freed_memory()
        TABLES[name](args)


if __name__ == "__main__":
    main()
