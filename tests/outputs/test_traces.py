"""Exact traces against the dense matrices, rule by rule, and where their premise fails."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import hesstheory.outputs.fit
import hesstheory.outputs.loss_root
import hesstheory.outputs.premise
from hesstheory import (
    BlockSeparatedTrace,
    ControlVariateTrace,
    HadamardColumns,
    LayerwiseTrace,
    LogitProbeTrace,
    NotConvex,
    NotPiecewiseLinear,
    NotTwiceDifferentiable,
    Problem,
    exact_traces,
    ggn,
    hessian,
    residual,
    sample_traces,
    zoo,
)
from hesstheory.outputs.loss_root import loss_root
from hesstheory.outputs.per_sample import linearised, rules_that_hold
from hesstheory.outputs.fit import fitted


def close(found, expected):
    """Two results by block agree but for rounding, whatever kind of mapping they are."""
    found = pd.Series(dict(found))
    expected = pd.Series(dict(expected))
    assert list(found.index) == list(expected.index)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("name", zoo.SMALL)
def test_ggn_traces_of_every_network(name, generator):
    problem = zoo.problem(name, generator, num_samples=12)
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


@pytest.mark.parametrize("name", zoo.SMALL)
def test_hessian_traces_exactly_where_the_identity_holds(name, generator):
    problem = zoo.problem(name, generator, num_samples=12)
    if zoo.network(name).piecewise_linear:
        found = exact_traces(problem)
        assert found.name == found.value.name == "tr H"
        close(found, hessian(problem).trace_by_block())
        return
    with pytest.raises(NotPiecewiseLinear, match="in module"):
        exact_traces(problem)
    gap = hessian(problem).trace_by_block() - ggn(problem).trace_by_block()
    assert gap.abs().max() > 1e-6, "the refusal has a reason"


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


def test_columns_are_one_fewer_than_classes(generator):
    problem = zoo.problem("relu_mlp", generator, num_samples=12)
    outputs = problem.outputs(problem.batches[0])
    S = loss_root(problem, outputs, problem.batches[0])
    assert S.shape == (*outputs.shape, outputs.shape[1] - 1)
    p = outputs.softmax(1)
    expected = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / len(p)
    assert torch.allclose(S @ S.mT, expected, atol=1e-15)


def test_nothing_is_changed(generator):
    problem = zoo.problem("cnn", generator, num_samples=8)
    before = copy.deepcopy(problem.model.state_dict())
    exact_traces(problem)
    assert all(torch.equal(before[key], value) for key, value in problem.model.state_dict().items())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in problem.model.modules()
    )
    assert all(p.grad is None for p in problem.model.parameters())


@pytest.mark.parametrize("target", ["hessian", "ggn"])
@pytest.mark.parametrize("name", ["cnn", "relu_mlp", "tiny_relu"])
def test_sample_traces_are_those_of_samples_alone(name, target, generator):
    """Batches of unequal sizes: a sample's own trace does not depend on the batch that it came in."""
    problem = zoo.problem(name, generator, num_samples=7).rebatched(4)
    assert len(set(problem.batch_sizes)) > 1
    found = sample_traces(problem, target)
    for n, alone in enumerate(problem.samples()):
        close(found.loc[n], (hessian if target == "hessian" else ggn)(alone).trace_by_block())
    close(found.mean(), exact_traces(problem, target))


def test_sample_traces_of_tensors_without_a_rule_and_without_a_use(build):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.unused, self.linear = (
                nn.Parameter(torch.randn(6)),
                nn.Linear(2, 2),
                nn.Linear(6, 3),
            )

        def forward(self, x):
            return self.linear((x + self.shift).relu())

    model = build(Model).double()
    x = build(lambda: torch.randn(12, 6)).double()
    with pytest.warns(UserWarning, match="unused"):
        problem = Problem(model, F.cross_entropy, [(x, torch.arange(12) % 3)])
    found = sample_traces(problem)
    assert (found["unused"] == 0).all()
    for n, alone in enumerate(problem.samples()):
        assert found["shift"][n] == pytest.approx(ggn(alone).trace_by_block()["shift"], rel=1e-10)


@pytest.mark.parametrize("per_sample", [True, False])
def test_logit_probes_are_unbiased(per_sample, generator):
    """Within six standard errors of the exact trace, which are a tenth of it at most."""
    problem = zoo.problem("relu_mlp", generator, num_samples=12)
    exact = exact_traces(problem, matrix=ggn).value
    estimate = LogitProbeTrace(2000, per_sample)(problem, torch.Generator().manual_seed(1))
    assert ((estimate.value - exact).abs() <= 6 * estimate.stderr + 1e-12 * exact).all()
    assert (6 * estimate.stderr <= 0.1 * exact).all()


def test_samples_of_their_own_are_less_noisy(generator):
    problem = zoo.problem("relu_mlp", generator, num_samples=12)
    alone, summed = (
        LogitProbeTrace(500, per_sample)(problem, torch.Generator().manual_seed(1)).stderr
        for per_sample in (True, False)
    )
    assert (alone < summed).all()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_target_that_is_not_known(generator):
    with pytest.raises(ValueError, match="'hessian' or 'ggn'"):
        exact_traces(zoo.problem("tiny_relu", generator), "fisher")


def test_a_loss_that_is_not_convex_is_refused(build):
    model = build(lambda: nn.Linear(3, 2)).double()
    problem = Problem(
        model, lambda f, y: -(f - y).square().mean(), [(torch.ones(4, 3), torch.zeros(4, 2))]
    )
    with pytest.raises(NotConvex, match="not convex"):
        exact_traces(problem)


def test_a_loss_that_couples_samples_is_refused(build):
    model, x = build(lambda: nn.Linear(3, 2)).double(), build(lambda: torch.randn(4, 3))
    with pytest.warns(UserWarning, match="not the mean"):
        problem = Problem(
            model, lambda f, y: (f - f.mean(0)).square().mean(), [(x, torch.zeros(4, 2))]
        )
    with pytest.raises(ValueError, match="another one"):
        exact_traces(problem)


@pytest.mark.parametrize("num_probes", [0, -1, True])
def test_numbers_of_probes_are_checked(num_probes):
    with pytest.raises(ValueError, match="num_probes"):
        LogitProbeTrace(num_probes)


# --- sure outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "margin"), [(torch.float64, 20.0), (torch.float32, 10.0), (torch.float32, 14.0)]
)
def test_a_softmax_that_is_sure_of_every_sample_is_still_convex(dtype, margin, generator):
    """Its curvature is then a difference of terms that are larger by many orders, in each of 40 draws."""
    model = nn.Linear(3, 3, bias=False, device="meta").to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    for _ in range(40):
        logits, labels = (
            torch.randn(4, 3, generator=generator),
            torch.randint(3, (4,), generator=generator),
        )
        logits[range(4), labels] += margin
        problem = Problem(model, F.cross_entropy, [(logits.to(dtype), labels)])
        S = loss_root(problem, problem.outputs(problem.batches[0]), problem.batches[0]).double()
        p = logits.to(dtype).double().softmax(1)
        expected = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / 4
        assert (S @ S.mT - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_loss_with_weights_of_its_own_dtype(generator):
    """Cross-entropy with float32 class weights takes no float64 outputs."""
    problem = zoo.problem("tiny_relu", generator, num_samples=6, dtype=torch.float32)
    weights = torch.linspace(1, 2, 3)[: problem.outputs(problem.batches[0]).shape[1]].float()
    weighted = Problem(
        problem.model,
        lambda f, y: F.cross_entropy(f, y, weights, reduction="none").mean(),
        problem.batches,
    )
    H = hessian(weighted) @ torch.eye(weighted.num_params, dtype=torch.float32)
    expected = [float(H[i][:, i].trace()) for i in weighted.index.values()]
    assert (exact_traces(weighted).value - expected).abs().max() < 1e-5 * max(map(abs, expected))


# --- control variates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.SMALL)
def test_the_residual_is_hessian_minus_gauss_newton(name, generator):
    problem = zoo.problem(name, generator, num_samples=6)
    H, G, R = (matrix(problem).to_dense() for matrix in (hessian, ggn, residual))
    assert (H - G - R).abs().max() <= 1e-13 * max(H.abs().max(), G.abs().max())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("separated", [True, False])
@pytest.mark.parametrize("name", ["tanh_mlp", "attention", "relu_mlp"])
def test_control_variates_are_traces_of_g_plus_forms_of_the_residual(
    name, exact, separated, generator
):
    problem = zoo.problem(name, generator, num_samples=6)
    state = generator.get_state()
    found = ControlVariateTrace(5, exact=exact, separated=separated)(problem, generator)
    generator.set_state(state)
    forms = (BlockSeparatedTrace if separated else LayerwiseTrace)(5, matrix=residual)(
        problem, generator
    ).samples
    of_ggn = (
        exact_traces(problem, matrix=ggn).value if exact else LogitProbeTrace(5)(problem, generator).samples
    )
    expected = forms + of_ggn
    assert (found.samples - expected).abs().max().max() <= 1e-14 * expected.abs().max().max()
    assert found.num_matvecs == 5 * (len(problem.partition.blocks) if separated else 1)


def test_control_variates_take_probes(generator):
    problem = zoo.problem("tanh_mlp", generator, num_samples=6)
    basis = problem.num_params**0.5 * torch.eye(problem.num_params)
    found, expected = (
        ControlVariateTrace()(problem, probes=basis).value,
        hessian(problem).trace_by_block(),
    )
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    with pytest.raises(TypeError, match=r"pass a torch.Generator beside probes="):
        ControlVariateTrace(exact=False)(problem, probes=basis)


def test_a_penalty_inside_the_loss_is_not_a_residual(generator):
    problem = zoo.problem("tanh_mlp", generator, num_samples=6)
    weight = next(problem.model.parameters())
    penalised = Problem(
        problem.model, lambda f, y: F.cross_entropy(f, y) + weight.square().sum(), problem.batches
    )
    with pytest.raises(ValueError, match=r"use hessian\(problem\) - ggn\(problem\)"):
        ControlVariateTrace(2)(penalised, generator)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn", "residual", "relu_mlp"])
def test_smaller_batches_give_the_same_traces(name, generator):
    problem = zoo.problem(name, generator, num_samples=13)
    for size in (1, 4, 13):
        close(exact_traces(problem.rebatched(size), matrix=ggn), exact_traces(problem, matrix=ggn))
        assert max(problem.rebatched(size).batch_sizes) <= size


def test_batches_are_cut_to_the_free_memory(generator, monkeypatch):
    problem = zoo.problem("cnn", generator, num_samples=13)
    expected = exact_traces(problem)
    assert fitted(problem) is problem
    monkeypatch.setattr(hesstheory.outputs.fit, "_LITTLE", 0)
    monkeypatch.setattr(hesstheory.outputs.fit, "free_memory", lambda device: 60_000)
    assert 1 < max(fitted(problem).batch_sizes) < max(problem.batch_sizes)
    close(exact_traces(problem), expected)
    monkeypatch.setattr(hesstheory.outputs.fit, "free_memory", lambda device: 1000)
    with pytest.raises(
        MemoryError, match=r"a single sample takes about [0-9,]+ bytes and 500 may be used"
    ):
        exact_traces(problem)


# --- one number per sample --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits, F.huber_loss])
def test_outputs_of_one_number_need_no_second_axis(loss, generator):
    model = nn.Sequential(
        nn.Linear(4, 3, device="meta"), nn.ReLU(), nn.Linear(3, 1, device="meta"), nn.Flatten(0)
    )
    model.double().to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = torch.randn(7, 4, generator=generator), torch.rand(7, generator=generator)
    problem = Problem(model, loss, [data])
    assert problem.outputs(data).shape == (7,)
    close(exact_traces(problem), hessian(problem).trace_by_block())


# --- rules that do not hold -------------------------------------------------------------------------------------------


class Shaped(nn.Module):
    """Three linear layers around what a function does to the batch."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 4)
        self.of = forward

    def forward(self, x):
        return self.of(self, x)


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


def test_outputs_that_are_rows_of_tokens(generator):
    """A language model that returns tokens × vocabulary, with positions and a pruned head."""
    with torch.device("meta"):
        model = nn.ModuleDict(
            {"tok": nn.Embedding(7, 4), "pos": nn.Embedding(5, 4), "head": nn.Linear(4, 7)}
        )
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    prune.l1_unstructured(model["head"], "weight", 0.5)
    model.forward = lambda x: model["head"](
        model["tok"](x) + model["pos"](torch.arange(5))
    ).reshape(-1, 7)
    tokens = torch.randint(7, (4, 5), generator=generator)
    problem = Problem(
        model, lambda f, y: F.cross_entropy(f, y.flatten()), [(tokens, tokens.roll(1, 1))]
    )
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


def test_a_curvature_that_explodes_elsewhere_is_measured_here(generator):
    """Charbonnier's loss √(r² + 10⁻¹⁰) has a curvature of 10⁵ at residuals of zero."""
    model = nn.Linear(5, 1, device="meta").to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = torch.randn(6, 5, generator=generator), torch.zeros(6, 1)
    problem = Problem(model, lambda f, y: ((f - y).square() + 1e-10).sqrt().mean(), [data])
    found, expected = exact_traces(problem).value, hessian(problem).trace_by_block()
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


class Hidden(torch.autograd.Function):
    """Piecewise linear by its name alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slope


Hidden.__name__ = Hidden.__qualname__ = "Abs"


def _in_place_on_a_part(h):
    h = h.clone()
    h[:, 0].exp_()
    return h


@pytest.mark.filterwarnings("ignore:the loss does not reach")
@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (Hidden.apply, r"does not show what Hidden|of your own.*pass target='ggn'"),
        (_in_place_on_a_part, r"in place on a view.*write it out of place.*pass target='ggn'"),
    ],
)
def test_a_bend_under_another_name_is_refused(bend, reason, generator):
    with torch.device("meta"):
        model = Shaped(lambda m, x: m.b(bend(m.a(x)).relu()))
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    data = torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)
    with pytest.raises(NotPiecewiseLinear, match=reason):
        exact_traces(Problem(model, F.cross_entropy, [data]))


@pytest.mark.parametrize(
    "measure",
    [exact_traces, sample_traces, lambda model: LogitProbeTrace(2)(model, torch.Generator())],
)
def test_a_model_is_no_problem(measure):
    with pytest.raises(TypeError, match="pass a Problem, not a ReLU"):
        measure(nn.ReLU())


# --- what the trials see ----------------------------------------------------------------------------------------------


def drawn(model, generator):
    """The same model with parameters from the generator."""
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


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


def _bent_behind(generator, monkeypatch, bend):
    """A linear layer whose weight passes through a function, as if the graph showed nothing of it."""
    monkeypatch.setattr(hesstheory.outputs.premise, "obstacle", lambda outputs: None)
    with torch.device("meta"):
        model = Shaped(lambda m, x: F.linear(x, bend(m.a.weight)).mean(1))
    for name in ("b", "c"):
        delattr(model, name)
    model = drawn(model, generator)
    model.a.bias = None
    return Problem(
        model, F.cross_entropy, [(torch.randn(6, 6, 5, generator=generator), torch.arange(6) % 3)]
    )


def test_a_bend_of_rounding_is_none(generator, monkeypatch):
    """log exp w has a second derivative of rounding alone, and nothing else stands in its row."""
    problem = _bent_behind(generator, monkeypatch, lambda w: w.exp().log())
    rows = residual(problem).to_dense()
    assert 0 < rows.abs().max() < 1e-15
    assert exact_traces(problem).name == "tr H"


@pytest.mark.parametrize("bend", [torch.exp, lambda w: w + 1e-6 * w**2])
def test_a_bend_that_the_graph_hides_is_found(bend, generator, monkeypatch):
    problem = _bent_behind(generator, monkeypatch, bend)
    with pytest.raises(
        NotPiecewiseLinear, match=r"although the graph looks piecewise linear: in parameter .*'ggn'"
    ):
        exact_traces(problem)


@pytest.mark.parametrize(
    "linear",
    [
        lambda h: h.cumsum(1),
        lambda h: F.pixel_shuffle(h.reshape(-1, 4, 1, 1), 2).flatten(1),
        lambda h: F.pixel_unshuffle(h.reshape(-1, 1, 2, 2), 2).flatten(1),
    ],
)
def test_linear_operations_are_let_through(linear, generator):
    with torch.device("meta"):
        model = Shaped(lambda m, x: m.b(linear(m.a(x)).relu()))
    model = drawn(model, generator)
    del model.c
    problem = Problem(
        model, F.cross_entropy, [(torch.randn(6, 5, generator=generator), torch.arange(6) % 3)]
    )
    close(exact_traces(problem), hessian(problem).trace_by_block())


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["hessian", "ggn"])
@pytest.mark.parametrize("samples", [1, 4])
def test_a_loss_without_a_second_derivative(target, samples, generator):
    model = drawn(nn.Linear(3, 4, device="meta"), generator)
    data = torch.randn(samples, 3, generator=generator), torch.arange(samples)
    problem = Problem(model, nn.MultiMarginLoss(), [data])
    with pytest.raises(
        NotTwiceDifferentiable, match="replace it by differentiable torch operations"
    ):
        exact_traces(problem, target)


def test_a_penalty_inside_the_loss_is_refused_for_the_hessian(generator):
    problem = zoo.problem("tiny_relu", generator, num_samples=6)
    weight = next(problem.model.parameters())
    penalised = Problem(
        problem.model, lambda f, y: F.cross_entropy(f, y) + weight.square().sum(), problem.batches
    )
    with pytest.raises(ValueError, match="loss_fn reads parameters of the model by itself"):
        exact_traces(penalised)
    close(exact_traces(penalised, matrix=ggn), ggn(problem).trace_by_block())


SOFTMAX_LIKE = {
    "weights": lambda f, y: F.cross_entropy(
        f, y, torch.tensor([1.0, 2.0, 0.5]), reduction="none"
    ).mean(),
    "smoothed": lambda f, y: F.cross_entropy(f, y, label_smoothing=0.2),
    "temperature": lambda f, y: F.cross_entropy(f / 3, y),
    "focal": lambda f, y: F.cross_entropy(f, y) + 1e-9 * f.square().mean(),
}


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("name", SOFTMAX_LIKE)
def test_a_root_in_closed_form_serves_a_softmax_alone(name, scale, generator):
    """Sure outputs included; a temperature or a small term beside it is found in the loss's own second derivative."""
    outputs, targets = scale * torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    model = drawn(nn.Linear(3, 3, device="meta"), generator)
    problem = Problem(model, SOFTMAX_LIKE[name], [(outputs, targets)])
    S = hesstheory.outputs.loss_root.cheapest_root(problem, outputs, problem.batches[0])
    H = torch.autograd.functional.hessian(lambda f: SOFTMAX_LIKE[name](f, targets), outputs)
    expected = H[range(5), :, range(5)]
    assert (S @ S.mT - expected).abs().max() <= 1e-13 * expected.abs().max() + 1e-16
    if name in ("weights", "smoothed") and scale == 1.0:
        assert S.shape == (5, 3, 2)
        assert bool((S.triu(1) == 0).all()), "the closed form is a triangle"


def test_probes_of_samples_must_not_depend_on_one_another():
    with pytest.raises(
        ValueError, match=r"every sample needs an ε of its own.*pass Rademacher\(\)"
    ):
        LogitProbeTrace(4, probe=HadamardColumns())


def test_logit_probes_ask_for_a_generator(generator):
    with pytest.raises(TypeError, match=r"pass a torch\.Generator"):
        LogitProbeTrace(2)(zoo.problem("tiny_relu", generator))


# --- tensors without a rule, many samples -----------------------------------------------------------------------------


class Attends(nn.Module):
    """Tokens that see one another; `spoilt` says how samples depend on the batch that they are in."""

    def __init__(self, spoilt=""):
        super().__init__()
        self.embed, self.attend, self.norm = (
            nn.Linear(4, 6),
            nn.MultiheadAttention(6, 2, batch_first=True),
            nn.LayerNorm(6),
        )
        self.last, self.spoilt = nn.Linear(6, 3), spoilt

    def forward(self, x):
        h = self.embed(x)
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0]).mean(1)
        if self.spoilt == "mean of the batch":
            h = h + h.mean(0)
        if self.spoilt == "size of the batch":
            h = h * len(x)
        if self.spoilt == "slope of the batch":
            h = h + h.mean(0) - h.mean(0).detach()
        if self.spoilt == "a number":
            h = h * (1 + 0 * h.sum().item())
        return self.last(h)


def attending(build, spoilt=""):
    model, x = (
        build(lambda: Attends(spoilt)).double().eval(),
        build(lambda: torch.randn(12, 5, 4)).double(),
    )
    return Problem(model, F.cross_entropy, [(x, torch.arange(12) % 3)])


def test_samples_without_a_rule_go_through_the_model_side_by_side(build):
    problem = attending(build)
    line = linearised(problem, problem.batches[0])
    assert {"attend.in_proj_weight", "norm.weight"} <= set(line.others)
    assert line._alone is not None
    close(exact_traces(problem, matrix=ggn), ggn(problem).trace_by_block())


def test_side_by_side_is_one_by_one(build):
    problem = attending(build)
    line = linearised(problem, problem.batches[0])
    u = build(lambda: torch.randn(12, 3)).double()
    together, apart = line._alone(u), line._one_by_one(u)
    assert together.keys() == apart.keys()
    for name, squares in apart.items():
        torch.testing.assert_close(together[name], squares, rtol=1e-12, atol=1e-20)
        assert not together[name].requires_grad


@pytest.mark.parametrize(
    "spoilt", ["mean of the batch", "size of the batch", "slope of the batch", "a number"]
)
def test_a_model_that_is_another_one_for_single_samples_is_differentiated_in_its_batch(
    spoilt, build
):
    problem = attending(build, spoilt)
    line = linearised(problem, problem.batches[0])
    assert line._alone is None
