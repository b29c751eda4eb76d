"""Logit probes and control variates."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hesstheory import (
    BlockSeparatedTrace,
    ControlVariateTrace,
    HadamardColumns,
    LayerwiseTrace,
    LogitProbeTrace,
    Problem,
    exact_traces,
    ggn,
    hessian,
    residual,
    zoo,
)


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


@pytest.mark.parametrize("num_probes", [0, -1, True])
def test_numbers_of_probes_are_checked(num_probes):
    with pytest.raises(ValueError, match="num_probes"):
        LogitProbeTrace(num_probes)


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
        exact_traces(problem, matrix=ggn).value
        if exact
        else LogitProbeTrace(5)(problem, generator).samples
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


def test_probes_of_samples_must_not_depend_on_one_another():
    with pytest.raises(
        ValueError, match=r"every sample needs an ε of its own.*pass Rademacher\(\)"
    ):
        LogitProbeTrace(4, probe=HadamardColumns())


def test_logit_probes_ask_for_a_generator(generator):
    with pytest.raises(TypeError, match=r"pass a torch\.Generator"):
        LogitProbeTrace(2)(zoo.problem("tiny_relu", generator))
