"""Which models go row by row: what the graph proves, what a trial finds, what rests on it."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesstheory import (
    LogitProbeTrace,
    Problem,
    dual_gram,
    exact_traces,
    ggn,
    hessian,
    per_sample_hessians,
    sample_traces,
    zoo,
)
from hesstheory.autograd.rows import Trial, apart_by_graph
from hesstheory.outputs import fit
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.per_sample import linearised
from hesstheory.run.streams import stream

N = 8


class Coupled(nn.Module):
    """Two layers with something between them that may mix the rows."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.mix(torch.relu(self.first(x))))


def connected(h):
    """Five nodes of a graph are connected, the last three are alone."""
    A = torch.eye(N, dtype=h.dtype)
    A[:5, :5] = 0.2
    return A @ h


def pooled(h):
    same = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4])
    same = (same[:, None] == same).to(h)
    return same @ h / same.sum(1, keepdim=True)


MIXED = {
    "graph": connected,
    "pooled in groups": pooled,
    "lag": lambda h: h + 0.5 * torch.cat([torch.zeros_like(h[:4]), h[:4]]),
    "two rows alone": lambda h: h + torch.cat([h[1:2] * 1e-2, torch.zeros_like(h[1:])]),
    "centred": lambda h: h - h.mean(0),
    "summed up": lambda h: h.cumsum(0),
    "added from another axis": lambda h: h + (h @ torch.ones(5, N).to(h)).mT[:, :5],
}
MOVED = {
    "sorted": lambda h: h[torch.tensor([0, 1, 2, 4, 3, 6, 5, 7])],
    "reversed": lambda h: h.flip(0),
}


def problem_of(mix):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Coupled(mix).double().eval()
        x = torch.randn(N, 6, dtype=torch.float64)
    return Problem(model, F.cross_entropy, [(x, torch.arange(N) % 3)])


def close(found, expected):
    found = pd.Series(dict(found))
    expected = pd.Series(dict(expected))
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("mix", [*MIXED.values(), *MOVED.values()], ids=[*MIXED, *MOVED])
def test_rows_that_are_mixed_or_moved_are_measured_all_the_same(mix):
    problem = problem_of(mix)
    line = linearised(problem, problem.batches[0], frozenset(problem.params))
    assert not apart_by_graph(line.outputs)
    columns = torch.ones(2, N, 3).double() * torch.tensor([1.0, -2.0, 0.5]).double()
    _, coupled = line.by_rules(columns)
    assert set(coupled) == {"first.weight", "first.bias"}  # the last layer comes behind it
    exact = hessian(problem).trace_by_block()
    close(exact_traces(problem), exact)
    close(sample_traces(problem).mean(), exact)
    probes = LogitProbeTrace(400)(problem, torch.Generator().manual_seed(0))
    assert ((probes.value - exact).abs() <= 6 * probes.stderr + 1e-12 * exact).all()


@pytest.mark.parametrize("mix", [*MIXED.values(), *MOVED.values()], ids=[*MIXED, *MOVED])
def test_samples_that_are_not_the_same_alone_have_no_rows_of_their_own(mix):
    with pytest.raises(
        ValueError, match=r"other outputs in its batch than alone|does not take sample \d alone"
    ):
        dual_gram(problem_of(mix))


def test_samples_that_were_sorted_inside_are_found_again(build):
    class Sorted(Coupled):
        def forward(self, x):
            order = x[:, 0].argsort()
            return self.last(torch.relu(self.first(x[order]))[order.argsort()])

    model = build(lambda: Sorted(None)).double()
    x = build(lambda: torch.randn(N, 6)).double()
    x[:3, 0] = torch.tensor([-9.0, -8.0, -7.0])  # the first samples are in order
    problem = Problem(model, F.cross_entropy, [(x, torch.arange(N) % 3)])
    H = per_sample_hessians(problem)
    for block, i in problem.index.items():
        expected = H[:, i][:, :, i].diagonal(dim1=1, dim2=2).sum(1)
        assert sample_traces(problem)[block].to_numpy() == pytest.approx(
            expected.numpy(), rel=1e-10
        )


@pytest.mark.parametrize("routes", [[[0, 0, 0, 0], [0, 1, 1]], [[0, 0, 0, 0, 1]], [[1, 0, 1, 0]]])
def test_a_mixture_of_experts(routes, build):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 3)
            self.b = nn.Linear(6, 3)

        def forward(self, x, route):
            out = x.new_zeros(len(x), 3)
            for number, expert in enumerate((self.a, self.b)):
                rows = (route == number).nonzero()[:, 0]
                out = out.index_copy(0, rows, expert(x[rows]))
            return out

    model = build(Experts).double()
    batches = [
        (
            (build(lambda r=r: torch.randn(len(r), 6)).double(), torch.tensor(r)),
            torch.arange(len(r)) % 3,
        )
        for r in routes
    ]
    problem = Problem(model, F.cross_entropy, batches)
    found = sample_traces(problem, matrix=ggn)
    route = torch.tensor([number for r in routes for number in r])
    assert ((found["a"].to_numpy() > 0) == (route == 0).numpy()).all()
    close(found.mean(), hessian(problem).trace_by_block())
    close(exact_traces(problem, matrix=ggn), hessian(problem).trace_by_block())


@pytest.mark.parametrize("shape", ["folded", "tokens first"])
def test_rows_that_are_no_samples_are_refused(shape, build):
    class Tokens(Coupled):
        def forward(self, x):
            return super().forward(x.flatten(0, 1) if shape == "folded" else x.transpose(0, 1))

    model = build(lambda: Tokens(nn.Identity())).double()
    x = build(lambda: torch.randn(4, 5, 6)).double()
    loss = (
        (lambda out, y: F.cross_entropy(out, y.flatten()))
        if shape == "folded"
        else (lambda out, y: F.cross_entropy(out.permute(1, 2, 0), y))
    )
    problem = Problem(model, loss, [(x, torch.arange(20).reshape(4, 5) % 3)])
    with pytest.raises(
        ValueError, match=r"returns \d+ rows for 4 samples: let it return one for each"
    ):
        sample_traces(problem)
    with pytest.raises(
        ValueError, match=r"returns \d+ rows for 4 samples: let it return one for each"
    ):
        dual_gram(problem)


@pytest.mark.filterwarnings("ignore:loss_fn gives")
@pytest.mark.parametrize(
    "targets", [[0, 1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 2, 2, 2], [0, 1, 2, 3, 4, 5, 5]]
)
def test_a_loss_that_couples_any_two_samples_is_refused(targets, build):
    """The distance from the mean of the class: the samples of a class couple."""

    def centred(out, y):
        same = (y[:, None] == y).to(out)
        return (
            F.cross_entropy(out, y)
            + ((out - same @ out / same.sum(1, keepdim=True)) ** 2).sum(1).mean() / 2
        )

    model = build(lambda: nn.Linear(6, 6)).double()
    problem = Problem(
        model, centred, [(build(lambda: torch.randn(7, 6)).double(), torch.tensor(targets))]
    )
    with pytest.raises(
        ValueError, match="the loss of a sample depends on the outputs of another one"
    ):
        exact_traces(problem)


@pytest.mark.filterwarnings("ignore:loss_fn gives .* it is not the mean")
@pytest.mark.parametrize("strength", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_two_classes_hide_no_coupling(strength, masked, build):
    """For one direction, the slopes of any loss of the margin are those of some softmax."""

    def centred(out, y):
        margin = out[:, 1] - out[:, 0]
        same = (y[:, None] == y).to(out)
        return (
            F.cross_entropy(out, y % 2)
            + strength * ((margin - same @ margin / same.sum(1)) ** 2).mean()
        )

    class Masked(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.tensor(
                [0, 0, -1e9 * masked] if masked else [0, 0]
            ).to(x)

    model = build(lambda: Masked(6, 3 if masked else 2)).double()
    x = build(lambda: torch.randn(7, 6)).double()
    with pytest.raises(
        ValueError, match="the loss of a sample depends on the outputs of another one"
    ):
        exact_traces(Problem(model, centred, [(x, torch.tensor([0, 1, 1, 1, 2, 2, 2]))]))


def test_a_softmax_whose_maximum_is_taken_over_all_samples_couples_none(build):
    def stabilised(out, y):
        shifted = out - out.max()
        return F.nll_loss(shifted - shifted.exp().sum(1, keepdim=True).log(), y)

    model = build(lambda: nn.Linear(6, 3)).double()
    x = build(lambda: torch.randn(7, 6)).double()
    problem = Problem(model, stabilised, [(x, torch.arange(7) % 3)])
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())
    outputs = problem.outputs(problem.batches[0])
    S, expected = (
        loss_root(each, outputs, each.batches[0])
        for each in (problem, Problem(model, F.cross_entropy, problem.batches))
    )
    assert torch.allclose(S @ S.mT, expected @ expected.mT, atol=1e-14)


HOOKED = {
    "clipped": lambda layer: layer.register_forward_hook(
        lambda module, args, out: out.clamp(-0.8, 0.8)
    ),
    "scaled": lambda layer: layer.register_forward_hook(
        lambda module, args, out: out * torch.linspace(0.1, 1, 12)[:, None].to(out)
    ),
    "clipped before": lambda layer: layer.register_forward_pre_hook(
        lambda module, args: (F.hardtanh(*args),)
    ),
    "patched": lambda layer: setattr(
        layer, "forward", lambda x: F.linear(F.hardtanh(x), layer.weight, layer.bias)
    ),
}


@pytest.mark.parametrize("change", HOOKED.values(), ids=HOOKED)
def test_hooks_and_patches_that_the_first_samples_do_not_show(change, build):
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))).double()
    x = build(lambda: torch.randn(12, 6)).double()
    x[:3] *= 0.1
    change(model[0])
    problem = Problem(model, F.cross_entropy, [(x, torch.arange(12) % 3)])
    close(exact_traces(problem), hessian(problem).trace_by_block())


@pytest.mark.parametrize("coupling", [0.0, 1e-8, 1e-2])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_many_samples_that_meet_where_only_derivatives_show_it(coupling, offset, build):
    """Gates of zero (ReZero): outputs are those of the samples alone, derivatives are not."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.full((5,), coupling))
            self.first = nn.Linear(6, 5)
            self.last = nn.Linear(5, 3)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            same = (x[:, :1] == x[:, 0]).to(x)
            return self.last(h + self.gate * (same @ h / same.sum(1, keepdim=True))) + offset

    model = build(Gated).double()
    x = build(lambda: torch.randn(16, 6)).double()
    x[:, 0] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 5])
    y = build(lambda: torch.randn(16, 3)).double() + offset
    problem = Problem(model, F.mse_loss, [(x, y)])
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


def test_little_memory_cuts_no_batch_whose_samples_meet(monkeypatch):
    monkeypatch.setattr(fit, "_LITTLE", 0)
    monkeypatch.setattr(fit, "free_memory", lambda device: 4000)

    def grouped(h):
        same = (torch.arange(len(h))[:, None] // 3 == torch.arange(len(h)) // 3).to(h)
        return h + same @ h

    with pytest.raises(MemoryError, match=r"cut into parts of \d+ the model gives other outputs"):
        exact_traces(problem_of(grouped))
    apart = problem_of(lambda h: h.softmax(1))
    close(exact_traces(apart, matrix=ggn), ggn(apart).trace_by_block())


def test_outputs_without_samples_are_refused(build):
    class Scalar(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    model = build(lambda: Scalar(4, 1)).double()
    x = build(lambda: torch.randn(6, 4)).double()
    problem = Problem(model, F.mse_loss, [(x[:5], x[:5, 0]), (x[5:], x[5, 0])])
    with pytest.raises(
        ValueError, match=r"the model returns a scalar: let it keep the axis of the samples"
    ):
        exact_traces(problem)


# --- what the graph proves ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*zoo.SMALL, "resnet18", "vgg11"])
def test_what_the_graph_proves_the_trial_does_not_deny(name, generator):
    """The networks that are measured all the time are proved: no trial costs anything there."""
    if name in zoo.SMALL:
        problem = zoo.problem(name, generator, num_samples=6)
    else:
        images = zoo.images("digits", num_samples=6, dtype=torch.float64)
        problem = zoo.full_scale_problem(
            name, images, num_classes=10, batch_size=6, width=2, generator=generator
        )
    line = linearised(problem, problem.batches[0])
    proved = apart_by_graph(line.outputs)
    assert proved is ("attention" not in name)
    line.__dict__["apart"] = False
    columns = torch.randn(3, *line.outputs.shape, generator=generator, dtype=torch.float64)
    assert line.by_rules(columns)[1] == []


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("scale", [1e-2, 1e-6, 1e-10, 1e-13])
def test_a_coupling_that_is_not_found_is_rounding(mix, scale):
    problem = problem_of(lambda h: h + scale * mix(h))
    found = exact_traces(problem)
    exact = hessian(problem).trace_by_block()
    close(found, exact)


def test_a_function_of_the_user_proves_nothing_by_its_name():
    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h.flip(0)

        @staticmethod
        def backward(ctx, g):
            return g.flip(0)

    problem = problem_of(Tanh.apply)
    assert not apart_by_graph(problem.outputs(problem.batches[0]))
    close(exact_traces(problem, matrix=ggn), hessian(problem).trace_by_block())


def test_a_trial_costs_one_column(generator):
    cotangents = torch.randn(4, N, 3, generator=generator)
    trial = Trial(cotangents, 1, stream(0, "proportions of rows"))
    assert trial.combination.shape == (N, 3)
    slopes = torch.cat([cotangents, trial.combination[None]])
    assert trial.seen(slice(0, 3), [slopes[:3]])[0] is not None
    trial.seen(slice(3, 5), [slopes[3:]])
    assert trial.coupled() == set()
    other = Trial(cotangents, 2, stream(0, "proportions of rows"))
    assert other.seen(slice(0, 5), [slopes.flip(1), slopes[:, :3]])[1] is None
    assert other.coupled() == {0, 1}


def test_proportions_tell_any_two_rows_apart():
    trial = Trial(torch.ones(1, 2000, 1, dtype=torch.float64), 1, stream(0, "proportions of rows"))
    values = trial.proportions.sort().values
    assert float((values[1:] - values[:-1]).min()) > math.sqrt(torch.finfo(torch.float64).eps)
