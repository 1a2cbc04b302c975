"""How a generated layer runs: which way is taken, the ways themselves, and what is kept between calls."""
