"""Text as byte-pair tokens, learned from the source of the installed Python standard library."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter, defaultdict
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

# Bytes of source text that are read: about half a million tokens, as many as 500 steps of training
# on eight sequences of 128 tokens see.
_TEXT_BYTES = 2_000_000

# Words are cut before a space or at a change between letters, digits and signs; a token never
# crosses a word (Sennrich, Haddow and Birch 2016).
_WORD = re.compile(rb" ?[A-Za-z_]+| ?[0-9]+| ?[^\sA-Za-z_0-9]+|\s+")

Pair = tuple[int, int]


@lru_cache(maxsize=2)
def source_text(num_bytes: int = _TEXT_BYTES) -> bytes:
    """The first bytes of the standard library's modules, in the order of their names.

    They are those of the interpreter that runs: another version of Python has another text.

    Examples
    --------
    >>> len(source_text(1000))
    1000
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = bytearray()
    for file in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        text += file.read_bytes()
        if len(text) >= num_bytes:
            break
    return bytes(text[:num_bytes])


@lru_cache(maxsize=4)
def byte_pairs(num_tokens: int, num_bytes: int = _TEXT_BYTES) -> tuple[Pair, ...]:
    """The merges that make tokens 256, 257, … of two older ones, the most frequent pair first.

    Parameters
    ----------
    num_tokens
        How many tokens there are in the end, the 256 bytes among them.
    num_bytes
        Of the text that they are learned from.

    Raises
    ------
    ValueError
        Fewer than 256 tokens, or the text has no more pairs.
    """
    if num_tokens < 256:
        raise ValueError(f"num_tokens is {num_tokens}: the bytes alone are 256")
    counts = Counter(_WORD.findall(source_text(num_bytes)))
    words = [list(word) for word in counts]
    weights = list(counts.values())
    frequency: Counter[Pair] = Counter()
    where: dict[Pair, set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += weights[number]
            where[pair].add(number)
    # The most frequent pair comes first; of ties the smaller one, so that the order of the words
    # does not matter. An entry whose count has changed since is old, and is put back as it is now.
    queue = [(-count, pair) for pair, count in frequency.items()]
    heapify(queue)
    merges = list[Pair]()
    while len(merges) < num_tokens - 256:
        if not queue:
            raise ValueError(
                f"the text has pairs for {256 + len(merges)} tokens only: ask for so many"
            )
        count, best = heappop(queue)
        if frequency[best] != -count:
            if frequency[best] > 0:
                heappush(queue, (-frequency[best], best))
            continue
        merges.append(best)
        for number in where.pop(best):
            changed = _merge(words[number], best, 255 + len(merges), weights[number], frequency)
            for pair in changed:
                where[pair].add(number)
                heappush(queue, (-frequency[pair], pair))
    return tuple(merges)


def _merge(
    word: list[int], pair: Pair, token: int, weight: int, frequency: Counter[Pair]
) -> set[Pair]:
    """Replaces a pair in one word by its token and counts its pairs anew: those that it has now."""
    for gone in pairwise(word):
        frequency[gone] -= weight
    word[:] = merged(word, pair, token)
    now = list(pairwise(word))
    for come in now:
        frequency[come] += weight
    return set(now)


def merged(word: list[int], pair: Pair, token: int) -> list[int]:
    """A word with every occurrence of a pair, from the left, replaced by a token.

    Examples
    --------
    >>> merged([1, 2, 1, 2, 1], (1, 2), 9)
    [9, 9, 1]
    """
    out = list[int]()
    position = 0
    while position < len(word):
        if tuple(word[position : position + 2]) == pair:
            out.append(token)
            position += 2
        else:
            out.append(word[position])
            position += 1
    return out


@lru_cache(maxsize=4)
def tokens(num_tokens: int = 8192, num_bytes: int = _TEXT_BYTES) -> Int64[Tensor, " tokens"]:
    """The source text as numbers below `num_tokens`.

    Parameters
    ----------
    num_tokens
        Size of the vocabulary, from 256 for bytes.
    num_bytes
        Of the text.

    Examples
    --------
    >>> tokens(256, 100).shape
    torch.Size([100])
    """
    merges = {pair: 256 + n for n, pair in enumerate(byte_pairs(num_tokens, num_bytes))}
    known: dict[bytes, list[int]] = {}
    numbers = list[int]()
    for word in _WORD.findall(source_text(num_bytes)):
        if word not in known:
            known[word] = _tokens_of(word, merges)
        numbers += known[word]
    return torch.tensor(numbers)


def _tokens_of(word: bytes, merges: dict[Pair, int]) -> list[int]:
    """A word by the merges, the oldest first, as they were learned."""
    found = list(word)
    while True:
        pairs = [pair for pair in pairwise(found) if pair in merges]
        if not pairs:
            return found
        oldest = min(pairs, key=merges.__getitem__)
        found = merged(found, oldest, merges[oldest])


def sequences(
    num_sequences: int, length: int, generator: torch.Generator, num_tokens: int = 8192
) -> tuple[Int64[Tensor, "sequences length"], Int64[Tensor, "sequences length"]]:
    """Pieces of the text from random places, and the tokens that follow each of theirs.

    Parameters
    ----------
    num_sequences, length
        How many pieces of how many tokens.
    generator
        Draws the places.
    num_tokens
        Size of the vocabulary.
    """
    text = tokens(num_tokens)
    starts = torch.randint(len(text) - length, (num_sequences, 1), generator=generator)
    pieces = text[starts + torch.arange(length + 1)]
    return pieces[:, :-1].clone(), pieces[:, 1:].clone()
