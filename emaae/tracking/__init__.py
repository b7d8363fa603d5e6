"""How does Weights & Biases hear of a run? The only package below emaae that imports wandb."""
