"""hesstheory decides, with evidence, what is true about stochastic Hessian traces and whether their code is right.

The names below are loaded on first use, so that `import hesstheory` costs no more than the import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "problem": ("NotTwiceDifferentiable", "Partition", "Problem"),
    "curvature": ("Curvature", "ggn", "hessian", "per_sample_hessians", "residual", "unrolled_hessian"),
    "estimators": (
        "BlockSeparatedTrace",
        "Estimate",
        "Gaussian",
        "HadamardColumns",
        "HutchPP",
        "LayerwiseTrace",
        "Rademacher",
        "SparseSigns",
        "Sphere",
        "Uniform",
        "XTrace",
    ),
    "advice": ("Plan", "Ranking", "Recommendation", "rank_layers", "recommend"),
    "dual": ("DualGram", "dual_gram"),
    "logit_space": (
        "ControlVariateTrace",
        "LogitProbeTrace",
        "NotPiecewiseLinear",
        "exact_traces",
        "sample_traces",
    ),
    "loss_root": ("NotConvex",),
    "evidence": ("Check", "Verdict"),
    "claims": ("Ledger", "claim", "validate"),
    "conformance": ("CheckResult", "check_estimator"),
    "pytest_plugin": ("parametrize_with_checks",),
}
_MODULES = (
    *_ROOMS, "bench", "convolution", "execution", "figures", "frontier", "harness", "mutants", "report", "rows",
    "theory", "zoo",
)  # fmt: skip
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted([*_HOME, *_MODULES])

if TYPE_CHECKING:
    from hesstheory import (
        advice,
        bench,
        claims,
        conformance,
        convolution,
        curvature,
        dual,
        estimators,
        evidence,
        execution,
        figures,
        frontier,
        harness,
        logit_space,
        loss_root,
        mutants,
        problem,
        pytest_plugin,
        report,
        rows,
        theory,
        zoo,
    )
    from hesstheory.advice import Plan, Ranking, Recommendation, rank_layers, recommend
    from hesstheory.claims import Ledger, claim, validate
    from hesstheory.conformance import CheckResult, check_estimator
    from hesstheory.curvature import Curvature, ggn, hessian, per_sample_hessians, residual, unrolled_hessian
    from hesstheory.dual import DualGram, dual_gram
    from hesstheory.estimators import (
        BlockSeparatedTrace,
        Estimate,
        Gaussian,
        HadamardColumns,
        HutchPP,
        LayerwiseTrace,
        Rademacher,
        SparseSigns,
        Sphere,
        Uniform,
        XTrace,
    )
    from hesstheory.evidence import Check, Verdict
    from hesstheory.logit_space import (
        ControlVariateTrace,
        LogitProbeTrace,
        NotPiecewiseLinear,
        exact_traces,
        sample_traces,
    )
    from hesstheory.loss_root import NotConvex
    from hesstheory.problem import NotTwiceDifferentiable, Partition, Problem
    from hesstheory.pytest_plugin import parametrize_with_checks


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"hesstheory.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"hesstheory.{name}")
    raise AttributeError(f"module 'hesstheory' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
