"""Rows beside products: two routes to the same traces, forms and norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesstheory.curvature.matrix import ggn
from hesstheory.evidence.checks import Check
from hesstheory.harness.stages.checks import close
from hesstheory.harness.stages.exact import traces_of_samples
from hesstheory.harness.stages.matrices import full_forms, matrix_of, residual_forms, row_norms2
from hesstheory.harness.subject import Subject
from hesstheory.outputs.gram import DualGram, dual_gram


@dataclass(frozen=True)
class Rounding:
    """What rounding may do, relatively: to products and traces, and to forms of single layers."""

    of_products: float
    of_forms: float

    @classmethod
    def of(cls, subject: Subject, kinks: Mapping[str, float]) -> Rounding:
        """The tolerance that `kinks` derived; wider for forms where units are switched.

        What a switched unit does to a single layer has no bound. It must stay below the standard
        error of the estimate, 1/√K in units of one probe's.
        """
        tolerance = kinks["tolerance"]
        if not kinks["flipped"]:
            return cls(tolerance, tolerance)
        return cls(tolerance, max(tolerance, 1 / math.sqrt(subject.settings.probes)))

    @classmethod
    def strict(cls) -> Rounding:
        """Half the digits of float64, where no units are switched."""
        half = torch.finfo(torch.float64).eps ** 0.5
        return cls(half, half)


def against_rows(
    subject: Subject,
    gram: DualGram,
    found: tuple[Tensor, Tensor, tuple[Tensor, Tensor]],
    rounding: Rounding,
    where: str = "",
) -> list[Check]:
    """Sample traces, and z_lᵀ(Hz)_l beside ⟨B_l z_l, Σ_m B_m z_m⟩ + z_lᵀ(Rz)_l.

    `found` holds sample traces, forms q, and forms and norms of the residual. Errors are in units
    of the products' norms. A form may be small by chance; what rounding does to a product goes by
    ‖(Hz)_l‖ ≤ ‖(Gz)_l‖ + ‖(Rz)_l‖.
    """
    traces, q, (residuals, residual_norms) = found
    of_samples = gram.sample_traces.mT.cpu()
    trace = of_samples.mean(0)
    wrong = traces - of_samples
    # Of the mean, and of the samples together: rounding in one of them goes by the size of all.
    errors = torch.stack([wrong.mean(0), wrong.norm(dim=0)])
    sizes = torch.stack([trace.abs(), of_samples.norm(dim=0)])
    forms = gram.forms().cpu()[: len(q)]
    norms = gram.squared_product_norms().cpu()[: len(q)].sqrt()
    scale = trace.abs() + norms + residual_norms
    name = "H = G + R, probe by probe" if subject.piecewise_linear else "G by rows, probe by probe"
    some = len(of_samples)
    all_samples = subject.problem.num_samples
    # In float64 two samples are the whole problem, and the name says where.
    of = f", of {some} of {all_samples} samples" if some < all_samples else ""
    two_routes = f"exact traces by two routes{where}"
    error = q - forms - residuals
    return [
        close(two_routes, errors, sizes, subject, rounding.of_products, of),
        close(f"{name}{where}", error, scale, subject, rounding.of_forms, of),
    ]


def norms_by_rows(
    subject: Subject,
    gram: DualGram,
    squares: Tensor,
    probes: slice,
    tolerance: float,
    where: str = "",
) -> Check:
    """‖(Gz)_l‖² of products beside that of rows, for some of the probes of the Gram matrices."""
    of_rows = gram.squared_product_norms().cpu()[probes]
    scale = of_rows + gram.traces.cpu().square()
    return close(f"norms of products by rows{where}", squares - of_rows, scale, subject, tolerance)


def against_products(
    subject: Subject, numbers: Sequence[int], q: Tensor, tolerance: float
) -> Check:
    """The estimates beside z_lᵀ(Hz)_l of products of the whole batch."""
    forms = []
    norms = []
    index = subject.problem.index.values()
    for z in subject.probes(numbers).mT:
        Hz = subject.product(matrix_of(subject), z.to(subject.problem.dtype)).cpu()
        forms.append(torch.stack([z.cpu()[i].double() @ Hz[i] for i in index]))
        norms.append(torch.stack([Hz[i].norm() for i in index]))
    scale = torch.stack(forms).abs() + torch.stack(norms)
    error = q - torch.stack(forms)
    return close("estimates are forms of products", error, scale, subject, tolerance)


def in_float64(subject: Subject, Z: Tensor, numbers: Sequence[int]) -> list[Check]:
    """The same of two samples in float64, where rounding switches no units and hides nothing."""

    def work() -> list[Check]:
        few = subject.problem.double().head(2)
        gram = dual_gram(few, Z)
        traces = traces_of_samples(subject, few)
        q = full_forms(subject, matrix_of(subject), few, Z)
        residuals = residual_forms(subject, few, Z)
        strict = Rounding.strict()
        where = ", in float64"
        squares = row_norms2(subject, ggn, numbers, few, "probes")
        return [
            *against_rows(subject, gram, (traces, q, residuals), strict, where),
            norms_by_rows(subject, gram, squares, slice(None), strict.of_forms, where),
        ]

    return subject.ranks.agreed(work)
