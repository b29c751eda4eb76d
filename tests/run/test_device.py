"""On the pretended CUDA device the library gives the numbers of the CPU."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pretend_cuda
import pytest
import torch
from pretend_cuda import MIXED, NUMPY, Generator, OnDevice
from torch import nn
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.autograd import graph, layers
from hesstheory.autograd.graph import NotTwiceDifferentiable
from hesstheory.curvature import linearised
from hesstheory.curvature.matrix import ggn, hessian, residual
from hesstheory.curvature.uses import unrolled_hessian
from hesstheory.estimators import products
from hesstheory.estimators.deflated import HutchPP, XTrace
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.estimators.probes import (
    Gaussian,
    HadamardColumns,
    Rademacher,
    SparseSigns,
    Sphere,
    Uniform,
)
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.estimators.ranks import rank_layers
from hesstheory.estimators.recommendation import recommend
from hesstheory.outputs import gram, premise
from hesstheory.outputs.gram import dual_gram
from hesstheory.outputs.sketches import sketched_norms
from hesstheory.outputs.traces import exact_traces
from hesstheory.problem.risk import Problem


def network(device):
    """A ReLU network of convolutions, batch norm and linear layers, on two batches."""
    generator = torch.Generator().manual_seed(1)
    blank = zoo.initial.blank
    model = nn.Sequential(
        blank(nn.Conv2d, 2, 3, 3, padding=1), blank(nn.BatchNorm2d, 3), nn.ReLU(), nn.MaxPool2d(2),
        blank(nn.Conv2d, 3, 4, 2), nn.ReLU(), nn.Flatten(),
        blank(nn.Linear, 4, 5), nn.ReLU(), blank(nn.Linear, 5, 3),
    )  # fmt: skip
    inputs = torch.randn(5, 2, 4, 4, generator=generator)
    targets = torch.tensor([0, 1, 2, 0, 1])
    zoo.initial.initialise(model, inputs, generator)
    batches = [
        (inputs[part].to(device), targets[part].to(device)) for part in (slice(3), slice(3, 5))
    ]
    return Problem(model.eval().to(device), F.cross_entropy, batches)


def _exact_plan(problem, generator):
    return next(plan for plan in recommend(problem, 0.5, 0.9, generator).plans if plan.is_exact)


def _of_dual(problem, generator):
    gram = dual_gram(problem, Rademacher().signs(problem.num_params, 3, generator), budget=50_000)
    parts = (
        gram.sample_traces,
        gram.norms2,
        gram.diagonal_norms2,
        gram.forms(),
        gram.squared_product_norms(),
    )
    return torch.cat([part.flatten() for part in (*parts, *gram.of_samples())])


WORK = {
    "exact": lambda p, g: exact_traces(p).value,
    "exact, of G": lambda p, g: exact_traces(p, matrix=ggn).value,
    "dense": lambda p, g: hessian(p).to_dense(),
    "difference": lambda p, g: (hessian(p) - ggn(p)).block("0", "7"),
    "residual": lambda p, g: residual(p) @ Rademacher().sample(p.num_params, 2, g).to(p.device),
    "norms": lambda p, g: ggn(p).block_norms(),
    "traces": lambda p, g: ggn(p).trace_by_block(),
    "unrolled": lambda p, g: unrolled_hessian(p, "7.weight"),
    "dual Gram": _of_dual,
    "sketched": lambda p, g: sketched_norms(p, g, num_rows=4).norms2,
    "one product": lambda p, g: LayerwiseTrace(5)(p, g).samples,
    "given probes": lambda p, g: LayerwiseTrace()(p, probes=torch.ones(p.num_params, 2)).samples,
    "Gaussian": lambda p, g: LayerwiseTrace(3, Gaussian())(p, g).samples,
    "uniform": lambda p, g: LayerwiseTrace(3, Uniform())(p, g).samples,
    "sphere": lambda p, g: LayerwiseTrace(3, Sphere())(p, g).samples,
    "sparse": lambda p, g: LayerwiseTrace(3, SparseSigns(0.3))(p, g).samples,
    "Hadamard": lambda p, g: LayerwiseTrace(3, HadamardColumns())(p, g).samples,
    "separated": lambda p, g: BlockSeparatedTrace(3)(p, g).samples,
    "Hutch++": lambda p, g: HutchPP(3, 2)(p, g).samples,
    "XTrace": lambda p, g: XTrace(4)(p, g).samples,
    "logit probes": lambda p, g: LogitProbeTrace(3)(p, g).samples,
    "logit probes, of sums": lambda p, g: LogitProbeTrace(3, per_sample=False)(p, g).samples,
    "control variates": lambda p, g: ControlVariateTrace(3)(p, g).samples,
    "control variates, separated": lambda p, g: (
        ControlVariateTrace(3, separated=True)(p, g).samples
    ),
    "control variates, estimated": lambda p, g: ControlVariateTrace(3, exact=False)(p, g).samples,
    "ranking": lambda p, g: rank_layers(p).table,
    "ranking, estimated": lambda p, g: (
        rank_layers(p, generator=g, estimator=LayerwiseTrace(8)).table
    ),
    "plan": lambda p, g: _exact_plan(p, g)(p, g).value,
}


def _array(found):
    return found.cpu().numpy() if isinstance(found, torch.Tensor) else found.to_numpy(float)


@cache
def _on_the_cpu(work):
    return _array(WORK[work](network("cpu"), torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    "make", [torch.Generator, Generator], ids=["generator of the CPU", "of the device"]
)
@pytest.mark.parametrize("work", WORK)
def test_the_numbers_are_those_of_the_cpu(work, make, device):
    found = _array(WORK[work](network(device), make().manual_seed(3)))
    np.testing.assert_allclose(found, _on_the_cpu(work), rtol=1e-10, atol=1e-12)


def test_float32_is_certified_in_float64(device):
    problem = network(device)
    single = Problem(
        problem.model.float(), F.cross_entropy, [(x.float(), y) for x, y in problem.batches]
    )
    assert hessian(single).to_dense().device == device
    assert hessian(single).to_dense().dtype == torch.float64


def test_convolutions_of_large_networks(device, monkeypatch):
    expected = hessian(network("cpu")).to_dense()
    monkeypatch.setattr(linearised, "_layers", lambda problem: layers.BilinearLayers())
    monkeypatch.setattr(layers, "Tensor", OnDevice)  # they are for tensors of no other class
    used = []
    right = layers._convolution
    monkeypatch.setattr(layers, "_convolution", lambda *a, **k: used.append(1) or right(*a, **k))
    torch.testing.assert_close(hessian(network(device)).to_dense().cpu(), expected)
    assert used


@pytest.mark.parametrize(
    "refusal",
    [
        "the derivative for '_cudnn_rnn_backward' is not implemented. "
        "Double backwards is not supported for CuDNN RNNs",
        "cudnn RNN backward can only be called in training mode",
    ],
)
def test_recurrent_layers_of_cudnn_have_a_cure(refusal):
    with (
        pytest.raises(NotTwiceDifferentiable, match=r"cudnn\.flags\(enabled=False\)"),
        graph.second_derivatives(),
    ):
        raise RuntimeError(refusal)


# --- a fault that is planted in the library -------------------------------------------------------

FAULTY_LIBRARY = {
    "rows": (gram.DualGram, "_rows_of_samples", lambda self: torch.tensor(self.sample_of_row)),
    "cosines": (premise, "generic", lambda like: torch.ones(like.shape)),
    "labels": (products, "labelled", lambda samples, problem: pd.DataFrame(samples.numpy())),
}


@pytest.mark.parametrize(("owner", "name", "fault"), FAULTY_LIBRARY.values(), ids=FAULTY_LIBRARY)
def test_a_fault_of_the_library_is_found(owner, name, fault, faulty, monkeypatch):
    problem = network(faulty)
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((RuntimeError, TypeError), match=f"{MIXED}|{NUMPY}"):
        [
            WORK[work](problem, torch.Generator().manual_seed(0))
            for work in ("dual Gram", "exact", "one product")
        ]
    assert pretend_cuda.faults
