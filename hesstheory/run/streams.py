"""Random streams that belong to a seed and a name."""

from __future__ import annotations

import hashlib

import torch

_BYTES = 8  # of the digest: a seed of PyTorch is a whole number below 2⁶³


def stream(seed: int, *names: str) -> torch.Generator:
    """The random stream that belongs to a seed and a name.

    It is the same wherever and in whatever order it is asked for.

    Parameters
    ----------
    seed
        The seed of a run.
    *names
        What the numbers are for, from the general to the special.

    Returns
    -------
    torch.Generator
        A generator of the CPU at the start of the stream.

    Examples
    --------
    >>> first = torch.rand(3, generator=stream(0, "probes", "7"))
    >>> bool((first == torch.rand(3, generator=stream(0, "probes", "7"))).all())
    True
    >>> bool((first == torch.rand(3, generator=stream(0, "probes", "8"))).any())
    False
    """
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:_BYTES], "big") >> 1)
