"""The MODEL_CARD.md of a promoted model: the template model_card.md, filled in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emaae import command_line
from emaae.metric_table import BY_NAME, SUMMARY, score_description
from emaae.runs import read
from emaae.system.files import read_json

CARD_FILE = "MODEL_CARD.md"


def model_card(folder: Path, run: str) -> str:
    """The model card (Markdown) of the model in `folder`, which the run called `run` trained.

    It is made from model_config.json and, where there is one, metrics.json. Raises UserError.
    """
    config, metrics = read_json(folder / "model_config.json"), read.metrics(folder)
    # An older or foreign file may lack knobs; these take their defaults.
    knobs = command_line.config_from({"model_config": str(folder / "model_config.json")})
    known = {**vars(knobs), **config}
    other_data = "the generated demo data" if "train_dir" in config else "unknown data"
    split = "test" if "test/fvu" in metrics else "val"
    channels = "13 channels (12 articulator coordinates and pitch, without loudness)"
    if known["keep_loudness"]:
        channels = "14 channels (12 articulator coordinates, loudness and pitch)"
    loss, schedule = known["autoencoder_loss"], "constant,"
    if known["slow_coefficient"]:
        loss = "({autoencoder_loss} + {slow_coefficient} {slow_loss})".format_map(known)
    if known["update"]:
        schedule = "{penalty_scheduler} from {alpha}, alpha_max {alpha_max};".format_map(known)
    words = {
        "run": run,
        "channels": channels,
        "reconstruction_loss": loss,
        "schedule": schedule,
        "selected_alpha": _number(metrics.get("select/alpha")),
        "selected_epoch": metrics.get("select/epoch"),
        "score": _number(metrics.get("select/score")),
        "status": metrics.get("status", "?"),
        "targets": score_description(config),
        "train_data": known["train_dir"] or other_data,
        "split": split,
        "split_data": known[f"{split}_dir"] or ("?" if known["train_dir"] else other_data),
        "metric_rows": _rows(metrics, split),
    }
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return template.format_map(known | words)


def _rows(metrics: Mapping[str, Any], split: str) -> str:
    # metrics.json has the validation metrics of the selected epoch, as select/...
    names = [f"{split}/{name}".replace("val/", "select/") for name in SUMMARY]
    names += sorted(name for name in metrics if name.startswith(("shift/", "lowpass/")))
    return "\n".join(
        f"| `{name}` | {_number(metrics[name])} | {BY_NAME[name].short_description} |"
        for name in names
        if name in metrics and name in BY_NAME
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if read.is_finite(value) else "undefined"
