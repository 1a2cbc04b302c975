"""Training runs: pytorch-lightning holds the loop; this room says what is trained, and keeps what must not be lost."""
