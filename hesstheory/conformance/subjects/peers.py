"""Adapters from released libraries to the contract of an estimator, through their public API alone.

Model, loss and the list of batches go in as a user of the library would pass them. A mistake of the
library is neither repaired nor hidden, and neither is what it does to the model. `num_probes` K
counts independent test vectors, each of which costs a deflating method two or three products. All
randomness comes from the generator, as its seed. Where a library draws from the global stream, a
fork of that stream is seeded and given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hesstheory.curvature.matrix import Curvature, hessian
from hesstheory.problem.risk import Problem

Answer = float | dict[str, float] | dict[str, tuple[float, float]]

Peer = Callable[..., Answer]


@dataclass(frozen=True)
class PyHessian:
    """`pyhessian.hessian(...).trace(maxIter=K, tol)`: Hutchinson with signs, the full trace only.

    The answer is the mean of what it returns. K is an upper bound: the library stops once the
    running mean moves by less than `tol`, relatively; with −∞ never. It draws from the global
    stream (forked and seeded here), puts the model into eval mode and clears its gradients. One
    batch goes in as `data`, several as `dataloader`.
    """

    tol: float = 1e-3

    def __call__(self, problem: Problem, *, num_probes: int, generator: torch.Generator) -> float:
        pyhessian = _library("pyhessian")
        one, *more = problem.batches
        data = {"dataloader": list(problem.batches)} if more else {"data": one}
        with _global_stream(problem, generator):
            operator = pyhessian.hessian(
                problem.model, problem.loss_fn, cuda=problem.device.type == "cuda", **data
            )
            samples = operator.trace(maxIter=num_probes, tol=self.tol)
        return float(sum(samples) / len(samples))


@dataclass(frozen=True)
class Curvlinops:
    """A trace function of curvlinops on a `HessianLinearOperator` per block: traces, no errors.

    The library wants fewer products than a block has parameters: K is split into calls, which are
    averaged. A block that is too small for one test vector is traced exactly, as the library
    advises. It draws from the global stream (forked and seeded here). `products` is what one test
    vector costs the function.
    """

    function: str = "hutchinson_trace"
    products: int = 1

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator
    ) -> dict[str, float]:
        curvlinops = _library("curvlinops")
        estimate, loss, answer = getattr(curvlinops, self.function), _MeanLoss(problem.loss_fn), {}
        with _global_stream(problem, generator):
            for block, tensors in problem.partition.blocks.items():
                params = [problem.params[name] for name in tensors]
                operator = curvlinops.HessianLinearOperator(
                    problem.model, loss, params, list(problem.batches)
                )
                size = operator.shape[0]
                if size <= self.products:
                    identity = torch.eye(size, dtype=problem.dtype, device=problem.device)
                    answer[block] = float((operator @ identity).trace())
                    continue
                calls = _calls(num_probes, size, self.products)
                answer[block] = (
                    sum(n * float(estimate(operator, n * self.products)) for n in calls)
                    / num_probes
                )
        return answer


@dataclass(frozen=True)
class HessianEigenthings:
    """`hessian_eigenthings.trace(..., method, seed)` on a `HessianOperator` per block, with errors.

    `param_filter` cuts out a block; every block gets a seed of its own. `products` is what one test
    vector costs.
    """

    method: str = "hutchinson"
    products: int = 1

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator
    ) -> dict[str, tuple[float, float]]:
        eigenthings = _library("hessian_eigenthings")
        loss, num_matvecs, answer = (
            eigenthings.supervised_loss(problem.loss_fn),
            self.products * num_probes,
            {},
        )
        for block, tensors in problem.partition.blocks.items():
            operator = eigenthings.HessianOperator(
                problem.model,
                list(problem.batches),
                loss,
                param_filter=lambda name, _, names=tensors: name in names,
            )
            trace = eigenthings.trace(
                operator, num_matvecs=num_matvecs, method=self.method, seed=_seed(generator)
            )
            answer[block] = (float(trace.estimate), float(trace.stderr))
        return answer


@dataclass(frozen=True)
class SkerchHutch:
    """`skerch.algorithms.hutch`: block traces as sums over its estimate of the diagonal, no errors.

    `deflate` makes it Hutch++: the basis Q of a sketch of K products goes in, and diag(QQᵀH), which
    the function leaves to its caller, is added. The library has no Hessian: the products are
    `hesstheory.hessian(problem)`, so only what skerch makes of them is under check.
    """

    noise: str = "rademacher"
    deflate: bool = False

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator
    ) -> dict[str, float]:
        skerch, matrix = _library("skerch.algorithms"), _TwoSided(hessian(problem))
        dtype, device = problem.dtype, problem.device
        diagonal = torch.zeros(problem.num_params, dtype=dtype, device=device)
        for n in _calls(num_probes, problem.num_params, 3) if self.deflate else (num_probes,):
            Q, share = None, n / num_probes
            if self.deflate:
                mop = skerch.SketchedAlgorithmDispatcher.mop
                noise = mop(
                    self.noise, (problem.num_params, n), _seed(generator), dtype, blocksize=n
                )
                Q = _library("skerch.utils").qr(matrix @ noise.to_matrix(dtype, device))
                diagonal += share * (Q.mT * (Q.mT @ matrix)).sum(0)
            diagonal += (
                share
                * skerch.hutch(matrix, device, dtype, n, _seed(generator), self.noise, defl_Q=Q)[
                    "diag"
                ]
            )
        return _sums(problem, diagonal)


@dataclass(frozen=True)
class SkerchXhutchpp:
    """`skerch.algorithms.xhutchpp(x_dims=K)`: block traces from its diagonal, no errors.

    It is XTrace, and with `extra` it takes K further plain test vectors (`gh_meas=K`). The library
    warns that Gaussian noise "can be unstable". Products as in `SkerchHutch`; calls of fewer
    products than there are parameters.
    """

    noise: str = "rademacher"
    extra: bool = False

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator
    ) -> dict[str, float]:
        skerch, matrix = _library("skerch.algorithms"), _TwoSided(hessian(problem))
        dtype, device = problem.dtype, problem.device
        diagonal = torch.zeros(problem.num_params, dtype=dtype, device=device)
        for n in _calls(num_probes, problem.num_params, 3 if self.extra else 2):
            extra = n if self.extra else 0
            result = skerch.xhutchpp(matrix, device, dtype, n, extra, _seed(generator), self.noise)
            diagonal += n / num_probes * result["diag"]
        return _sums(problem, diagonal)


PEERS: dict[str, Peer] = {
    "pyhessian": PyHessian(),
    "pyhessian.all_probes": PyHessian(tol=-float("inf")),
    "curvlinops.hutchinson": Curvlinops(),
    "curvlinops.hutchpp": Curvlinops("hutchpp_trace", products=3),
    "curvlinops.xtrace": Curvlinops("xtrace", products=2),
    "hessian-eigenthings": HessianEigenthings(),
    "hessian-eigenthings.hutchpp": HessianEigenthings("hutch++", products=3),
    "skerch.hutch": SkerchHutch(),
    "skerch.hutchpp": SkerchHutch(deflate=True),
    "skerch.xtrace": SkerchXhutchpp(),
    "skerch.xhutchpp": SkerchXhutchpp(extra=True),
    "skerch.xhutchpp.gaussian": SkerchXhutchpp("gaussian", extra=True),
}

_DISTRIBUTIONS = ("pyhessian", "curvlinops-for-pytorch", "hessian-eigenthings", "skerch")


def installed() -> dict[str, str]:
    """Versions of the peer libraries that are installed, by the name of the distribution."""
    versions = {}
    for distribution in _DISTRIBUTIONS:
        try:
            versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return versions


def distribution_of(peer: str) -> str:
    """Name of the distribution that a peer is an adapter of."""
    library = peer.partition(".")[0]
    return next(
        distribution
        for distribution in _DISTRIBUTIONS
        if f"{distribution}-".startswith(f"{library}-")
    )


# --- what the adapters share ----------------------------------------------------------------------
def _library(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{module} cannot be imported ({error}): pip install "hesstheory[peers]"'
        ) from error


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


@contextmanager
def _global_stream(problem: Problem, generator: torch.Generator) -> Iterator[None]:
    """The global stream of the model's device, forked, seeded and given back."""
    devices = [problem.device] if problem.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        seed = _seed(generator)
        for stream in [
            torch.default_generator,
            *(torch.cuda.default_generators[d.index] for d in devices),
        ]:
            stream.manual_seed(seed)
        yield


def _calls(num_probes: int, num_params: int, products: int) -> list[int]:
    """Test vectors of every call, as equal as can be, each of fewer products than parameters."""
    most = max((num_params - 1) // products, 1)
    calls = -(-num_probes // most)
    return [(num_probes + i) // calls for i in range(calls)]


def _sums(problem: Problem, diagonal: Float[Tensor, " params"]) -> dict[str, float]:
    return {block: float(diagonal.cpu()[index].sum()) for block, index in problem.index.items()}


class _MeanLoss(nn.Module):
    """A loss as curvlinops wants it: a module that says that it is the mean over a batch."""

    reduction = "mean"

    def __init__(self, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss_fn(outputs, targets)


class _TwoSided:
    """A symmetric matrix as skerch wants it: with products from both sides."""

    def __init__(self, matrix: Curvature) -> None:
        self.matrix, self.shape = matrix, matrix.shape

    def __matmul__(self, V: Float[Tensor, "params columns"]) -> Tensor:
        return self.matrix @ V

    def __rmatmul__(self, V: Float[Tensor, "rows params"]) -> Tensor:
        return (self.matrix @ V.mT).mT
