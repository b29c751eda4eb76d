"""Claim T9: how PyTorch keeps a tie, and how it loses one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor
from torch.func import functional_call

from hesstheory import theory
from hesstheory.claims.context import TRAINED_STEPS, Context
from hesstheory.claims.registry import claim
from hesstheory.curvature.matrix import hessian
from hesstheory.evidence.checks import Check, holds
from hesstheory.evidence.exact import exact
from hesstheory.problem.risk import Problem
from hesstheory_validation.subjects import Formula
from hesstheory_validation.tied_weights import wrong as wrong_bias
from hesstheory_validation.tied_weights.claims import what_is_raised
from hesstheory_validation.tied_weights.networks import Tie, own_weight, tied_pairs, ties_of
from hesstheory_validation.ties_in_pytorch import wrong

Way = Callable[[Problem, tuple[str, str]], Tensor]


def shared_leaf(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the one nn.Parameter that both modules hold."""
    return wrong.own_blocks(
        wrong.plain_risk(problem, problem.model), [wrong.weight_of(problem.model, owners[0])]
    )


def reused_module(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Calls one module twice."""
    model = copy.deepcopy(problem.model)
    model.set_submodule(owners[1], model.get_submodule(owners[0]))
    return wrong.own_blocks(wrong.plain_risk(problem, model), list(model.parameters()))


def tied_functional_call(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Hands a copy under one name to functional_call, which ties by itself."""
    weight = wrong.weight_of(problem.model, owners[0]).detach().clone().requires_grad_()
    model = partial(functional_call, problem.model, {f"{owners[0]}.weight": weight})
    return wrong.own_blocks(wrong.plain_risk(problem, model), [weight])


def parametrised_original(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Differentiates in the original behind the parametrised weights."""
    model = wrong.with_parametrisation(problem.model, owners)
    original = model.get_parameter(f"{owners[0]}.parametrizations.weight.original")
    return wrong.own_blocks(wrong.plain_risk(problem, model), [original])


def checkpoint_without_reentry(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """Checkpoints the first module that uses the weight with use_reentrant=False."""
    model = wrong.with_checkpoint(problem.model, owners[0], use_reentrant=False)
    return wrong.own_blocks(wrong.plain_risk(problem, model), [wrong.weight_of(model, owners[1])])


def library(problem: Problem, owners: tuple[str, str]) -> Tensor:
    """The Hessian of this library."""
    w = slice(*problem.offsets[f"{owners[0]}.weight"])
    return hessian(problem).to_dense()[w, w]


KEEPERS: tuple[Way, ...] = (
    tied_functional_call,
    parametrised_original,
    checkpoint_without_reentry,
    library,
)

OWN_LEAVES: tuple[Way, ...] = (
    wrong.untied_functional_call,
    wrong.two_parameters_one_storage,
    wrong.parametrised_tensors,
)


def _pairs_of_modules(context: Context) -> list[tuple[Tie, tuple[str, str]]]:
    """Linear ties, in parallel and in series, held by two modules of these names."""
    return [(tie, ("first", "second")) for tie, _ in tied_pairs(context, 1)[:2]]


def _tied_modules(context: Context) -> list[tuple[Tie, tuple[str, str]]]:
    stages = (0,) if context.profile == "smoke" else (0, TRAINED_STEPS)
    nets = [
        (tie, ("up", "down"))
        for steps in stages
        for tie in ties_of(context.case("autoencoder", steps))
    ]
    return [*_pairs_of_modules(context), *nets]


def _keepers(context: Context) -> Sequence[Way]:
    """All but, in the smoke profile, the one whose backward pass imports torch's compiler, a second
    and a half long."""
    return [
        way
        for way in KEEPERS
        if context.profile != "smoke" or way is not checkpoint_without_reentry
    ]


@claim(
    "T9",
    "In PyTorch a tie is kept by differentiating in the shared leaf and by module reuse. It is "
    "lost by named_parameters(remove_duplicate=False), functional_call(tie_weights=False), one "
    "storage in two nn.Parameters, differentiating in a parametrised tensor, allow_unused=True "
    "on a parametrised weight, and reentrant checkpointing.",
    formula=r"\nabla^2_w R=\sum_{r,s}U_{rs}",
    reason="autograd adds up the uses of a leaf; it sees neither storages nor names",
    rests_on=["T7.a"],
    subject=shared_leaf,
    mutants=[
        wrong.every_alias_counted,
        wrong.untied_functional_call,
        wrong.one_alias_untied,
        wrong.two_parameters_one_storage,
        wrong.parametrised_tensors,
        wrong.unused_parametrised_tensors,
        wrong.reentrant_checkpoint,
        wrong.hessian_just_outside_rounding,
    ],
)
def pytorch_keeps_a_tie(way: Way, context: Context) -> Iterator[Check]:
    """Ways that keep the tie, on linear ties and on an autoencoder."""
    for tie, owners in _tied_modules(context):
        yield _gives(f"{tie}: H_w = Σ_rs U_rs", way, tie, owners)
        for keeper in _keepers(context):
            yield _gives(f"{tie}: {keeper.__name__.replace('_', ' ')}", keeper, tie, owners)
    for tie, owners in _pairs_of_modules(context):
        yield _gives(f"{tie}: reused module", reused_module, tie, owners)


def _gives(name: str, way: Way, tie: Tie, owners: tuple[str, str]) -> Check:
    H_w = tie.U.sum((0, 2))
    return exact(
        name,
        way(tie.tied.problem, owners),
        H_w,
        magnitude=len(tie.U) ** 2 * tie.entry,
        terms=tie.terms(),
    )


@claim(
    "T9.a",
    "A trap that gives every use a leaf of its own loses exactly the cross-instance blocks. Its "
    "trace is off by the bias of T7. Such traps are functional_call(tie_weights=False) with "
    "every name, one storage in two nn.Parameters, and parametrised tensors under "
    "parametrize.cached().",
    formula=r"\sum_r\operatorname{tr}U_{rr}-\operatorname{tr}H_w=-\sum_{r\neq "
    r"s}\operatorname{tr}U_{rs}",
    reason="∂²R/∂w_r² with the other uses held fast is U_rr",
    rests_on=["T7"],
    subject=theory.tied_bias,
    mutants=[
        wrong_bias.tied_bias_reversed,
        wrong_bias.tied_bias_pairs_once,
        wrong_bias.tied_bias_none,
        wrong_bias.tied_bias_just_outside_rounding,
    ],
)
def a_leaf_per_use_has_the_bias_of_separate_probes(
    formula: Formula, context: Context
) -> Iterator[Check]:
    """Traps that give each use a leaf, and what they lose."""
    for tie, owners in _tied_modules(context):
        own = sum(tie.U[r, :, r, :] for r in range(len(tie.U)))
        for trap in OWN_LEAVES:
            found = trap(tie.tied.problem, owners)
            name = f"{tie}: {trap.__name__.replace('_', ' ')}"
            yield exact(
                f"{name}, Σ_r U_rr", found, own, magnitude=len(tie.U) * tie.entry, terms=tie.terms()
            )
            yield exact(
                f"{name}, trace",
                float(found.trace() - tie.H_w.trace()),
                float(formula(tie.U)),
                magnitude=tie.form,
                terms=tie.terms(),
            )


OTHER_TRAPS: dict[str, Way] = {
    "aliases": wrong.every_alias_counted,
    "one alias": wrong.one_alias_untied,
    "unused": wrong.unused_parametrised_tensors,
    "reentrant": wrong.reentrant_checkpoint,
}


def what_traps_keep(U: Tensor) -> dict[str, Tensor]:
    """What the other traps give for two uses: twice the truth, one use, nothing, and the use
    outside the checkpoint."""
    return {
        "aliases": 2 * U.sum((0, 2)),
        "one alias": U[0, :, 0, :],
        "unused": 0 * U[0, :, 0, :],
        "reentrant": U[1, :, 1, :],
    }


@claim(
    "T9.b",
    "The other traps lose more or less than that. Listing both names in plain autograd counts "
    "H_w twice. One name under functional_call(tie_weights=False) leaves the other use a "
    "constant. allow_unused=True turns a parametrised weight into a silent zero. A reentrant "
    "checkpoint hides the uses inside it. PyTorch refuses only some of them.",
    formula=r"T\,H_w,\quad U_{11},\quad 0,\quad U_{22}",
    reason="what autograd reaches from the leaf that is handed to it",
    rests_on=["T7.a"],
    subject=what_traps_keep,
    mutants=[wrong.all_traps_alike, wrong.traps_harmless, wrong.traps_at_the_other_instance],
)
def the_other_traps(
    kept: Callable[[Tensor], dict[str, Tensor]], context: Context
) -> Iterator[Check]:
    """What each of the other traps keeps, and what PyTorch refuses."""
    for tie, owners in _tied_modules(context):
        for name, expected in kept(tie.U).items():
            found = OTHER_TRAPS[name](tie.tied.problem, owners)
            yield exact(
                f"{tie}: {name}",
                found,
                expected,
                magnitude=2 * len(tie.U) ** 2 * tie.entry,
                terms=tie.terms(),
            )
    _, (series, owners) = _pairs_of_modules(context)
    for name, act in _refused(series.tied.problem, owners).items():
        refusal = what_is_raised(act)
        yield holds(f"refused: {name}", bool(refusal), refusal or "nothing is raised")


def _refused(problem: Problem, owners: tuple[str, str]) -> dict[str, Callable[[], object]]:
    """Losses of a tie that raise instead of giving a number."""
    model = problem.model
    two = {f"{owner}.weight": wrong.weight_of(model, owner).detach().clone() for owner in owners}
    parametrised = wrong.with_parametrisation(model, owners)
    inner = wrong.with_checkpoint(model, owners[1], use_reentrant=True)
    wrapped = own_weight(model, owners[1])
    wrapped.get_submodule(owners[1]).weight.data = wrong.weight_of(wrapped, owners[0]).data
    return {
        "two tensors under tied names in functional_call": lambda: functional_call(
            model, two, problem.batches[0][0]
        ),
        "differentiating in a parametrised tensor that is not cached": lambda: wrong.own_blocks(
            wrong.plain_risk(problem, parametrised), [wrong.weight_of(parametrised, owners[0])]
        ),
        "a reentrant checkpoint between two uses": lambda: wrong.own_blocks(
            wrong.plain_risk(problem, inner), [wrong.weight_of(inner, owners[0])]
        ),
        "a Problem with two parameters over one storage": lambda: Problem(
            wrapped, problem.loss_fn, problem.batches
        ),
    }
