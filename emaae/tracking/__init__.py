"""Weights & Biases: the only package of emaae that imports wandb."""
