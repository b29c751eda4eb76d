"""Claim T1: one full-vector product gives an unbiased trace of every diagonal block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import sympy
import torch
from scipy import special
from torch import Tensor

from hesstheory import mutants, theory, zoo
from hesstheory.claims.context import Case, Context
from hesstheory.claims.registry import claim
from hesstheory.estimators.enumerations import all_signs, hadamard_columns
from hesstheory.estimators.probes import (
    Gaussian,
    HadamardColumns,
    Probe,
    Rademacher,
    SparseSigns,
    Sphere,
    Uniform,
)
from hesstheory.estimators.products import LayerwiseTrace
from hesstheory.evidence.checks import Check
from hesstheory.evidence.exact import exact
from hesstheory.evidence.sequential import Tail, statistical
from hesstheory.evidence.symbolic import symbolic
from hesstheory.results.estimate import Estimate
from hesstheory_validation.forms import block_traces
from hesstheory_validation.magnitudes import absolute_rows, roundings
from hesstheory_validation.subjects import EstimatorClass, Row


def coordinate_probes(num_params: int) -> Tensor:
    """√P e_i, i = 1..P: E zzᵀ = I with E z ≠ 0."""
    return num_params**0.5 * torch.eye(num_params, dtype=torch.float64)


@claim(
    "T1",
    "E q_l = tr H_ll for every layer from one full-vector product Hz, for any z with E zzᵀ = I "
    "and independent of H. E z = 0 is not needed.",
    formula=r"\mathbb{E}\,z_l^{\top}(Hz)_l=\operatorname{tr}H_{ll}",
    source="[LHT]",
    reason="E z_i z_j = δ_ij makes every cross term vanish",
    subject=LayerwiseTrace,
    mutants=[
        mutants.UnweightedBatches,
        mutants.LastBatchOnly,
        mutants.GaussNewtonInstead,
        mutants.ShiftedBlocks,
        mutants.OnePercentHigh,
        mutants.JustOutsideRounding,
        mutants.ReseededPerLayer,
    ],
    seconds=3,
)
def one_product_is_unbiased(estimator: EstimatorClass, context: Context) -> Iterator[Check]:
    """Symbols, and designs of probes whose mean is exact."""
    H = theory.symmetric_symbols(5)
    z = sympy.symbols("z:5")
    q = sum(z[i] * H[i, j] * z[j] for i in range(3) for j in range(5))
    mean = sum(H[i, i] for i in range(3))
    yield symbolic("E q_l = tr H_ll", theory.expectation(q, z, {1: 0, 2: 1}), mean)
    for case in context.cases():
        P = case.problem.num_params
        designs = {
            "all Hadamard columns": hadamard_columns(P),
            "coordinate probes, E z ≠ 0": coordinate_probes(P),
        }
        if P <= 12:
            designs["all sign vectors"] = all_signs(P)
        for name, Z in designs.items():
            yield _mean_is_trace(f"{case}: {name}", estimator()(case.problem, probes=Z), case, Z)


def _mean_is_trace(name: str, estimate: Estimate, case: Case, Z: Tensor) -> Check:
    largest = float(Z.abs().max()) ** 2 / Z.shape[1] * max(1, int((Z[0] != 0).sum()))
    return exact(
        name,
        estimate.value,
        block_traces(case),
        magnitude=largest * absolute_rows(case),
        terms=roundings(case, Z.shape[1]),
    )


@claim(
    "T1.a",
    "Independence across layers is needed: a probe re-seeded for every layer adds the traces of "
    "the cross blocks.",
    formula=r"\mathbb{E}\,q_l=\operatorname{tr}H_{ll}+\sum_{m\ne "
    r"l}\sum_{i\le\min(P_l,P_m)}(H_{lm})_{ii}",
    reason="layers that share signs have E z_l z_mᵀ = I on their common part, not 0",
    subject=mutants.ReseededPerLayer,
    mutants=[LayerwiseTrace, mutants.LastBatchOnly],
)
def reseeding_per_layer_adds_cross_traces(
    estimator: EstimatorClass, context: Context
) -> Iterator[Check]:
    """All Hadamard columns on every network."""
    for case in context.cases():
        Z = hadamard_columns(case.problem.num_params)
        biased = [
            sum(case.block(l, m)[: len(i), : len(i)].diagonal().sum() for m in case.problem.index)
            for l, i in case.problem.index.items()
        ]
        yield exact(
            f"{case}: mean over all Hadamard columns",
            estimator()(case.problem, probes=Z).value,
            torch.stack(biased),
            magnitude=absolute_rows(case),
            terms=roundings(case, Z.shape[1]),
        )


NUM_DRAWN_NETWORKS = len(zoo.SMALL)


@claim(
    "T1.c",
    "The estimates that a user gets, from probes drawn at random, centre on the exact traces.",
    formula=r"\mathbb{E}\,\bar q_l=\operatorname{tr}H_{ll}",
    source="[LHT]",
    reason="T1 for the drawn probes of T1.b",
    rests_on=["T1", "T1.b", "E1", "E2"],
    subject=LayerwiseTrace,
    mutants=[mutants.ReusedProbe, mutants.UnscaledProbes, mutants.BiasJustOutsideMargin],
    statistical=2 * NUM_DRAWN_NETWORKS,
    profile="ci",
    seconds=6,
)
def drawn_estimates_centre_on_the_trace(
    estimator: EstimatorClass, context: Context
) -> Iterator[Check]:
    """Drawn probes on every trained network."""
    for case in context.cases():
        if case.stage == "untrained" and not context.is_thorough:
            continue
        forms = [theory.quadratic_form(case.H, index) for index in case.problem.index.values()]
        scattered = torch.stack([form - form.diagonal().diag() for form in forms])
        frobenius = scattered.norm(dim=(1, 2))
        spectral = torch.linalg.matrix_norm(scattered, 2)
        live = frobenius > 0

        def draws(
            n: int, generator: torch.Generator, case: Case = case, live: Tensor = live
        ) -> np.ndarray:
            return estimator(num_probes=n)(case.problem, generator).samples.to_numpy()[
                :, live.numpy()
            ]

        yield statistical(
            f"{case}: mean of drawn probes",
            draws,
            block_traces(case)[live],
            margin=0.5 * 2**0.5 * frobenius[live],
            tail=Tail.sign_form(frobenius[live], spectral[live]),
            alpha=context.alpha,
            generator=context.generator(str(case)),
        ).showing("estimates", _shown_estimates(case, context))


def _shown_estimates(case: Case, context: Context, num_probes: int = 100) -> list[Row]:
    """What one run of a hundred sign probes says, with its Student intervals, beside the exact
    traces."""
    estimate = LayerwiseTrace(num_probes)(case.problem, context.generator(str(case), "shown"))
    interval = estimate.confidence_interval(0.95)
    return [
        {
            "network": case.network,
            "stage": case.stage,
            "block": block,
            "exact": float(exact),
            "estimate": value,
        }
        | {
            "low": interval["low"][block],
            "high": interval["high"][block],
            "num_probes": num_probes,
            "probe": "Rademacher",
        }
        for (block, value), exact in zip(estimate.value.items(), block_traces(case), strict=True)
    ]


SAMPLERS = (Rademacher(), Gaussian(), Uniform(), Sphere(), SparseSigns(0.25))

NUM_ENTRIES = 6


@claim(
    "T1.b",
    "Every sampler of the library draws what it says: E zzᵀ = I, and a distribution of the "
    "declared shape.",
    formula=r"\mathbb{E}\,zz^{\top}=I",
    reason="by definition of the distributions",
    rests_on=["E1", "E2"],
    subject=lambda probe: probe,
    mutants=[
        mutants.normals_for_signs,
        mutants.signs_for_normals,
        mutants.probe_shared_by_entries,
        mutants.variance_just_outside_margin,
    ],
    statistical=2 * len(SAMPLERS),
    profile="ci",
)
def samplers_draw_what_they_say(
    spoil: Callable[[Probe], Probe], context: Context
) -> Iterator[Check]:
    """Second moments and the shape of every sampler."""
    upper = np.triu_indices(NUM_ENTRIES)
    Z = spoil(HadamardColumns()).sample(8, 8, context.generator("hadamard"))
    yield exact("HadamardColumns(): all columns average zzᵀ to I", Z @ Z.mT / 8, np.eye(8))
    for probe in SAMPLERS:
        spoilt = spoil(probe)

        def products(n: int, generator: torch.Generator, spoilt: Probe = spoilt) -> Tensor:
            z = spoilt.sample(NUM_ENTRIES, n, generator)
            return (z[upper[0]] * z[upper[1]]).mT

        def squashed(n: int, generator: torch.Generator, spoilt: Probe = spoilt) -> Tensor:
            return (-spoilt.sample(NUM_ENTRIES, n, generator)[0].square()).exp()

        yield statistical(
            f"{probe!r}: E zzᵀ = I",
            products,
            np.eye(NUM_ENTRIES)[upper],
            margin=0.03,
            tail=_tail_of_products(probe, upper[0] == upper[1]),
            alpha=context.alpha,
            generator=context.generator(repr(probe), "products"),
        )
        yield statistical(
            f"{probe!r}: E exp(−z²), which tells distributions of equal variance apart",
            squashed,
            _squashed_mean(probe),
            margin=0.02,
            tail=Tail.bounded(0.25, 1.0),
            alpha=context.alpha,
            generator=context.generator(repr(probe), "shape"),
        )


def _tail_of_products(probe: Probe, is_square: np.ndarray) -> Tail:
    """Variance and tail of z_i z_j: normal quadratic forms by their norms, everything else by its
    bound."""
    if isinstance(probe, Gaussian):
        return Tail.gaussian_form(np.where(is_square, 1.0, 0.5**0.5), np.where(is_square, 1.0, 0.5))
    largest = {Uniform: 3.0, Sphere: NUM_ENTRIES, SparseSigns: 4.0}.get(type(probe), 1.0)
    return Tail.bounded(
        np.where(is_square, probe.kurtosis(NUM_ENTRIES) - 1, 1.0), largest + is_square
    )


def _squashed_mean(probe: Probe) -> float:
    """E exp(−z_1²) in closed form."""
    match probe:
        case Gaussian():
            return 3**-0.5
        case Uniform():
            return float((np.pi / 12) ** 0.5 * special.erf(3**0.5))
        case Sphere():
            return float(special.hyp1f1(0.5, NUM_ENTRIES / 2, -NUM_ENTRIES))
        case SparseSigns(density):
            return float(1 - density + density * np.exp(-1 / density))
    return float(np.exp(-1))
