"""Seeds made of other seeds: whatever needs chance asks for it by name, so that nothing depends on what ran before."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(seed: int, *names: int | str) -> int:
    """Return a seed that belongs to a seed and some names, the same on every machine, below 2**63."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
