"""Printing a run in the terminal: its data and model, its epochs, the final table."""

import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

from emaae.config import Config
from emaae.data.features import FRAME_RATE_HZ, SPLITS
from emaae.data.split import Split
from emaae.metric_table import SUMMARY, SUMMARY_AT_END
from emaae.models import CNNAutoEncoder
from emaae.runs.folder import NoFolder, Observer, RunFolder


class Terminal(Observer):
    """Prints a run: its data and model, a line for each epoch, a table at the end."""

    def __init__(self, run: RunFolder | NoFolder, config: Config):
        self.folder, self.last, self.config = run.path, run.last, config

    def print_start(self, model: CNNAutoEncoder, splits: Mapping[str, Split]) -> None:
        """Print the sizes of the splits and of the model, and how far a resumed run has got."""
        if self.config.uses_demo:
            print("data: generated for demonstration; give --train_dir and --val_dir for your own")
        for name, split in splits.items():
            minutes = len(split.frames) / FRAME_RATE_HZ / 60
            print(f"{name:<5} {len(split):>6} utterances {minutes:>8.1f} min")
        n_parameters = sum(p.numel() for p in model.parameters())
        print(f"model {model.get_type()}, {n_parameters / 1e6:.2f} M parameters", flush=True)
        if self.last is not None:
            batches = f" and {self.last['batch']} batches" if self.last["batch"] else ""
            settings = f"with the settings of {self.folder / 'config.json'}"
            print(f"continuing after {self.last['epoch']} epochs{batches}, {settings}", flush=True)

    def on_epoch(self, row: Mapping[str, Any], seconds: float) -> None:
        """Print one line about an epoch."""
        epochs = self.config.epochs
        print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
            f"  alpha {row['alpha']:.3f}"
            f"  train loss {row['train/loss']:.4f}"
            f"  val loss {row['val/loss']:.4f}  fvu {row['val/fvu']:.4f}"
            f"  sparsity {row['val/sparsity']:.3f}  dead {row['val/dead']:.3f}"
            f"  persistence {row['val/persistence_within']:.2f}"
            f"  score {row['val/score']:.4f}  {seconds:.1f} s",
            flush=True,
        )

    def on_end(self, metrics: Mapping[str, Any], status: str, curves: Mapping[str, Any]) -> None:
        """Print the main numbers of each split that was measured, and the model's path.

        Of a run that was interrupted, how to continue it; nothing of one that failed.
        """
        # A sweep resumes its runs itself, and a measurement can only start again.
        in_sweep = {"EMAAE_RUN_NAME", "WANDB_SWEEP_ID"} & os.environ.keys()
        if status == "preempted" and not (in_sweep or self.config.eval_only):
            name = shlex.quote(self.folder.name)
            print(f"to continue, add --resume --run_name {name} to the command", flush=True)
        if status in ("failed", "preempted"):
            return
        print(f"\n{status} {self.folder}")
        if status == "diverged":
            print("the loss diverged: lower --lr, or add --lr_warm_up 0.03")
        splits = [s for s in SPLITS if f"{s}/fvu" in metrics]
        if splits:
            print(f"{'':<26}" + "".join(f"{split:>12}" for split in splits))
            for name in SUMMARY:
                values = "".join(f"{metrics[f'{split}/{name}']:>12.4f}" for split in splits)
                print(f"{name:<26}{values}")
        if curves:
            own, of_input = metrics["shift/half_life_ms"], metrics["shift/input_half_life_ms"]
            why = f"   ({curves['split']}: half-life {own:.0f} ms, the input's {of_input:.0f} ms)"
            for name in SUMMARY_AT_END:
                print(f"{name:<26}{metrics[name]:>12.4f}{why}")
                why = ""
        if "select/score" in metrics:
            best = f"(validation, best epoch {metrics['select/epoch']})"
            print(f"{'select/score':<26}{metrics['select/score']:>12.4f}   {best}")
            print(f"model: {self.folder / 'best.pth'}", flush=True)


def metric_lines(row: Mapping[str, Any]) -> str:
    """The metrics of a row, one a line; undefined ones are null."""
    width = max(len(name) for name in row)
    texts = (f"{v:.6g}" if isinstance(v, float) else json.dumps(v) for v in row.values())
    return "\n".join(f"{name:<{width}}  {text}" for name, text in zip(row, texts))
