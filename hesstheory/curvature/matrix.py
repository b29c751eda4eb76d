"""What is the matrix? Operators for the Hessian, the Gauss-Newton matrix and their difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Real
from torch import Tensor

from hesstheory.autograd.graph import differentiating
from hesstheory.autograd.products import fits_one_chunk
from hesstheory.curvature import sums
from hesstheory.curvature.limits import (
    check_dense_fits,
    check_finite,
    check_problem,
    checked_columns,
)
from hesstheory.curvature.linearised import (
    Push,
    linearised_ggn,
    linearised_hessian,
    linearised_residual,
)
from hesstheory.problem.risk import Problem

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curvature:
    """A symmetric P×P matrix C = Σ_i c_i M_i of a problem, known through its products.

    `C @ V` takes a vector or a P×K matrix in the dtype and on the device of the model. `A - B`
    and `A + B` need the same Problem object. Dense matrices (`to_dense`, `block`, `block_norms`)
    are float64 for every model. Rows and columns are in the order of `problem.params`.

    Parameters
    ----------
    problem
        The risk.
    terms
        Pairs of c_i and what linearises a batch for M_i, as `hessian` and `ggn` write them.

    Raises
    ------
    ValueError
        From any product: wrong shape, dtype or device, or a result that is not finite.
    MemoryError
        From any dense matrix that does not fit, with its bytes.
    NotTwiceDifferentiable
        From any product: an operation has no second derivative.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Problem, ggn, hessian
    >>> with torch.random.fork_rng():  # a fresh layer draws its weights
    ...     model = nn.Linear(2, 1, bias=False)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> problem = Problem(model, half_square, [(torch.eye(2), torch.ones(2, 1))])
    >>> H = hessian(problem)
    >>> H.to_dense().tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    >>> (H @ torch.tensor([1.0, 4.0])).tolist()
    [0.5, 2.0]
    >>> (H - ggn(problem)).to_dense().tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """

    problem: Problem
    terms: sums.Terms

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return (self.problem.num_params, self.problem.num_params)

    def __repr__(self) -> str:
        return f"Curvature({_in_words(self.terms)}, {self.problem!r})"

    def __sub__(self, other: Curvature) -> Curvature:
        return self + Curvature(other.problem, tuple((-c, term) for c, term in other.terms))

    def __add__(self, other: Curvature) -> Curvature:
        if other.problem is not self.problem:
            raise ValueError(
                "the two matrices belong to different problems: "
                "build both from the same Problem object"
            )
        return Curvature(self.problem, self.terms + other.terms)

    def __matmul__(self, V: Float[Tensor, " params"] | Float[Tensor, "params columns"]) -> Tensor:
        """Product with one vector or with many columns; one graph per batch serves all columns."""
        columns = checked_columns(self.problem, V, copies=2)
        out = sums.products(self.problem, self.terms, columns)
        check_finite(out)
        return out[0] if V.ndim == 1 else out.mT

    def quadratic_forms(self, Z: Real[Tensor, "params probes"]) -> Float[Tensor, "probes blocks"]:
        """Forms q_l = z_lᵀ(Cz)_l of every probe and block, in float64; signs may come as int8."""
        return self._forms(Z, [range(len(self.problem.params))])

    def separated_forms(self, Z: Real[Tensor, "params probes"]) -> Float[Tensor, "probes blocks"]:
        """Forms q_l = z_lᵀ C_ll z_l of every probe and block, one product for each block."""
        return self._forms(Z, [self._numbers(block) for block in self.problem.partition.blocks])

    @differentiating()
    def to_dense(self) -> Float[Tensor, "params params"]:
        """The matrix itself in float64."""
        problem = self.problem
        check_dense_fits(problem.num_params, problem.device)
        if problem.dtype != torch.float64:
            return Curvature(problem.double(), self.terms).to_dense()
        dense = next(iter(problem.params.values())).new_zeros(self.shape)
        everything = range(len(problem.params))
        if fits_one_chunk(problem.num_params):
            # Few parameters: one chunk costs less than what symmetry saves.
            sums.add_rows(problem, self.terms, dense, everything, everything)
        else:
            for i, (start, stop) in enumerate(problem.offsets.values()):
                # By symmetry the rows of tensor i need the columns from i on alone.
                upper = dense[start:stop, start:]
                sums.add_rows(problem, self.terms, upper, [i], everything[i:])
                dense[stop:, start:stop] = dense[start:stop, stop:].mT
        check_finite(dense)
        return dense

    @differentiating()
    def block(self, l: str, m: str) -> Float[Tensor, "block_l block_m"]:
        """The block C_lm in float64, from as many products as the smaller block has parameters."""
        problem = self.problem
        of_l = self._numbers(l)
        of_m = self._numbers(m)
        if problem.dtype != torch.float64:
            return Curvature(problem.double(), self.terms).block(l, m)
        num_rows = len(problem.index[l])
        num_columns = len(problem.index[m])
        if num_rows > num_columns:  # symmetric
            return self.block(m, l).mT
        check_dense_fits(int((num_rows * num_columns) ** 0.5) + 1, problem.device)
        zeros = next(iter(problem.params.values())).new_zeros(num_rows, num_columns)
        block = sums.add_rows(problem, self.terms, zeros, of_l, of_m)
        check_finite(block)
        return block

    def block_norms(self) -> pd.DataFrame:
        """Frobenius norms ‖C_lm‖ as a labelled L×L table, from the dense matrix."""
        import pandas as pd

        of_block = sums.membership_of_parameters(self.problem)
        norms = (of_block.mT @ self.to_dense().cpu().square() @ of_block).sqrt()
        names = list(self.problem.partition.blocks)
        return pd.DataFrame(norms.numpy(), index=names, columns=names)

    def trace_by_block(self) -> pd.Series[float]:
        """Exact traces tr C_ll by block, from the dense diagonal blocks."""
        import pandas as pd

        blocks = self.problem.partition.blocks
        return pd.Series({name: float(self.block(name, name).trace()) for name in blocks})

    def pushes(self) -> Iterator[tuple[float, Push]]:
        """Weighted linearisations, one batch and term at a time, so that one graph is alive."""
        return sums.pushes(self.problem, self.terms)

    def _forms(self, Z: Tensor, parts: list[range] | list[list[int]]) -> Tensor:
        """Forms by block, once the probes are found fit."""
        columns = checked_columns(self.problem, Z, (self.problem.dtype, torch.int8))
        found = sums.forms(self.problem, self.terms, columns, parts)
        check_finite(found)
        return found

    def _numbers(self, block: str) -> list[int]:
        """Numbers of the tensors of a block among all parameters."""
        order = list(self.problem.params)
        return [order.index(name) for name in self.problem.tensors_of(block)]


# What the options `matrix=` take: `hessian`, `ggn`, `residual`, or a function like them.
MatrixOf = Callable[[Problem], Curvature]


def _in_words(terms: sums.Terms) -> str:
    """A sum of matrices, such as "+1·hessian -1·ggn"."""
    return " ".join(
        f"{coefficient:+g}·{getattr(term, '__name__', str(term)).removeprefix('linearised_')}"
        for coefficient, term in terms
    )


def hessian(problem: Problem) -> Curvature:
    """The Hessian H = ∇²R(θ) of the risk.

    Parameters
    ----------
    problem
        The risk R.

    Returns
    -------
    Curvature
        H (P × P), which nothing is computed of before a product is asked for.

    Examples
    --------
    The risk θ⁴/2 at θ = 1 has the second derivative 6.

    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Problem, hessian
    >>> class Square(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.theta = nn.Parameter(torch.ones(1))
    ...     def forward(self, x):
    ...         return self.theta**2 * x
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> problem = Problem(Square(), half_square, [(torch.ones(1, 1), torch.zeros(1, 1))])
    >>> hessian(problem).to_dense().item()
    6.0
    """
    check_problem(problem)
    return Curvature(problem, ((1.0, linearised_hessian),))


def ggn(problem: Problem) -> Curvature:
    """The generalised Gauss-Newton matrix G = (1/N) Σ_n J_nᵀ (∇²_f ℓ_n) J_n.

    J_n is the Jacobian of the outputs of sample n in the parameters (Schraudolph, 2002, Neural
    Computation 14, equation 3).

    Parameters
    ----------
    problem
        The risk, whose model returns one tensor.

    Returns
    -------
    Curvature
        G (P × P).

    Raises
    ------
    TypeError
        From any product: the model returns several tensors.

    Examples
    --------
    Of the risk θ⁴/2 at θ = 1, J = 2θ = 2 and G = J² = 4.

    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Problem, ggn
    >>> class Square(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.theta = nn.Parameter(torch.ones(1))
    ...     def forward(self, x):
    ...         return self.theta**2 * x
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> problem = Problem(Square(), half_square, [(torch.ones(1, 1), torch.zeros(1, 1))])
    >>> ggn(problem).to_dense().item()
    4.0
    """
    check_problem(problem)
    return Curvature(problem, ((1.0, linearised_ggn),))


def residual(problem: Problem) -> Curvature:
    """The residual R = H − G = (1/N) Σ_n Σ_c (∂ℓ_n/∂f_nc) ∇²f_nc.

    It is the Hessian of the loss made linear in the outputs. A product costs as much as one with
    H, and less than half of one with `hessian(problem) - ggn(problem)`.

    Parameters
    ----------
    problem
        The risk, whose model returns one tensor and whose loss reads no parameter by itself.

    Returns
    -------
    Curvature
        R (P × P).

    Raises
    ------
    TypeError
        From any product: the model returns several tensors.
    ValueError
        From any product: the loss reads parameters by itself, so that H − G holds more.

    Examples
    --------
    Of the risk θ⁴/2 at θ = 1, R = 6 − 4 = 2.

    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Problem, residual
    >>> class Square(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.theta = nn.Parameter(torch.ones(1))
    ...     def forward(self, x):
    ...         return self.theta**2 * x
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> problem = Problem(Square(), half_square, [(torch.ones(1, 1), torch.zeros(1, 1))])
    >>> residual(problem).to_dense().item()
    2.0
    """
    check_problem(problem)
    return Curvature(problem, ((1.0, linearised_residual),))


def per_sample_hessians(problem: Problem) -> Float[Tensor, "samples params params"]:
    """Dense Hessians H_n of every sample, whose mean is the Hessian.

    Parameters
    ----------
    problem
        The risk over N samples.

    Returns
    -------
    Tensor
        N × P × P in float64, in the order of the batches.

    Raises
    ------
    MemoryError
        N·P² numbers do not fit; the message says the bytes.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Problem, per_sample_hessians
    >>> with torch.random.fork_rng():  # a fresh layer draws its weights
    ...     model = nn.Linear(1, 1, bias=False)
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> problem = Problem(model, half_square, [(x, torch.zeros(2, 1))])
    >>> per_sample_hessians(problem).flatten().tolist()
    [1.0, 4.0]
    """
    check_dense_fits(int(problem.num_params * problem.num_samples**0.5) + 1, problem.device)
    return torch.stack([hessian(sample).to_dense() for sample in problem.double().samples()])
