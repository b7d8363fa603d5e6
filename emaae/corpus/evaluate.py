"""The metrics of a trained model on other data."""

from typing import Any

from emaae import command_line
from emaae.data.load import load_splits
from emaae.evaluation import evaluate
from emaae.loading import load_model, model_file
from emaae.shift import shift_tolerance
from emaae.system.devices import pick_device


def evaluate_model(ref: str, features: str, **knobs: Any) -> dict[str, float | list[int]]:
    """All metrics of a model on features, with shift tolerance, as by `train.py --eval_only`.

    ref: see `loading.model_file`; the loss is that of the run that trained the model. knobs: of
    `Config`, such as `bucket` or `target_sparsity`; None means not given. Raises UserError.
    """
    with model_file(ref) as path:
        given = {name: value for name, value in knobs.items() if value is not None}
        given |= {"eval_only": True, "checkpoint": str(path), "test_dir": features}
        config = command_line.config_from(given)
        device = pick_device(config.device)
        split = load_splits(config)["test"].to(device)
        model = load_model(path, device)
    return evaluate(model, split, config, config.alpha) | shift_tolerance(model, split)[0]
