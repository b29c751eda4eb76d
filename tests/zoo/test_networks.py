"""Small networks use their weights as they say."""

from __future__ import annotations

import pytest
from builders import stream

from hesstheory import zoo


@pytest.mark.parametrize("name", ["autoencoder", "relu_autoencoder"])
def test_autoencoder_shows_its_tie_twice(name):
    problem = zoo.problem(name, stream(), steps=2)
    everywhere = dict(problem.model.named_parameters(remove_duplicate=False))
    assert everywhere["up.weight"] is everywhere["down.weight"]
    assert "down.weight" not in problem.params
    assert problem.partition.blocks["up+down"] == ("up.weight",)


def test_recurrent_weight_is_used_at_every_step_but_the_first():
    problem = zoo.problem("rnn", stream())
    outputs = problem.model(problem.batches[0][0]).sum()
    weight = problem.params["recurrent.weight"]
    uses = 0
    stack = [outputs.grad_fn]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            uses += getattr(parent, "variable", None) is weight
            stack.append(parent)
    assert uses == 7
