"""Transformers of the zoo: what they compute, and their exact traces."""

from __future__ import annotations

import math

import pytest
import torch
from builders import close
from torch import nn
from torch.nn import functional as F

from hesstheory import Problem, exact_traces, ggn
from hesstheory.zoo.transformers import (
    GPT,
    TextClassifier,
    TransformerBlock,
    VisionTransformer,
    draw_transformer,
    language_model,
)

SMALL = {"num_tokens": 256, "length": 5, "width": 4, "depth": 1, "heads": 2}


def test_the_default_model_has_ten_million_parameters(build):
    with torch.device("meta"):
        model = GPT(8192, 128, 320, 6, 8)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1e7, rel=0.02)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_softmax_of_scores(causal, build):
    block = build(lambda: TransformerBlock(6, 2, causal=causal)).double()
    x = build(lambda: torch.randn(3, 4, 6)).double()
    q, k, v = (part.reshape(3, 4, 2, 3).transpose(1, 2) for part in block.qkv(x).chunk(3, -1))
    scores = q @ k.mT / math.sqrt(3)
    if causal:
        scores = scores.masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), -torch.inf)
    expected = block.output((scores.softmax(-1) @ v).transpose(1, 2).reshape(3, 4, 6))
    torch.testing.assert_close(block.attend(x), expected)


def test_no_token_sees_a_later_one(generator):
    problem = language_model(generator, num_sequences=2, dtype=torch.float64, **SMALL)
    ((x, _),) = problem.batches
    other = x.clone()
    other[:, -1] = (other[:, -1] + 1) % 256
    here, there = problem.model(x), problem.model(other)
    assert torch.equal(here[:, :-1], there[:, :-1])
    assert not torch.equal(here[:, -1], there[:, -1])


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_training_lowers_the_loss(norm, generator):
    before = language_model(generator, norm=norm, **SMALL)
    after = language_model(generator.manual_seed(0), norm=norm, steps=200, **SMALL)
    assert after.loss(after.batches[0]) < before.loss(before.batches[0]) - 0.5


MODELS = {
    "GPT": (lambda: GPT(6, 4, 4, 1, 2), (3, 4), 6),
    "text classifier": (lambda: TextClassifier(6, 4, 4, 1, 2, 3), (3, 4), 3),
    "vision transformer": (lambda: VisionTransformer(4, 2, 4, 1, 2, 3, 1), (3, 1, 4, 4), 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_exact_traces_are_those_of_the_dense_matrix(name, build, generator):
    factory, shape, num_out = MODELS[name]
    model = build(factory).double()
    draw_transformer(model, generator)
    of_text = name != "vision transformer"
    x = torch.arange(math.prod(shape)).reshape(shape) ** 2 % 5
    x = x if of_text else x.double()
    y = x % num_out if name == "GPT" else torch.arange(3)
    problem = Problem(
        model, lambda f, y: F.cross_entropy(f.reshape(-1, num_out), y.flatten()), [(x, y)]
    )
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())
