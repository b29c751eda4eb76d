"""What an estimator is, and how strictly its answer is read."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import SupportsFloat, cast

import numpy as np
import torch

from hesstheory.conformance.places import raised
from hesstheory.problem.risk import Problem

# What is called as estimator(problem, *, num_probes, generator); ours are no exception.
Estimator = Callable[..., object]

TOTAL = "total"
_CONTRACT = "the suite calls estimator(problem, *, num_probes, generator)"


class Misuse(ValueError):
    """The suite cannot start: the message says what to change."""


class IllegalAnswer(ValueError):
    """The estimator returned what the contract does not know; the message names the cure."""


@dataclass(frozen=True)
class Answer:
    """One estimate as the checks see it.

    Parameters
    ----------
    values
        {block: trace}, or {"total": trace} where the estimator returns one number.
    stderr
        Standard errors of the same blocks, `None` where none is claimed.
    samples
        One row per probe where the estimator shows them.
    """

    values: Mapping[str, float]
    stderr: Mapping[str, float] | None
    samples: np.ndarray | None = field(default=None, repr=False)

    @property
    def is_total(self) -> bool:
        """Whether one number was returned, for all blocks together."""
        return set(self.values) == {TOTAL}

    @property
    def total(self) -> float:
        """Sum over the blocks."""
        return float(sum(self.values.values()))


# --- what is asked --------------------------------------------------------------------------------


def as_estimator(found: object) -> Estimator:
    """The estimator itself; a class is built without arguments first, ours or a stranger's.

    Raises
    ------
    Misuse
        It cannot be called as `estimator(problem, *, num_probes, generator)`.
    """
    if not callable(found):
        raise Misuse(
            f"{found!r} cannot be called: name a function "
            "estimator(problem, *, num_probes, generator)"
        )
    if inspect.isclass(found):
        return as_estimator(_built(found))
    if inspect.isgeneratorfunction(found) or inspect.iscoroutinefunction(found):
        raise Misuse(
            f"{_name(found)} is a generator or a coroutine: let it return the traces, without "
            "yield or async"
        )
    if not accepts(found, "num_probes", "generator"):
        raise Misuse(f"{_name(found)}{inspect.signature(found)} {_misfit(found)}")
    return found


def _misfit(found: Estimator) -> str:
    """What keeps a signature from (problem, *, num_probes, generator), and the cure."""
    parameters = inspect.signature(found).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    surplus = [name for name in needed[1:] if name not in ("num_probes", "generator")]
    if needed[:1] == ["self"]:
        return (
            f"is a method without its instance, {_CONTRACT}: name an instance's, such as "
            "module:instance.method"
        )
    if accepts(found, "num_probes", "generator", *surplus):
        return (
            f"needs {' and '.join(surplus)}, which nobody passes, {_CONTRACT}: give a default, or "
            "bind a value"
        )
    return (
        f"does not fit, {_CONTRACT}: add the keywords num_probes (how many probes to use) and "
        "generator (a torch.Generator to draw them from)"
    )


def _built(cls: type) -> object:
    """An instance, made without arguments; a class that answers when it is built is kept."""
    try:
        return cls()
    except Exception as error:
        if accepts(cls, "num_probes", "generator"):
            return partial(cls)
        raise Misuse(f"{cls.__name__}() {raised(error)}; name an instance or a function") from error


def _name(found: object) -> str:
    """What a message calls it."""
    return str(getattr(found, "__name__", type(found).__name__))


def accepts(estimator: Estimator, *keywords: str) -> bool:
    """Whether estimator(problem, **keywords) fits its signature."""
    try:
        inspect.signature(estimator).bind(None, **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:  # no signature: written in C
        return True
    return True


def ask(
    estimator: Estimator,
    problem: Problem,
    num_probes: int,
    generator: torch.Generator,
    probes: torch.Tensor | None = None,
) -> Answer:
    """One estimate, read strictly.

    Raises
    ------
    IllegalAnswer
        The contract does not know what came back. What the estimator raises goes through.
    """
    given = {} if probes is None else {"probes": probes}
    answer = estimator(problem, num_probes=num_probes, generator=generator, **given)
    return read(answer, problem, num_probes)


# --- what is answered -----------------------------------------------------------------------------


def read(answer: object, problem: Problem, num_probes: int) -> Answer:
    """The answer in one form, or IllegalAnswer."""
    if answer is None:
        raise IllegalAnswer(
            "the answer is None: is `return` missing? Return a float, or {block: trace}"
        )
    found, claimed = _parts(answer)
    values = {block: _number(value, f"the trace of {block!r}") for block, value in found.items()}
    if set(values) != {TOTAL} or TOTAL in problem.partition.blocks:
        _check_blocks(values, problem)
    rows = getattr(answer, "samples", None)
    samples = None if rows is None else np.asarray(rows, float)
    # Of one probe, or of one sample made of several, nobody knows the spread: NaN says so.
    is_single = num_probes == 1 or (samples is not None and len(samples) == 1)
    return Answer(values, _errors(claimed, values, may_be_unknown=is_single), samples)


def _parts(answer: object) -> tuple[dict[str, object], dict[str, object] | None]:
    """Values, and standard errors if any, by block: of an `Estimate`, a mapping or one number."""
    is_mapping = isinstance(answer, Mapping)
    # An Estimate, ours or one like it; ours is a mapping as well.
    if hasattr(answer, "value") and (hasattr(answer, "stderr") or not is_mapping):
        errors = getattr(answer, "stderr", None)
        return _mapping(answer.value), None if errors is None else _mapping(errors)
    if not is_mapping and not hasattr(answer, "to_dict"):
        return {TOTAL: answer}, None
    pairs = {block: _pair(entry) for block, entry in _mapping(answer).items()}
    values = {block: value for block, (value, _) in pairs.items()}
    errors = {block: error for block, (_, error) in pairs.items() if error is not None}
    if errors and len(errors) < len(pairs):
        missing = [block for block in pairs if block not in errors]
        raise IllegalAnswer(
            f"only some blocks have a standard error, {missing[0]!r} has none: give all or none"
        )
    return values, errors or None


def _mapping(values: object) -> dict[str, object]:
    """A dict or a pandas Series by block; anything else is the total."""
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    if isinstance(values, Mapping):
        return {str(block): value for block, value in values.items()}
    return {TOTAL: values}


def _pair(entry: object) -> tuple[object, object]:
    """Trace and standard error of one block, the second perhaps None."""
    if not isinstance(entry, tuple | list):
        return entry, None
    if len(entry) != 2:
        raise IllegalAnswer(
            f"a block has {len(entry)} numbers: return a trace, or a pair (trace, standard error)"
        )
    return entry[0], entry[1]


def _number(value: object, what: str) -> float:
    """A finite real number, or IllegalAnswer."""
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
    found = float(cast(SupportsFloat, value))
    if not math.isfinite(found):
        raise IllegalAnswer(
            f"{what} is {found}: return a finite number; look for 0/0, or for one probe's deviation"
        )
    return found


def _check_blocks(values: Mapping[str, float], problem: Problem) -> None:
    """The blocks of an answer are those of the partition, no more and no fewer."""
    expected = set(problem.partition.blocks)
    wrong = {"lacks": sorted(expected - set(values)), "adds": sorted(set(values) - expected)}
    parts = [f"{verb} {blocks}" for verb, blocks in wrong.items() if blocks]
    if parts:
        raise IllegalAnswer(
            f"the answer {' and '.join(parts)}: its keys must be those of "
            f"problem.partition.blocks, {sorted(expected)}"
        )


def _errors(
    errors: Mapping[str, object] | None, values: Mapping[str, float], *, may_be_unknown: bool
) -> dict[str, float] | None:
    """Standard errors of the same blocks; None where none is claimed."""
    if errors is None:
        return None
    if set(errors) != set(values):
        raise IllegalAnswer(
            f"standard errors are for {sorted(errors)}, traces for {sorted(values)}: name the same "
            "blocks"
        )
    if may_be_unknown and not all(map(_is_finite, errors.values())):
        return None
    found = {b: _number(error, f"the standard error of {b!r}") for b, error in errors.items()}
    if negative := [block for block, error in found.items() if error < 0]:
        raise IllegalAnswer(
            f"the standard error of {negative[0]!r} is {found[negative[0]]}: it must not be "
            "negative"
        )
    return found


def _is_finite(value: object) -> bool:
    """Whether it is a finite real number."""
    return isinstance(value, numbers.Real) and math.isfinite(value)
