"""What an estimator is, and how strictly its answer is read."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import os
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesstheory.estimators.deflated import HutchPP, XTrace
from hesstheory.estimators.from_outputs import ControlVariateTrace, LogitProbeTrace
from hesstheory.problem.risk import Problem
from hesstheory.results.estimate import Estimate

Estimator = Callable[..., Any]

TOTAL = "total"


class Misuse(ValueError):
    """The suite cannot start: the message says what to change."""


class IllegalAnswer(ValueError):
    """The estimator returned something that the contract does not know: the message says what and what to return."""


@dataclass(frozen=True)
class Answer:
    """One estimate: a value and perhaps a standard error for every block, or for the total alone."""

    values: Mapping[str, float]
    stderr: Mapping[str, float] | None
    samples: np.ndarray | None = field(default=None, repr=False)

    @property
    def is_total(self) -> bool:
        return set(self.values) == {TOTAL}

    @property
    def total(self) -> float:
        return float(sum(self.values.values()))


def as_estimator(found: Any) -> Estimator:
    """A callable (problem, *, num_probes, generator); estimators of this library are wrapped. Raises Misuse."""
    if not callable(found):
        raise Misuse(
            f"{found!r} cannot be called: name a function estimator(problem, *, num_probes, generator)"
        )
    if any(
        is_lazy(found) for is_lazy in (inspect.isgeneratorfunction, inspect.iscoroutinefunction)
    ):
        raise Misuse(
            f"{_name(found)} is a generator or a coroutine: let it return the traces, without yield or async"
        )
    if accepts(found, "num_probes", "generator"):
        return found  # type: ignore[no-any-return]
    if inspect.isclass(found):
        return as_estimator(_built(found))
    if (
        any(f.name == "num_probes" for f in dataclasses.fields(found))
        if dataclasses.is_dataclass(found)
        else False
    ):
        return (
            ConfiguredWithProbes(found)
            if accepts(found, "generator", "probes")
            else Configured(found)
        )
    raise Misuse(f"{_name(found)}{inspect.signature(found)} {_misfit(found)}")


def _misfit(found: Any) -> str:
    """What keeps a signature from (problem, *, num_probes, generator), and the cure."""
    parameters = list(inspect.signature(found).parameters.values())
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    surplus = [p.name for p in needed[1:] if p.name not in ("num_probes", "generator")]
    contract = "the suite calls estimator(problem, *, num_probes, generator)"
    if needed and needed[0].name == "self":
        return f"is a method without its instance, {contract}: name an instance's, such as module:instance.method"
    if accepts(found, "num_probes", "generator", *surplus):
        return f"needs {' and '.join(surplus)}, which nobody passes, {contract}: give a default, or bind a value"
    return (
        f"does not fit, {contract}: add the keywords num_probes (how many probes to use) and generator (a "
        "torch.Generator to draw them from)"
    )


def _built(cls: type) -> Any:
    try:
        return cls()
    except Exception as error:
        raise Misuse(f"{cls.__name__}() {raised(error)}; name an instance or a function") from error


def _name(found: Any) -> str:
    return str(getattr(found, "__name__", type(found).__name__))


def accepts(estimator: Any, *keywords: str) -> bool:
    """Whether estimator(problem, **keywords) fits its signature."""
    try:
        inspect.signature(estimator).bind(None, **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:  # no signature: written in C
        return True
    return True


_OURS = (f"{Path(__file__).parents[1]}{os.sep}", f"{Path(torch.__file__).parent}{os.sep}", "<")

_INSTALLED = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))


def raised(error: BaseException) -> str:
    """An exception in one line, with the place in the user's code where it arose: the last that nobody installed."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OURS)
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)] or frames
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"raises {type(error).__name__} ({(str(error).splitlines() or [''])[0][:300]}){where}"


@dataclass(frozen=True)
class Configured:
    """An estimator that holds its number of probes, asked through the contract."""

    inner: Any

    @property
    def probe(self) -> Any:
        """The distribution that decides the variance, None where the estimator does more than average forms of H."""
        more = (ControlVariateTrace, HutchPP, LogitProbeTrace, XTrace)
        return None if isinstance(self.inner, more) else getattr(self.inner, "probe", None)

    def __call__(self, problem: Problem, *, num_probes: int, generator: torch.Generator) -> Any:
        answer = dataclasses.replace(self.inner, num_probes=num_probes)(problem, generator)
        return answer.value if isinstance(self.inner, XTrace) else answer  # which claims no error


@dataclass(frozen=True)
class ConfiguredWithProbes:
    """The same for one that also takes `probes=`."""

    inner: Any

    @property
    def probe(self) -> Any:
        return Configured(self.inner).probe

    def __call__(
        self, problem: Problem, *, num_probes: int, generator: torch.Generator, probes: Any = None
    ) -> Any:
        return dataclasses.replace(self.inner, num_probes=num_probes)(
            problem, generator, probes=probes
        )


def ask(
    estimator: Estimator,
    problem: Problem,
    num_probes: int,
    generator: torch.Generator,
    probes: Any = None,
) -> Answer:
    """One estimate, read strictly. Raises IllegalAnswer; what the estimator raises goes through."""
    given = {} if probes is None else {"probes": probes}
    answer = estimator(problem, num_probes=num_probes, generator=generator, **given)
    return read(answer, problem, num_probes)


def read(answer: Any, problem: Problem, num_probes: int) -> Answer:
    """The answer in one form, or IllegalAnswer."""
    if answer is None:
        raise IllegalAnswer(
            "the answer is None: is `return` missing? Return a float, or {block: trace}"
        )
    samples = getattr(answer, "samples", None)
    if not hasattr(answer, "value") and hasattr(answer, "to_dict"):  # a pandas Series by block
        answer = answer.to_dict()
    if isinstance(answer, Estimate) or (
        hasattr(answer, "value") and not isinstance(answer, Mapping)
    ):
        values, errors = _mapping(answer.value), getattr(answer, "stderr", None)
        stderr = None if errors is None else _mapping(errors)
    elif isinstance(answer, Mapping):
        pairs = {block: _pair(entry) for block, entry in answer.items()}
        values = {block: value for block, (value, _) in pairs.items()}
        with_error = {block: error for block, (_, error) in pairs.items() if error is not None}
        if with_error and len(with_error) < len(pairs):
            missing = [block for block in pairs if block not in with_error]
            raise IllegalAnswer(
                f"only some blocks have a standard error, {missing[0]!r} has none: give all or none"
            )
        stderr = with_error or None
    else:
        values, stderr = {TOTAL: answer}, None
    numbers_ = {
        str(block): _number(value, f"the trace of {block!r}") for block, value in values.items()
    }
    if set(numbers_) != {TOTAL} or TOTAL in problem.partition.blocks:
        _check_blocks(numbers_, problem)
    return Answer(
        numbers_,
        _errors(stderr, numbers_, num_probes),
        None if samples is None else np.asarray(samples, float),
    )


def _mapping(values: Any) -> Mapping[Any, Any]:
    if isinstance(values, Mapping):
        return values
    if hasattr(values, "to_dict"):
        return values.to_dict()  # type: ignore[no-any-return]
    return {TOTAL: values}


def _pair(entry: Any) -> tuple[Any, Any]:
    if isinstance(entry, tuple | list):
        if len(entry) != 2:
            raise IllegalAnswer(
                f"a block has {len(entry)} numbers: return a trace, or a pair (trace, standard error)"
            )
        return entry[0], entry[1]
    return entry, None


def _number(value: Any, what: str) -> float:
    if hasattr(value, "item") and getattr(value, "size", 1) is not None:
        try:
            value = value.item()
        except (RuntimeError, ValueError):
            raise IllegalAnswer(
                f"{what} is an array, not one number: return a float, such as tensor.item()"
            ) from None
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        raise IllegalAnswer(f"{what} is {value!r}, a {type(value).__name__}: return a float")
    if isinstance(value, complex):
        raise IllegalAnswer(f"{what} is complex, {value!r}: return a real float")
    found = float(value)  # type: ignore[arg-type]
    if not math.isfinite(found):
        raise IllegalAnswer(
            f"{what} is {found}: return a finite number; look for 0/0, or for one probe's deviation"
        )
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _check_blocks(values: Mapping[str, float], problem: Problem) -> None:
    expected = set(problem.partition.blocks)
    missing, extra = sorted(expected - set(values)), sorted(set(values) - expected)
    if missing or extra:
        parts = [
            f"{name} {blocks}" for name, blocks in (("lacks", missing), ("adds", extra)) if blocks
        ]
        raise IllegalAnswer(
            f"the answer {' and '.join(parts)}: its keys must be those of problem.partition.blocks, {sorted(expected)}"
        )


def _errors(
    stderr: Mapping[Any, Any] | None, values: Mapping[str, float], num_probes: int
) -> dict[str, float] | None:
    if stderr is None:
        return None
    errors = {str(block): value for block, value in stderr.items()}
    if set(errors) != set(values):
        raise IllegalAnswer(
            f"standard errors are for {sorted(errors)}, traces for {sorted(values)}: name the same blocks"
        )
    if num_probes == 1 and not all(
        map(_is_finite, errors.values())
    ):  # of one probe NaN is the right error
        return None
    found = {
        block: _number(value, f"the standard error of {block!r}") for block, value in errors.items()
    }
    if negative := [block for block, error in found.items() if error < 0]:
        raise IllegalAnswer(
            f"the standard error of {negative[0]!r} is {found[negative[0]]}: it must not be negative"
        )
    return found
