"""What lower precision does to a product."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Int8
from torch import Tensor, nn

from hesstheory.autograd.graph import NotTwiceDifferentiable
from hesstheory.evidence.checks import empirical
from hesstheory.harness.stages.matrices import matrix_of
from hesstheory.harness.stages.products import in_double
from hesstheory.harness.stages.stage import Found, Stage, vector
from hesstheory.harness.subject import Subject
from hesstheory.problem.risk import Problem


def precision(subject: Subject, before: Mapping[str, Found]) -> Stage:
    """What lower precision does to a product, beside float64."""
    z = subject.probes(range(1))
    expected = _full_form(subject, in_double(subject), z)
    scale = (
        vector(before["variance"]["layers"]["predicted_sd"]).nan_to_num()
        + vector(before["exact"]["layers"]["exact"]).abs()
    )
    errors: dict[str, float | None] = {}
    for name, way in _ways(subject):
        try:
            with way as problem:
                found = _full_form(subject, problem, z)
        except (RuntimeError, NotTwiceDifferentiable, ValueError) as error:
            errors[name] = None
            subject.say(f"{name}: {str(error).splitlines()[0]}")
            continue
        errors[name] = float(((found - expected).abs() / scale).max())
    shown = ", ".join(
        f"{name} {'not possible' if error is None else f'{error:.2g}'}"
        for name, error in errors.items()
    )
    detail = f"error of zᵀ(Hz) in the worst layer, in its size: {shown}"
    return Stage(checks=[empirical("reduced precision", detail)], found={"precision": errors})


def _full_form(subject: Subject, problem: Problem, z: Int8[Tensor, "params probes"]) -> Tensor:
    """z_lᵀ(Mz)_l of one probe."""
    return matrix_of(subject)(problem).quadratic_forms(z)[0].cpu()


def _ways(subject: Subject) -> Iterator[tuple[str, AbstractContextManager[Problem]]]:
    """The problem in the precisions that the device has."""
    problem = subject.problem
    if problem.dtype == torch.float32:
        yield "float32", nullcontext(problem)
    yield "bfloat16 autocast", _autocast(subject, torch.bfloat16)
    if subject.device.type == "cuda":
        yield "float16 autocast", _autocast(subject, torch.float16)
        if problem.dtype == torch.float32:
            yield "TF32", _tf32(problem)


@contextmanager
def _tf32(problem: Problem) -> Iterator[Problem]:
    """Products and convolutions may round to TF32; a run has it off."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield problem
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


class _Autocast(nn.Module):
    """A network under autocast, which gives its outputs in float32."""

    def __init__(self, model: nn.Module, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.kind, dtype=self.dtype):
            out: Tensor = self.model(x)
        return out.float()


@contextmanager
def _autocast(subject: Subject, dtype: torch.dtype) -> Iterator[Problem]:
    """The problem with its network under autocast; built on entry, where it may fail."""
    problem = subject.problem
    model = problem.model
    batches = list(problem.batches)
    if problem.dtype == torch.float64:
        model = copy.deepcopy(model).float()
        batches = [(x.float(), y) for x, y in problem.batches]
    with warnings.catch_warnings():
        # Its error is what this stage measures.
        warnings.filterwarnings("ignore", "the forward pass turns on autocast")
        cast = Problem(
            _Autocast(model, subject.device.type, dtype).eval(), problem.loss_fn, batches
        )
    yield cast
