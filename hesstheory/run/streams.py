"""Random streams that belong to a seed and a name."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *names: str) -> torch.Generator:
    """The random stream that belongs to a seed and a name, the same wherever and in whatever order it is asked for."""
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
