"""What are the numbers of a model on a split?"""

from typing import Any

import torch

from emaae.checkpoint import load_model, model_file
from emaae.config import Config
from emaae.data import Split, batches, evaluation_order, load_splits
from emaae.devices import pick_device
from emaae.distributed import pool, share, stop_together
from emaae.losses import Objective
from emaae.metrics import ReconstructionSums, SparsitySums, density_histogram, score
from emaae.models import CNNAutoEncoder
from emaae.shift import quick, sample, shift_tolerance


@torch.no_grad()
def evaluate(
    model: CNNAutoEncoder,
    split: Split,
    objective: Objective,
    *,
    alpha: float,
    batch_sz: int,
    target_sparsity: float = 0.9,
    target_persistence: float = 0.9,
) -> dict[str, float | list[int]]:
    """Every metric of a split, as one row; the README's table says what each means.

    Tolerance to shifts is measured on a sample of the utterances, everything else on all of them.

    The model is measured in evaluation mode and left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    reconstruction, sparsity, sums = ReconstructionSums(), SparsitySums(), None
    for x, mask in batches(split, share(evaluation_order(split.lengths, batch_sz))):
        out = model(x, mask)
        sums = objective.sums(model, x, out, mask).plus(sums)
        reconstruction.add(model.standardise(x), model.standardise(out.y), mask)
        sparsity.add(out.z, mask)
        stop_together()
    model.train(was_training)

    pool(reconstruction)
    pool(sparsity)
    terms = objective.terms(model, sums.pooled(), alpha)
    row = terms.row()
    row |= reconstruction.compute(split.channels)
    row |= sparsity.compute() | quick(model, sample(split))
    measured = (row[name] for name in ("fvu", "live_sparsity", "persistence_within"))
    row["score"] = score(*measured, target_sparsity, target_persistence)
    row["density_log10"] = density_histogram(sparsity.density())
    return row


def evaluate_ref(ref: str, features: str, **knobs: Any) -> dict[str, float | list[int]]:
    """Every metric of a model on features, shift tolerance too, as `train.py --eval_only` has them.

    ref: see `checkpoint.model_file`; its run says by which loss. knobs: of `Config`, such as
    `bucket` or `target_sparsity`; None is as if not given. Raises UserError.
    """
    with model_file(ref) as path:
        given = {name: value for name, value in knobs.items() if value is not None}
        given |= {"eval_only": True, "checkpoint": str(path), "test_dir": features}
        config = Config.from_mapping(given)
        device = pick_device(config.device)
        split = load_splits(config)["test"].to(device)
        model = load_model(path, device)
    row = evaluate(
        model,
        split,
        Objective.of(config),
        alpha=config.alpha,
        batch_sz=config.batch_sz,
        target_sparsity=config.target_sparsity,
        target_persistence=config.target_persistence,
    )
    return row | shift_tolerance(model, split)[0]
