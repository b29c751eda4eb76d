"""Rules of layers, and models in which they do not hold."""

from __future__ import annotations

import pytest
import torch
from builders import Shaped, close, drawn
from torch import nn
from torch.nn import functional as F

from hesstheory import (
    LogitProbeTrace,
    Problem,
    exact_traces,
    ggn,
    hessian,
    zoo,
)
from hesstheory.outputs.per_sample import linearised, rules_that_hold


class Tokens(nn.Module):
    def __init__(self, padding_idx=None):
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=padding_idx)
        self.mix = nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.mix(self.embed(x)).relu().mean(1))


class Scaled(nn.Module):
    """A parameter that no module with a rule owns, and a weight that a function uses."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.scale * F.linear(self.first(x).relu(), self.last.weight)


def _conv(**options):
    return lambda: nn.Sequential(
        nn.Conv2d(4, 6, 3, **options), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3)
    )


IMAGES, ROWS = (7, 4, 6, 6), (7, 4)


MODELS = {
    "stride": (_conv(stride=2), IMAGES),
    "dilation": (_conv(dilation=2), IMAGES),
    "padding": (_conv(padding=1, bias=False), IMAGES),
    "groups": (_conv(groups=2), IMAGES),
    "named padding": (_conv(padding="same"), IMAGES),
    "circular padding": (_conv(padding=1, padding_mode="circular"), IMAGES),
    "1-d": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 3, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
        ),
        (7, 4, 8),
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
        ROWS,
    ),
    "sequences": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
        (7, 9, 4),
    ),
    "no rule": (Scaled, ROWS),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", ["cross-entropy", "squares", "binary"])
def test_every_rule(name, loss, build):
    factory, shape = MODELS[name]
    x = build(lambda: torch.randn(shape))
    model = build(factory).double()
    with torch.no_grad():
        build(lambda: model(x))
    model.eval()
    targets = build(lambda: torch.randint(3, (7,)))
    losses = {
        "cross-entropy": (F.cross_entropy, targets),
        "squares": (F.mse_loss, F.one_hot(targets, 3).double()),
        "binary": (F.binary_cross_entropy_with_logits, F.one_hot(targets, 3).double()),
    }
    function, y = losses[loss]
    problem = Problem(model, function, [(x[:4], y[:4]), (x[4:], y[4:])])
    close(exact_traces(problem), hessian(problem).trace_by_block())


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_embeddings(padding_idx, build):
    model, x = build(lambda: Tokens(padding_idx)).double(), torch.arange(21).reshape(7, 3) % 5
    problem = Problem(model, F.cross_entropy, [(x, torch.arange(7) % 3)])
    assert not linearised(problem, problem.batches[0]).others
    close(exact_traces(problem), hessian(problem).trace_by_block())


def test_most_layers_have_a_rule(generator):
    for name in ("cnn", "relu_mlp"):
        problem = zoo.problem(name, generator, num_samples=8)
        assert not linearised(problem, problem.batches[0]).others


def _doubled(m, x):
    handle = m.a.register_forward_hook(lambda module, args, output: 2 * output)
    try:
        return m.b(m.a(x).mean(1).relu())
    finally:
        handle.remove()


def _unused_call(m, x):
    m.a(x)
    return m.b(F.linear(x, m.a.weight, m.a.bias).relu().mean(1))


SHAPES = {
    "folded": lambda m, x: m.b(m.a(x.reshape(-1, 5)).relu()).reshape(len(x), -1, 3).mean(1),
    "time first": lambda m, x: m.b(m.a(x.transpose(0, 1)).relu()).mean(0),
    "samples coupled": lambda m, x: m.b((lambda h: h - 0.5 * h.mean(0))(m.a(x).mean(1)).relu()),
    "one row for all": lambda m, x: m.b(m.a(x).mean(1).relu() + m.c(torch.ones(1, 4)).relu()),
    "rows of another axis": lambda m, x: m.b(m.a(x).relu().mean(1) + m.c(torch.eye(6, 4)).mean(0)),
    "hook": _doubled,
    "output not used": _unused_call,
    "weight scaled": lambda m, x: m.b(
        torch.func.functional_call(m.a, {"weight": 3 * m.a.weight}, (x,)).relu().mean(1)
    ),
}


@pytest.mark.parametrize("samples", [1, 4, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_model_does_to_the_batch_changes_no_number(shape, samples, generator, recwarn):
    with torch.device("meta"):
        model = Shaped(SHAPES[shape])
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = (
        torch.randn(samples, 6, 5, generator=generator),
        torch.randint(3, (samples,), generator=generator),
    )
    problem = Problem(model, F.cross_entropy, [data])
    expected = ggn(problem).trace_by_block()
    close(exact_traces(problem, matrix=ggn), expected)
    runs = LogitProbeTrace(400)(problem, generator)
    assert ((runs.value - expected).abs() <= 6 * runs.stderr + 1e-12).all()


def _dead_at_first(generator, forward, first=3):
    """Samples of zeros, at which the first layer is dead, and others, at which it is not."""
    with torch.device("meta"):
        model = Shaped(forward)
    del model.c
    model = drawn(model, generator)
    with torch.no_grad():
        model.a.bias.fill_(-0.1)
    x = torch.randn(6, 6, 5, generator=generator)
    x[:first] = 0
    return Problem(model, F.cross_entropy, [(x, torch.arange(6) % 3)])


@pytest.mark.parametrize("shape", ["folded", "time first", "hook"])
@pytest.mark.parametrize("first", [2, 3, 6])
def test_a_rule_that_no_sample_tried_is_not_trusted(shape, first, generator):
    problem = _dead_at_first(generator, SHAPES[shape], first)
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


def test_a_rule_is_tried_on_another_sample_where_the_last_is_dead(generator):
    problem = _dead_at_first(generator, lambda m, x: m.b(m.a(x.mean(1)).relu()))
    assert rules_that_hold(problem) == {"b.bias"}
    turned = problem.with_batches([tuple(part.flip(0) for part in problem.batches[0])])
    turned.batches[0][0][2] = 0  # the last of the three that are tried
    assert rules_that_hold(turned) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    close(exact_traces(turned), hessian(turned).trace_by_block())


def test_a_layer_that_is_dead_for_all_samples_costs_a_pass_for_a_column(generator):
    problem = _dead_at_first(generator, lambda m, x: m.b(m.a(x.mean(1)).relu()), first=6)
    passes = []
    forward = problem.model.forward

    def counted(x):
        outputs = forward(x)
        outputs.register_hook(lambda slope: passes.append(float(slope.sum())))
        return outputs

    problem.model.forward = counted
    assert exact_traces(problem, matrix=ggn)["a"] == 0
    assert len(passes) == 3 + 2 * 2, (
        "three trials, and for two columns one of the rules and one of the others"
    )


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), norm(6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.norm(self.first(x))
        return self.last(h if h.ndim == 2 else h.mean(1))


@pytest.mark.parametrize("shape", [(7, 4), (7, 5, 4)], ids=["rows", "positions"])
@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm, nn.RMSNorm, lambda width: nn.LayerNorm(width, eps=0.3, bias=False)],
    ids=["layer norm", "RMS norm", "large eps"],
)
def test_normalised_rows(norm, shape, build):
    model, x = build(lambda: Normed(norm)).double(), build(lambda: torch.randn(shape)).double()
    with torch.no_grad():
        for p in model.norm.parameters():
            p.add_(build(lambda p=p: torch.randn(p.shape)).double())
    problem = Problem(model, F.cross_entropy, [(x, torch.arange(7) % 3)])
    assert not linearised(problem, problem.batches[0]).others
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


class Language(nn.Module):
    """Tokens in, logits of tokens out, by one matrix."""

    def __init__(self, *, padding_idx=None, bias=False, uses=2):
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=padding_idx)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=bias)
        self.head.weight = self.embed.weight
        self.uses = uses

    def forward(self, x):
        h = torch.tanh(self.mix(self.embed(x)).cumsum(1))
        if self.uses > 2:
            h = h + self.embed.weight.mean(0)
        return self.head(h)


def of_tokens(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize(
    ("options", "has_rule"),
    [({}, True), ({"padding_idx": 1}, True), ({"bias": True}, False), ({"uses": 3}, False)],
    ids=["tied", "padding", "bias", "a third use"],
)
def test_a_matrix_that_embeds_and_is_the_head(options, has_rule, build):
    model = build(lambda: Language(**options)).double()
    x = torch.arange(24).reshape(4, 6) ** 2 % 5
    problem = Problem(model, of_tokens, [(x, x.roll(-1, 1))])
    line = linearised(problem, problem.batches[0])
    assert ("embed.weight" not in line.others) == has_rule
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())
