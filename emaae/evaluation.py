"""The metrics of a model on a split."""

from typing import Any

import torch

from emaae.config import Config
from emaae.data.split import Split, batches, evaluation_order
from emaae.losses import LossSums, batch_sums, loss_terms
from emaae.metrics import ReconstructionSums, SparsitySums, density_histogram, score
from emaae.models import CNNAutoEncoder, Output
from emaae.shift import epoch_metrics, sample
from emaae.system.distributed import local_share, stop_if_interrupted, sum_attributes


@torch.no_grad()
def evaluate(model: CNNAutoEncoder, split: Split, config: Config, alpha: float) -> dict[str, Any]:
    """Every metric of a split, as one row; docs/metrics.md describes them.

    config: gives the loss, the targets of the score and the batch size. alpha: weight of the
    penalty, 0..1; replaces config.alpha, since a schedule may change alpha. Tolerance to shifts is
    measured on a sample of the utterances, everything else on all of them. The model may be in
    training or evaluation mode, and does not change.
    """
    sums, reconstruction, sparsity = LossSums(), ReconstructionSums(), SparsitySums()
    for x, mask in batches(split, local_share(evaluation_order(split.lengths, config.batch_sz))):
        z = model.encode(x, mask)
        out = Output(model.decode(z, mask), z)
        sums = sums.plus(batch_sums(config, model, x, out, mask))
        reconstruction.add(model.standardise(x), model.standardise(out.y), mask)
        sparsity.add(out.z, mask)
        stop_if_interrupted()

    sum_attributes(reconstruction)
    sum_attributes(sparsity)
    terms = loss_terms(config, model, sums.pooled(), alpha)
    row = terms.row() | reconstruction.compute(split.channels)
    row |= sparsity.compute() | epoch_metrics(model, sample(split))
    s, p = config.target_sparsity, config.target_persistence
    row["score"] = score(row["fvu"], row["live_sparsity"], row["persistence_within"], s, p)
    return {**row, "density_log10": density_histogram(sparsity.density())}
