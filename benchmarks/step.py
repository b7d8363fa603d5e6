"""How fast is training on a CPU? `python -m benchmarks.step`

Against the textbook step of reference.py and against the floor, the time that the machine's matrix
products alone take. Both train on a batch as their own order cuts it from an epoch of LibriSpeech's
lengths; times are per real frame, so that padding costs what it costs.
"""

import argparse
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import corpus, reference
from benchmarks.timing import DTYPES, PRECISIONS, TURNS, interleaved, machine, show, table
from emaae.activations import ACTIVATIONS
from emaae.config import Config
from emaae.data import Split, batches, evaluation_order, training_order
from emaae.evaluation import evaluate
from emaae.filters import decode_filtered, filtered, windowed_sinc
from emaae.models import CNNAutoEncoder, build_model
from emaae.shift import CUTOFFS, LOWPASS_TAPS, quick, sample, shift_tolerance
from emaae.system.devices import keep_heap
from emaae.training import Run, State, train_epoch

PRESETS = {"5/3": (5, 3), "3/3": (3, 3), "2/2": (2, 2)}


class Silent(Run):
    """A run that keeps nothing."""


def model_of(inner_size: int, blocks: tuple[int, int]) -> CNNAutoEncoder:
    """A new model; the noise that it is timed on is standardised already."""
    torch.manual_seed(0)
    return build_model(inner_size=inner_size, n_encoder=blocks[0], n_decoder=blocks[1])


def ours(
    split: Split, inner_size: int, blocks: tuple[int, int], **knobs: str
) -> Callable[[], None]:
    """What trains an epoch; knobs: of `Config`."""
    size = {"inner_size": inner_size, "n_encoder": blocks[0], "n_decoder": blocks[1]}
    config = Config.from_mapping(size | knobs)
    torch.manual_seed(0)
    state = State.begin(build_model(**config.architecture).to(split.device), config)

    def epoch() -> None:
        # Its progress is not what is asked here.
        with contextlib.redirect_stdout(io.StringIO()):
            train_epoch(state, split, 0.25, config, Silent())
        state.end_epoch()

    return epoch


def textbook(split: Split, inner_size: int, blocks: tuple[int, int]) -> Callable[[], None]:
    """What trains the reference on all utterances as one batch."""
    torch.manual_seed(0)
    model = reference.Reference(inner_size, *blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    x, mask = reference.padded(split)

    return lambda: reference.step(model, optimizer, x, mask)


def heaps(theirs: Callable[[], object], ours: Callable[[], object]) -> tuple[Callable, Callable]:
    """What comes before the reference and before ours: the heap of each, with its steady state."""

    def as_it_comes() -> None:
        reference.heap_as_it_comes()
        theirs()

    def kept() -> None:
        keep_heap()
        ours()

    return as_it_comes, kept


def peaks() -> dict[str, float]:
    """FLOP per second, a multiply-add being two: the best of a matrix product and of convolutions.

    On some CPUs the library behind the one reaches only half of what the other does.
    """
    found = {}
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
        found[name] = max(rates)
    return found


def flops(inner_size: int, blocks: tuple[int, int]) -> int:
    """Of the forward pass per frame; of training three times as many."""
    return 2 * sum(weight.numel() for weight in model_of(inner_size, blocks).conv_weights())


def typical_splits(batch_sz: int = 32) -> tuple[Split, Split, str]:
    """A typical batch of random order, one of ours, and a line on their padding."""
    lengths = corpus.lengths()
    at_random = reference.random_order(len(lengths), batch_sz)
    similar = training_order(lengths, batch_sz, 0, 0)
    line = "padding of an epoch: at random x {:.3f}, similar lengths together x {:.3f}".format(
        *(corpus.total_padding(lengths, order) for order in (at_random, similar))
    )
    theirs, own = (corpus.noise(corpus.typical(lengths, order)) for order in (at_random, similar))
    return theirs, own, line


def rows_of(
    label: str, candidates: dict, before: dict, frames: dict, work: int, rate: dict, turns: int
) -> list[list[str]]:
    """Time candidates; the first is what the others are compared with. work: FLOP per frame."""
    seconds = interleaved(candidates, turns, before)
    per_frame = {name: took / frames[name] for name, took in seconds.items()}
    first = next(iter(per_frame.values()))
    return [
        [label, name, f"{1e6 * took:.0f}", f"x {first / took:.2f}"]
        + [f"{100 * work / rate.get(name.split()[-1], rate['float32']) / took:.0f} %"]
        for name, took in per_frame.items()
    ]


HEAD = ["blocks", "", "ms / 1000 frames", "against the reference", "of the peak"]


def training(inner_size: int, turns: int, presets: list[str], rate: dict) -> None:
    """The table of training steps."""
    theirs, own, line = typical_splits()

    def rows_of_preset(preset: str) -> list[list[str]]:
        blocks = PRESETS[preset]
        textbook_step = textbook(theirs, inner_size, blocks)
        candidates = {"reference": textbook_step, "reference, heap kept": textbook_step}
        before = dict(zip(candidates, heaps(textbook_step, textbook_step)))
        frames = dict.fromkeys(candidates, len(theirs.frames))
        for name, precision in PRECISIONS.items():
            candidates[name] = ours(own, inner_size, blocks, precision=precision)
            frames[name] = len(own.frames)
        work = 3 * flops(inner_size, blocks)
        return rows_of(preset, candidates, before, frames, work, rate, turns)

    print(f"\n## Training\n\n{line}", flush=True)
    show(HEAD, (row for preset in presets for row in rows_of_preset(preset)))


def activations(inner_size: int, turns: int) -> None:
    """What an activation that keeps the largest values adds to a step."""
    _, own, _ = typical_splits()
    rows = []
    for label, precision in PRECISIONS.items():
        candidates = {
            name: ours(own, inner_size, PRESETS["5/3"], precision=precision, activation=name)
            for name in ACTIVATIONS
        }
        took = interleaved(candidates, turns)
        for name, seconds in took.items():
            ms = f"{1e6 * seconds / len(own.frames):.1f}"
            rows.append([label, name, ms, f"x {seconds / took['relu']:.2f}"])
    head = ["5/3", "activation", "ms / 1000 frames", "against relu"]
    print(f"\n## Activations\n\n{table(head, rows)}", flush=True)


def validation(inner_size: int, turns: int, rate: dict) -> None:
    """The table of validation."""
    theirs, own, _ = typical_splits()
    blocks = PRESETS["5/3"]
    model, textbook_model = model_of(inner_size, blocks), reference.Reference(inner_size, *blocks)
    x, mask = reference.padded(theirs)
    own_x, own_mask = next(batches(own, evaluation_order(own.lengths, 32)))

    @torch.no_grad()
    def theirs_once() -> None:
        reference.loss(textbook_model, x, mask)

    def ours_once(batch_sz: int, bf16: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            evaluate(model, own, Config(batch_sz=batch_sz), 0.25)

    @torch.no_grad()
    def forward_only() -> None:
        model(own_x, own_mask)

    candidates = {
        "reference, loss alone": theirs_once,
        "all metrics, batches of 32, float32": lambda: ours_once(32),
        "the same, batches of 8, float32": lambda: ours_once(8),
        "the model alone, float32": forward_only,
    }
    if "bfloat16" in PRECISIONS:
        candidates["(not offered) all metrics, bfloat16"] = lambda: ours_once(32, True)
    frames = dict.fromkeys(candidates, len(own.frames))
    frames["reference, loss alone"] = len(theirs.frames)
    before = dict(zip(candidates, heaps(theirs_once, lambda: ours_once(32))))
    rows = rows_of("5/3", candidates, before, frames, flops(inner_size, blocks), rate, turns)
    print(f"\n## Validation\n\n{table(HEAD, rows)}", flush=True)


def decoded_one_by_one(model: CNNAutoEncoder, z: torch.Tensor, filters: torch.Tensor) -> None:
    """What `decode_filtered` computes, by its definition."""
    for filtered_z in filtered(z, filters):
        model.decode(filtered_z[None])


@torch.no_grad()
def low_pass(inner_size: int, turns: int) -> None:
    """The table of the low-pass evaluation of one utterance."""
    model, rows = model_of(inner_size, PRESETS["5/3"]).eval(), []
    keep_heap()
    for cutoffs in (CUTOFFS, np.linspace(0.05, 0.9, 20)):
        filters = torch.stack([windowed_sinc(LOWPASS_TAPS, float(cutoff)) for cutoff in cutoffs])
        for n_frames in (100, 400, 635, 1200):
            z = model.encode(torch.randn(1, 13, n_frames))[0]
            ways = {
                "by definition": partial(decoded_one_by_one, model, z, filters),
                "commuted": partial(decode_filtered, model, z, filters),
            }
            definition, commuted = interleaved(ways, turns).values()
            rows.append(
                [str(len(cutoffs)), str(n_frames), f"{1e3 * definition:.0f}"]
                + [f"{1e3 * commuted:.0f}", f"x {definition / commuted:.1f}"]
            )
    head = ["cutoffs", "frames", "by definition, ms / utterance", "commuted, ms", ""]
    print(f"\n## Low-pass evaluation\n\n{table(head, rows)}", flush=True)


def metrics(inner_size: int, turns: int) -> None:
    """The tables of the metrics of shifts: each epoch's few, and all of the selected model."""
    model, rows = model_of(inner_size, PRESETS["5/3"]), []
    keep_heap()
    for n in (28, 320, 2703):
        split = corpus.noise(corpus.lengths(n) * 7 // 13)  # as long as those of dev-clean
        ways = {
            "epoch": partial(evaluate, model, split, Config(), 0.25),
            "shifts": partial(quick, model, sample(split)),
        }
        epoch, shifts = interleaved(ways, turns if n < 1000 else 1).values()
        rest = epoch - shifts
        rows.append([str(n), f"{rest:.2f}", f"{shifts:.2f}", f"{100 * shifts / rest:.1f} %"])
    head = ["validation utterances", "the rest, s", "tolerance to shifts, s", "adds"]
    print(f"\n## Metrics of every epoch\n\n{table(head, rows)}", flush=True)

    split = corpus.noise(corpus.lengths(95))
    with contextlib.redirect_stdout(io.StringIO()):
        found = interleaved({"all": lambda: shift_tolerance(model, split)}, 1)
    print(
        f"\nAll metrics of the selected model on {len(split.frames) / 50 / 60:.1f} minutes of "
        f"speech: {found['all']:.0f} s",
        flush=True,
    )


def scaling(inner_size: int, turns: int) -> None:
    """The tables of cost against the length and the number of utterances."""
    seconds_each, n_frames, rows = (1, 2, 5, 13, 35), 6000, []
    candidates, frames = {}, {}
    keep_heap()
    for s in seconds_each:
        split = corpus.noise(np.full(max(1, n_frames // (50 * s)), 50 * s))
        name = f"{s} s"
        candidates[name] = ours(split, inner_size, PRESETS["5/3"])
        frames[name] = len(split.frames)
    found = interleaved(candidates, turns)
    per_frame = {name: found[name] / frames[name] for name in found}
    middle = per_frame["13 s"]
    rows = [[k, f"{1e6 * v:.0f}", f"x {v / middle:.2f}"] for k, v in per_frame.items()]
    head = ["length of utterances", "training, ms / 1000 frames", "against 13 s"]
    print(f"\n## Cost against length, float32\n\n{table(head, rows)}", flush=True)

    def epoch_without_a_model(split: Split) -> Callable[[], None]:
        def once() -> None:
            for _ in batches(split, training_order(split.lengths, 32, 0, 0)):
                pass

        return once

    splits = {n: corpus.noise(corpus.lengths(n)) for n in (1000, 5000, 30_000)}
    found = interleaved({f"{n}": epoch_without_a_model(s) for n, s in splits.items()}, turns)
    rows = [
        [name, f"{took:.2f}", f"{1e6 * took / len(splits[int(name)].frames):.2f}"]
        for name, took in found.items()
    ]
    head = ["utterances", "an epoch's batches, s", "ms / 1000 frames"]
    print(f"\n## Cost against number\n\n{table(head, rows)}", flush=True)


def memory(inner_size: int) -> None:
    """The table of peak memory, each in a process of its own."""
    rows = []
    for name in ("nothing", "reference", "float32, heap not kept", *PRECISIONS):
        command = [sys.executable, "-m", "benchmarks.step", f"--inner_size={inner_size}"]
        done = subprocess.run(
            [*command, f"--peak_memory_of={name}"], capture_output=True, text=True, check=True
        )
        rows.append([name, f"{int(done.stdout) / 2**20:.2f}"])
    head = ["two steps at 5/3", "peak memory, GiB"]
    print(f"\n## Memory\n\n{table(head, rows)}", flush=True)


def two_steps(name: str, inner_size: int) -> None:
    """Print the peak memory of this process in KiB after two steps of what is called `name`."""
    theirs, own, _ = typical_splits()
    if name != "nothing":
        if name == "reference":
            step = textbook(theirs, inner_size, PRESETS["5/3"])
        else:
            if "not kept" not in name:
                keep_heap()
            precision = PRECISIONS[name.split(",")[0]]
            step = ours(own, inner_size, PRESETS["5/3"], precision=precision)
        step(), step()
    # Not getrusage's, which begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\s*(\d+)", status)[1])


def main() -> None:
    """Print the tables, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inner_size", type=int, default=1024, help="(default: 1024)")
    parser.add_argument("--turns", type=int, default=TURNS, help="(default: %(default)s)")
    parser.add_argument("--presets", default="5/3,3/3,2/2", help="(default: %(default)s)")
    tables = ("training", "activations", "validation", "low_pass", "metrics", "scaling", "memory")
    parser.add_argument("--only", choices=tables, help="(default: all of them)")
    parser.add_argument("--peak_memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory_of:
        two_steps(args.peak_memory_of, args.inner_size)
        return
    print(f"# Speed on a CPU\n\n{machine()}\n")
    rate = peaks()
    found = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in rate.items())
    print(f"matrix peak, GFLOP/s: {found}", flush=True)
    inner, turns = args.inner_size, args.turns
    show = {
        "training": lambda: training(inner, turns, args.presets.split(","), rate),
        "activations": lambda: activations(inner, turns),
        "validation": lambda: validation(inner, turns, rate),
        "low_pass": lambda: low_pass(inner, turns),
        "metrics": lambda: metrics(inner, turns),
        "scaling": lambda: scaling(inner, turns),
        "memory": lambda: memory(inner),
    }
    for name in tables if args.only is None else [args.only]:
        show[name]()


if __name__ == "__main__":
    main()
