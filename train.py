"""Train and evaluate one sparse autoencoder on articulatory features.

A sweep runs this program for each of its points. The steps of a run, in order: config, data, model,
run, fit, evaluate, publish. `python train.py --help` lists the flags.
"""

import contextlib
import gc
import os
import sys
from typing import Any

from emaae import command_line
from emaae.system.errors import reporting_errors
from emaae.tracking import agent

# Exit status of a run whose loss diverged; usage errors have exit status 2.
DIVERGED = 3


def main(argv: list[str] | None = None) -> int:
    """Do one run; returns the exit status."""
    # The values of a W&B sweep are read from its agent, even if they are also on the command line.
    config = command_line.from_args(agent.without_agent_flags(argv), sweep=agent.sweep_values())

    # Imported after the flags are checked, since torch takes seconds to import.
    import torch

    from emaae.data.load import load_splits
    from emaae.evaluation import evaluate
    from emaae.models import build_model
    from emaae.runs import checkpoint
    from emaae.runs.console import Terminal
    from emaae.runs.folder import RunFolder, check_space, continues, status_if_ended
    from emaae.shift import shift_tolerance
    from emaae.system import distributed
    from emaae.system.devices import keep_freed_memory, make_deterministic, pick_device
    from emaae.tracking import mirror
    from emaae.training import fit

    # Objects made by imports stay in memory: keep garbage collection from scanning them.
    gc.freeze()
    device = pick_device(config.device)
    if config.deterministic:
        make_deterministic()
    if device.type == "cpu":
        keep_freed_memory()
    if status := status_if_ended(config):
        print(f"the run is {status} already: nothing is left to do", flush=True)
        return DIVERGED if status == "diverged" else 0
    # Data and weights are read first: a run that lacks them leaves nothing on disk or on W&B.
    check_space(config)
    splits = load_splits(config)
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture)
    if config.checkpoint and not continues(config):
        checkpoint.load_weights(model, config.checkpoint)  # with mean and sd
    else:
        model.normalise(*splits["train"].mean_and_sd())
    with RunFolder.open(config) as run:
        print(f"run {run.path}", flush=True)
        run.write_config(model, splits)
        terminal = Terminal(run, config)
        run.observers = (mirror.start(config, run.path), terminal)
        terminal.print_start(model, splits)

        model.to(device)
        splits = {name: split.to(device) for name, split in splits.items()}
        metrics: dict[str, Any] = {}
        curves: dict[str, Any] = {}
        if config.eval_only:
            status, to_measure, alpha = "finished", list(splits), config.alpha
        else:
            fitted = fit(model, splits["train"], splits["val"], config, run, run.last)
            status, to_measure, alpha = fitted.status, [], fitted.selection.alpha
            if fitted.best is not None:
                model.load_state_dict(fitted.best)
                to_measure = [name for name in splits if name == "test"]
                metrics = fitted.selection.metrics()

        # The main process alone measures the rest and writes the results.
        distributed.leave_process_group()
        if not distributed.is_main_process():
            return 0
        for name in to_measure:
            row = evaluate(model, splits[name], config, alpha)
            metrics |= {f"{name}/{key}": value for key, value in row.items()}
        if config.eval_only or fitted.best is not None:
            split = next(name for name in ("test", "val", "train") if name in splits)
            row, shift_curves = shift_tolerance(model, splits[split])
            metrics, curves = metrics | row, {"split": split} | shift_curves
        run.finish(metrics, status, curves)
    return DIVERGED if status == "diverged" else 0


def process_group() -> contextlib.AbstractContextManager[None]:
    """The context of a run: joins the processes that torchrun started, if it started any."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # checked here to avoid importing torch
        return contextlib.nullcontext()
    from emaae.system import distributed

    return distributed.process_group()


if __name__ == "__main__":
    with reporting_errors("train.py"), process_group():
        sys.exit(main())
