"""Data sets, reference models, the paper's tables, and the controls that could refute them."""
