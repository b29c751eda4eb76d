"""What an estimator is asked for and given, validated once: numbers, distributions, probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hesstheory.curvature.limits import check_fits
from hesstheory.curvature.matrix import Curvature, hessian
from hesstheory.estimators.probes import Probe, Rademacher
from hesstheory.problem.risk import Problem
from hesstheory.run.memory import free_memory

# Entries of the probes held at once, 2 GiB in float64. It is the same on every machine: a group
# is one draw, and draws must not depend on the memory.
_GROUP_ELEMENTS = 2**28

# Tables of samples that are held at once: the parts that groups of probes gave, and all in one.
_SAMPLES_COPIES = 2


def check_num_probes(num_probes: object, name: str = "num_probes") -> None:
    """Raises ValueError unless it is a whole number of at least 1."""
    is_whole = isinstance(num_probes, int | np.integer) and not isinstance(num_probes, bool)
    if not is_whole or num_probes < 1:  # type: ignore[operator]
        raise ValueError(f"{name} is {num_probes!r}: pass a whole number of at least 1")


def check_choices(probe: object, matrix: object = hessian) -> None:
    """Raises TypeError unless they are a distribution and a function that makes a matrix."""
    if isinstance(probe, type):
        raise TypeError(
            f"probe is the class {probe.__name__}: pass an instance, {probe.__name__}()"
        )
    if not isinstance(probe, Probe):
        raise TypeError(
            f"probe is a {type(probe).__name__}: pass one with kurtosis and sample, such as "
            "Rademacher()"
        )
    if isinstance(matrix, Curvature) or not callable(matrix):
        raise TypeError(
            f"matrix is {matrix!r}: pass a function of a problem, hesstheory.hessian or "
            "hesstheory.ggn"
        )


def chosen_number(own: int, num_probes: int | None) -> int:
    """The number of probes of a call: that of the call, or else the estimator's own."""
    if num_probes is None:
        return own
    check_num_probes(num_probes)
    return int(num_probes)


def check_samples_fit(problem: Problem, num_probes: int, num_columns: int) -> None:
    """Raises MemoryError, before any work, where the table of samples cannot be held.

    Its entries are float64, a row per probe. They lie on the device first and come to the host.
    """
    row = _SAMPLES_COPIES * 8 * num_columns  # bytes of float64
    available = min(map(free_memory, {problem.device, torch.device("cpu")}))
    if int(num_probes) * row > available:
        raise MemoryError(
            f"the samples of {num_probes:,} probes need {int(num_probes) * row:,} bytes with all "
            f"copies and {available:,} are free: {available // row:,} probes fit; ask for fewer, "
            "or average several calls"
        )


def checked_generator(generator: object, instead: str = "") -> torch.Generator:
    """The generator; TypeError where it is none. `instead` names another way out."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"pass a torch.Generator (torch.Generator().manual_seed(...)){instead}: no global "
            "randomness"
        )
    return generator


def checked_probes(
    problem: Problem, probes: object, num_probes: int | None
) -> Float[Tensor, "params probes"]:
    """Probes from a user in the dtype and on the device of the model.

    Raises
    ------
    TypeError
        They are no tensor of real numbers.
    ValueError
        They are not P×K, not as many as `num_probes`, not finite in the model's dtype, or all 0.
    """
    if not isinstance(probes, Tensor):
        raise TypeError(
            f"probes is a {type(probes).__name__}: pass a tensor, torch.as_tensor(probes)"
        )
    if probes.is_complex():
        raise TypeError(
            f"probes is {probes.dtype}: pass real numbers, probes.real and probes.imag one by one"
        )
    if probes.ndim != 2 or len(probes) != problem.num_params or not probes.shape[1]:
        raise ValueError(
            f"probes has shape {tuple(probes.shape)}: pass a P×K tensor, P = {problem.num_params} "
            "in the order of problem.params"
        )
    if num_probes not in (None, probes.shape[1]):
        raise ValueError(
            f"num_probes is {num_probes!r} and probes has {probes.shape[1]} columns: pass one of "
            "the two"
        )
    # The model's dtype may turn a large number into infinity and a small one into 0.
    cast = probes.to(problem.dtype).to(problem.device)
    anew = f"draw them, Rademacher().sample({problem.num_params}, {probes.shape[1]}, generator)"
    if not bool(torch.isfinite(cast).all()):
        raise ValueError(
            f"probes holds NaN or infinity as {problem.dtype}: every entry must be finite; {anew}"
        )
    # A single column of zeros is a legal draw of sparse signs: without it the mean has a bias.
    if not bool(cast.any()):
        raise ValueError(
            f"probes is 0 throughout as {problem.dtype}, which gives 0 ± 0 for any network: {anew}"
        )
    return cast


def sampler(
    probe: Probe, problem: Problem, generator: torch.Generator | None
) -> Callable[[int], Tensor]:
    """Draws so many probes on the device and in the dtype of the model."""
    given = checked_generator(generator, ", or probes= where an estimator takes them")
    return lambda count: (
        probe.sample(problem.num_params, count, given).to(problem.dtype).to(problem.device)
    )


def drawn_groups(
    probe: Probe, problem: Problem, generator: torch.Generator | None, num_probes: int
) -> Iterator[Tensor]:
    """Drawn probes in groups small enough to hold, signs as int8."""
    most = max(_GROUP_ELEMENTS // problem.num_params, 1)
    counts = [min(most, num_probes - start) for start in range(0, num_probes, most)]
    # Signs take an eighth of the memory and an eighth of the time. A subclass may draw others.
    signs = probe.signs if type(probe) is Rademacher else None
    # Bytes an entry: two copies of signs, else the float64 draw, its transpose and the cast.
    check_fits(problem, counts[0], 2 if signs else 16 + problem.dtype.itemsize, "probes at a time")
    if signs is None:
        yield from map(sampler(probe, problem, generator), counts)
        return
    given = checked_generator(generator, ", or probes= where an estimator takes them")
    yield from (signs(problem.num_params, n, given).to(problem.device) for n in counts)
