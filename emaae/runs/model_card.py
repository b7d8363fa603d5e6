"""The MODEL_CARD.md beside a promoted model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emaae import command_line
from emaae.metric_table import BY_NAME, SUMMARY
from emaae.metrics import score_description
from emaae.runs import read
from emaae.system.files import read_json

CARD_FILE = "MODEL_CARD.md"


def model_card(folder: Path, run: str) -> str:
    """The model card (Markdown) of the model in `folder`, which the run called `run` trained.

    It is made from model_config.json and metrics.json, which may be missing. Raises UserError.
    """
    config, metrics = read_json(folder / "model_config.json"), read.metrics(folder)
    # An older or foreign file may lack knobs; these take their defaults.
    knobs = command_line.config_from({"model_config": str(folder / "model_config.json")})
    get = {**vars(knobs), **config}.get
    demo = "the generated demo data" if "train_dir" in config else "unknown data"
    split = "test" if "test/fvu" in metrics else "val"
    channels = "13 channels (12 articulator coordinates and pitch, without loudness)"
    if get("keep_loudness"):
        channels = "14 channels (12 articulator coordinates, loudness and pitch)"
    where = get(f"{split}_dir") or (demo if not get("train_dir") else "?")
    kept, alpha = get("autoencoder_loss"), "constant,"
    if get("slow_coefficient"):
        kept = f"({kept} + {get('slow_coefficient')} {get('slow_loss')})"
    if get("update"):
        alpha = f"{get('penalty_scheduler')} from {get('alpha')}, alpha_max {get('alpha_max')};"
    return f"""# Sparse encoding of articulation, run {run}

A convolutional autoencoder over EMA features of speech at 50 Hz:
{channels}, raw, as SPARC gives them;
the normaliser is inside. It gives {get("inner_size")} non-negative numbers per frame, most of them
0, and reconstructs the features from them.

## Use

```python
import emaae

model = emaae.load_model("FOLDER")  # where this card lies
z = model.encode(x)  # x (batch, {get("input_dim")}, time) -> (batch, {get("inner_size")}, time)
```

or `python -m emaae encode --model FOLDER --features DIR --out DIR` for a whole tree.

## Architecture and training

| | |
|---|---|
| blocks | {get("n_encoder")} encoder, {get("n_decoder")} decoder, norm {get("norm")} |
| encoding ends in | {get("activation")} |
| loss | (1 - alpha) {kept} + alpha {get("sparse_loss")} |
| alpha | {alpha} {_number(metrics.get("select/alpha"))} at the selected epoch |
| selected | epoch {metrics.get("select/epoch")} of {get("epochs")}, by validation score |
| data | {get("train_dir") or demo} |
| seed, batch | {get("seed")}, {get("batch_sz")} |
| optimiser, learning rate | {get("optimizer")}, {get("lr")}, {get("lr_schedule")} |
| run ended | {metrics.get("status", "?")} |

## Measured

On the {split} split ({where}).
The validation score is {_number(metrics.get("select/score"))}, lower is better.
Its targets are {score_description(config)}.

| metric | value | |
|---|---|---|
{_rows(metrics, split)}

All numbers are in `metrics.json`; the project's docs/metrics.md says what each means.

## Limits

It was trained on features of one extractor and on the speakers of its data: for others, look at
`python -m emaae evaluate` first. Unvoiced frames carry arbitrary pitch, which it is asked to
reconstruct all the same. Scores compare models on one data set only. A unit is a feature that
this training found, not a known gesture.
"""


def _rows(metrics: Mapping[str, Any], split: str) -> str:
    # The validation split is measured in every epoch, and the selected one is in metrics.json.
    names = [f"{split}/{name}".replace("val/", "select/") for name in SUMMARY]
    names += sorted(name for name in metrics if name.startswith(("shift/", "lowpass/")))
    return "\n".join(
        f"| `{name}` | {_number(metrics[name])} | {BY_NAME[name].short_description} |"
        for name in names
        if name in metrics and name in BY_NAME
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if read.is_finite(value) else "undefined"
