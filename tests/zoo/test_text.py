"""Byte-pair tokens of the standard library's source."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from hesstheory.zoo.text import byte_pairs, merged, sequences, source_text, tokens


def counted_anew(num_tokens, num_bytes):
    """The same merges by counting all pairs again after each; words by a split of our own."""
    words = [(list(word), n) for word, n in Counter(_words(source_text(num_bytes))).items()]
    merges = []
    for token in range(256, num_tokens):
        pairs = Counter()
        for word, n in words:
            for pair in pairwise(word):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [(merged(word, best, token), n) for word, n in words]
    return tuple(merges)


def _kind(byte):
    character = chr(byte)
    if character.isspace():
        return "space"
    if byte < 128 and (character.isalpha() or character == "_"):
        return "letter"
    return "digit" if character.isdigit() else "sign"


def _words(text):
    """Runs of one kind of byte; a single space that ends a run of spaces goes with what follows."""
    found = []
    start = 0
    while start < len(text):
        first = start
        if text[start] == 32 and start + 1 < len(text) and _kind(text[start + 1]) != "space":
            first = start + 1
        stop = first + 1
        while stop < len(text) and _kind(text[stop]) == _kind(text[first]):
            stop += 1
        found.append(text[start:stop])
        start = stop
    return found


def test_merges_are_those_of_counting_anew():
    assert byte_pairs(300, 5000) == counted_anew(300, 5000)


def test_tokens_spell_the_text():
    spelled = [bytes([byte]) for byte in range(256)]
    for first, second in byte_pairs(400, 5000):
        spelled.append(spelled[first] + spelled[second])
    text = tokens(400, 5000)
    assert b"".join(spelled[token] for token in text.tolist()) == source_text(5000)
    assert 256 <= int(text.max()) < 400
    assert len(text) < 0.6 * 5000


@pytest.mark.parametrize(("number", "cure"), [(255, "bytes alone"), (9000, "ask for so many")])
def test_sizes_that_cannot_be_are_refused(number, cure):
    with pytest.raises(ValueError, match=cure):
        byte_pairs(number, 500)


def test_targets_are_the_tokens_that_follow(generator):
    x, y = sequences(4, 7, generator, 256)
    assert x.shape == y.shape == (4, 7)
    assert torch.equal(x[:, 1:], y[:, :-1])
    last = y[:, -1:].clone()
    y[:, :2] = -100  # as a user marks what is ignored
    assert int(x.min()) >= 0
    text = tokens(256)
    pieces = text.unfold(0, 8, 1)
    for row in torch.cat([x, last], 1):
        assert bool((pieces == row).all(1).any())
