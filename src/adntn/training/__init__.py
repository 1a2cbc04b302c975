"""Training runs: pytorch-lightning holds the loop, torchmetrics the metrics; this room holds the recipe."""
