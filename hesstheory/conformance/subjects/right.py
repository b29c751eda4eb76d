"""What must the suite never reject? Correct estimators of different kinds, in plain torch.

`RIGHT` holds them by name. Each is called as `estimator(problem, *, num_probes, generator)`, some
also take `probes=`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from hesstheory.estimators.probes import Gaussian, Probe, Rademacher, SparseSigns, Sphere
from hesstheory.estimators.products import BlockSeparatedTrace, LayerwiseTrace
from hesstheory.estimators.protocol import VarianceLaw, law_of_probe
from hesstheory.problem.batches import Batch
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

Vectors = dict[str, Tensor]


# --- probes and answers, tensor by tensor ---------------------------------------------------------
def _signs(problem: Problem, generator: torch.Generator) -> Vectors:
    """One probe of fair signs, a tensor for each parameter, in the model's dtype."""
    return {
        name: (2 * torch.randint(2, p.shape, generator=generator, device=generator.device) - 1).to(
            p
        )
        for name, p in problem.params.items()
    }


def _all_signs(problem: Problem, num_probes: int, generator: torch.Generator) -> Vectors:
    """K probes of fair signs along the first axis."""
    return cut(
        problem, Rademacher().sample(problem.num_params, num_probes, generator).to(problem.dtype)
    )


def cut(problem: Problem, Z: Float[Tensor, "params columns"]) -> Vectors:
    """The columns of a matrix along the first axis of a tensor for each parameter."""
    return {
        name: Z[start:stop].mT.reshape(-1, *p.shape)
        for (name, p), (start, stop) in zip(
            problem.params.items(), problem.offsets.values(), strict=True
        )
    }


def _samples(problem: Problem, Z: Vectors, HZ: Vectors) -> list[dict[str, float]]:
    """z_lᵀ(Hz)_l of every block, probe by probe."""
    forms = {block: _dots(names, Z, HZ) for block, names in problem.partition.blocks.items()}
    return [dict(zip(forms, row, strict=True)) for row in zip(*forms.values(), strict=True)]


def _dots(names: tuple[str, ...], Z: Vectors, HZ: Vectors) -> list[float]:
    """Σ_i z_i (Hz)_i over the tensors of these names, probe by probe."""
    of_tensor = [
        (Z[name] * HZ[name]).reshape(len(Z[name]), -1).sum(1, dtype=torch.float64) for name in names
    ]
    forms: list[float] = torch.stack(of_tensor).sum(0).tolist()
    return forms


def _by_block(
    problem: Problem, z: Mapping[str, Tensor], Hz: Mapping[str, Tensor]
) -> dict[str, float]:
    """z_lᵀ(Hz)_l of every block."""
    forms = {name: (z[name] * Hz[name]).sum(dtype=torch.float64) for name in Hz}
    blocks = [
        torch.stack([forms[name] for name in names]).sum()
        for names in problem.partition.blocks.values()
    ]
    return dict(zip(problem.partition.blocks, torch.stack(blocks).tolist(), strict=True))


def _means(samples: list[dict[str, float]]) -> dict[str, float]:
    return {block: sum(sample[block] for sample in samples) / len(samples) for block in samples[0]}


def _with_stderr(samples: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and s/√K of every block; one probe has no standard error, which is NaN."""
    K, means = len(samples), _means(samples)
    if K == 1:
        return {block: (mean, math.nan) for block, mean in means.items()}
    squares = {
        block: sum((sample[block] - mean) ** 2 for sample in samples)
        for block, mean in means.items()
    }
    return {block: (mean, math.sqrt(squares[block] / (K - 1) / K)) for block, mean in means.items()}


def _risk(problem: Problem) -> Tensor:
    """Mean loss over all samples, with its graph."""
    losses = [
        weight * problem.loss(batch)
        for weight, batch in zip(problem.weights, problem.batches, strict=True)
    ]
    return torch.stack(losses).sum()


def _product(
    gradients: tuple[Tensor, ...], tensors: Mapping[str, Tensor], z: Mapping[str, Tensor]
) -> Vectors:
    """Hz by the slope of gᵀz; zero where the gradient does not depend on the parameters."""
    slope = torch.stack(
        [(g * z[name]).sum() for name, g in zip(tensors, gradients, strict=True)]
    ).sum()
    if not slope.requires_grad:
        return {name: torch.zeros_like(p) for name, p in tensors.items()}
    rows = torch.autograd.grad(
        slope, list(tensors.values()), retain_graph=True, materialize_grads=True
    )
    return dict(zip(tensors, rows, strict=True))


def _gradients(risk: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        risk, list(tensors.values()), create_graph=True, materialize_grads=True
    )


# --- reverse over reverse -------------------------------------------------------------------------
def signs_kept_graph(problem: Problem, *, num_probes: int, generator: torch.Generator) -> Estimate:
    """Signs, one graph of the whole risk kept for all probes; an Estimate."""
    import pandas as pd

    samples = []
    with torch.enable_grad():
        gradients = _gradients(_risk(problem), problem.params)
        for _ in range(num_probes):
            z = _signs(problem, generator)
            samples.append(_by_block(problem, z, _product(gradients, problem.params, z)))
    return Estimate(pd.DataFrame(samples), num_matvecs=num_probes)


@dataclass(frozen=True)
class FreshGraph:
    """Any distribution, a graph for every batch; traces with standard errors."""

    probe: Probe

    @property
    def variance_law(self) -> VarianceLaw | None:
        """T2 where the entries are independent."""
        return law_of_probe(self.probe)

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator
    ) -> dict[str, tuple[float, float]]:
        drawn = self.probe.sample(problem.num_params, num_probes, generator)
        Z = cut(problem, drawn.to(problem.dtype))
        of_batch = [_samples_of_batch(problem, batch, Z) for batch in problem.batches]
        return _with_stderr(_weighted(problem, of_batch))


def probe_for_each_batch(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Probes for every batch, less noisy than shared ones; traces with standard errors."""
    of_batch = [
        _samples_of_batch(problem, batch, _all_signs(problem, num_probes, generator))
        for batch in problem.batches
    ]
    return _with_stderr(_weighted(problem, of_batch))


def _samples_of_batch(problem: Problem, batch: Batch, Z: Vectors) -> list[dict[str, float]]:
    """zᵀHz by block, of the Hessian of one batch, probe by probe."""
    with torch.enable_grad():
        gradients = _gradients(problem.loss(batch), problem.params)
    return _samples(problem, Z, _pushed(gradients, problem.params, Z))


def _weighted(problem: Problem, of_batch: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The sum over batches weighted by their size, probe by probe."""
    return [
        {
            block: sum(
                weight * form[block] for weight, form in zip(problem.weights, forms, strict=True)
            )
            for block in problem.partition.blocks
        }
        for forms in zip(*of_batch, strict=True)
    ]


def block_separated(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """A probe for each block, differentiated in that block alone; traces with standard errors."""
    Z, forms = _all_signs(problem, num_probes, generator), {}
    with torch.enable_grad():
        risk = _risk(problem)
        for block, names in problem.partition.blocks.items():
            tensors = {name: problem.params[name] for name in names}
            of_block = {name: Z[name] for name in names}
            HZ = _pushed(_gradients(risk, tensors), tensors, of_block)
            forms[block] = _dots(names, of_block, HZ)
    return _with_stderr(
        [dict(zip(forms, row, strict=True)) for row in zip(*forms.values(), strict=True)]
    )


def signs_all_at_once(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, float]:
    """Signs, all probes pushed through one graph together; traces without standard errors."""
    Z = _all_signs(problem, num_probes, generator)
    return _means(_samples(problem, Z, _products(problem, Z)))


def total_only(problem: Problem, *, num_probes: int, generator: torch.Generator) -> float:
    """The full trace as one number."""
    Z = _all_signs(problem, num_probes, generator)
    return math.fsum(_dots(tuple(Z), Z, _products(problem, Z))) / num_probes


def given_or_drawn(
    problem: Problem, *, num_probes: int, generator: torch.Generator, probes: Tensor | None = None
) -> dict[str, tuple[float, float]]:
    """Normals, or the P×K probes that it is given; traces with standard errors."""
    if probes is None:
        probes = torch.randn(
            problem.num_params,
            num_probes,
            generator=generator,
            device=generator.device,
            dtype=torch.float64,
        )
    Z = cut(problem, probes.to(problem.dtype))
    return _with_stderr(_samples(problem, Z, _products(problem, Z)))


def _products(problem: Problem, Z: Vectors) -> Vectors:
    """HZ for K probes along the first axis, by one graph of the whole risk."""
    with torch.enable_grad():
        gradients = _gradients(_risk(problem), problem.params)
    return _pushed(gradients, problem.params, Z)


def _pushed(gradients: tuple[Tensor, ...], params: Mapping[str, Tensor], Z: Vectors) -> Vectors:
    """HZ for K probes along the first axis."""
    curved = {name: g for name, g in zip(params, gradients, strict=True) if g.requires_grad}
    if not curved:
        return {name: torch.zeros_like(z) for name, z in Z.items()}
    rows = torch.autograd.grad(
        list(curved.values()),
        list(params.values()),
        [Z[name] for name in curved],
        is_grads_batched=True,
        materialize_grads=True,
        retain_graph=True,
    )
    return {name: row.expand_as(Z[name]) for name, row in zip(params, rows, strict=True)}


# --- forward over reverse -------------------------------------------------------------------------
def forward_over_reverse(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> dict[str, tuple[float, float]]:
    """Signs, products by `jvp` of `grad` (`torch.func`); traces with standard errors."""
    Z = _all_signs(problem, num_probes, generator)
    return _with_stderr(_samples(problem, Z, jvps_of_gradient(problem, Z)))


def jvps_of_gradient(problem: Problem, Z: Vectors) -> Vectors:
    """Hessian products by `torch.func.jvp` of `torch.func.grad`, all columns together."""
    params = {name: p.detach() for name, p in problem.params.items()}
    gradient = grad(partial(_functional_risk, problem))
    with (
        warnings.catch_warnings(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # the other kernels have no forward derivative
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of torch, about its own decompositions
        HZ: Vectors = vmap(lambda z: jvp(gradient, (params,), (z,))[1])(Z)
    return HZ


def _functional_risk(problem: Problem, params: Vectors) -> Tensor:
    """The risk as a function of the trained parameters.

    `functional_call` keeps ties, buffers and frozen tensors.
    """
    losses, zero = [], 0 * torch.stack([p.sum() for p in params.values()]).sum()
    for weight, (inputs, targets) in zip(problem.weights, problem.batches, strict=True):
        args = (
            inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        )
        kwargs = inputs if isinstance(inputs, dict) else {}
        # Targets with a tangent, if zero: without one, mse_loss has no forward-over-reverse
        # derivative.
        known = tree_map(
            lambda y: y + zero if isinstance(y, Tensor) and y.is_floating_point() else y, targets
        )
        losses.append(
            weight * problem.loss_fn(functional_call(problem.model, params, args, kwargs), known)
        )
    return torch.stack(losses).sum()


# --- without noise, or with less of it ------------------------------------------------------------
def exact(problem: Problem, *, num_probes: int, generator: torch.Generator) -> dict[str, float]:
    """The diagonal of the dense Hessian, row by row: no noise, no probes and no standard error."""
    diagonal = _dense(problem).diagonal()
    return {
        block: float(diagonal[index].sum(dtype=torch.float64))
        for block, index in problem.index.items()
    }


def _dense(problem: Problem) -> Tensor:
    """The Hessian in the dtype of the model, all columns at once."""
    like = next(iter(problem.params.values()))
    return _columns(problem, torch.eye(problem.num_params, dtype=like.dtype, device=like.device))


def sketched(problem: Problem, *, num_probes: int, generator: torch.Generator) -> dict[str, float]:
    """Hutch++ (Meyer, Musco, Musco and Woodruff 2021) read block by block.

    tr P_l QQᵀH exactly, the rest by probes. A third of the products makes the sketch, a third its
    image, a third the rest. There are no standard errors. Fewer than three probes leave no sketch.
    """
    third = min(num_probes // 3, problem.num_params)
    Z = Rademacher().sample(problem.num_params, num_probes - 2 * third, generator).to(problem.dtype)
    of_parameter = torch.zeros_like(Z[:, 0])
    rest = Z
    if third:
        S = Rademacher().sample(problem.num_params, third, generator).to(problem.dtype)
        Q = torch.linalg.qr(_columns(problem, S)).Q
        of_parameter = (Q * _columns(problem, Q)).sum(1)  # the diagonal of QQᵀH
        rest = Z - Q @ (Q.mT @ Z)
    # z_lᵀ(H(I − QQᵀ)z)_l has the mean tr P_l H(I − QQᵀ).
    of_parameter = of_parameter + (Z * _columns(problem, rest)).mean(1)
    return {
        block: float(of_parameter[index].sum(dtype=torch.float64))
        for block, index in problem.index.items()
    }


def _columns(problem: Problem, V: Float[Tensor, "params columns"]) -> Tensor:
    """H V."""
    rows = _products(problem, cut(problem, V)).values()
    return torch.cat([row.reshape(len(row), -1) for row in rows], dim=1).mT


# --- the library's own ----------------------------------------------------------------------------
def layerwise(
    problem: Problem, *, num_probes: int, generator: torch.Generator, probes: Tensor | None = None
) -> Estimate:
    """`LayerwiseTrace` as a black box."""
    return LayerwiseTrace(num_probes)(problem, generator, probes=probes)


def library_block_separated(
    problem: Problem, *, num_probes: int, generator: torch.Generator
) -> Estimate:
    """`BlockSeparatedTrace` as a black box."""
    return BlockSeparatedTrace(num_probes)(problem, generator)


RIGHT: dict[str, Callable[..., Any]] = {
    "signs_kept_graph": signs_kept_graph,
    "normals": FreshGraph(Gaussian()),
    "sphere": FreshGraph(Sphere()),
    "sparse_signs": FreshGraph(SparseSigns(0.5)),
    "block_separated": block_separated,
    "signs_all_at_once": signs_all_at_once,
    "probe_for_each_batch": probe_for_each_batch,
    "total_only": total_only,
    "given_or_drawn": given_or_drawn,
    "forward_over_reverse": forward_over_reverse,
    "exact": exact,
    "sketched": sketched,
    "layerwise": layerwise,
    "library_block_separated": library_block_separated,
}
