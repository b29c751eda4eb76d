"""Wrong probes, and wrong use of the generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hesstheory.conformance.subjects.wrong.steps import (
    as_estimate,
    as_total,
    as_values,
    draw_signs,
    listed,
    spoils,
)
from hesstheory.estimators.probes import Gaussian, Rademacher, SparseSigns, Uniform
from hesstheory.problem.risk import Problem

# --- wrong probes --------------------------------------------------------------------------------
listed(
    "draw",
    normals_for_signs=(
        "Draws normals where it declares signs.",
        lambda p, K, g: Gaussian().sample(p.num_params, K, g),
        as_estimate,
    ),
    signs_for_normals=(
        "Draws signs where it declares normals.",
        lambda p, K, g: draw_signs(p, K, g),
    ),
    uniform_unscaled=(
        "Draws uniform entries on [−1, 1] without scaling them to unit variance.",
        lambda p, K, g: Uniform().sample(p.num_params, K, g) / 3**0.5,
        as_values,
    ),
    zeros_for_minus_ones=(
        "Draws zeros and ones and forgets to turn the zeros into minus ones.",
        lambda p, K, g: (draw_signs(p, K, g) + 1) / 2,
    ),
    zeros_among_signs=(
        "Draws whole numbers from −1 to 1, so that a third of the entries is zero.",
        lambda p, K, g: torch.randint(-1, 2, (p.num_params, K), generator=g).double(),
    ),
    unfair_signs=(
        "Draws plus ones three times as often as minus ones.",
        lambda p, K, g: 1 - 2 * (torch.rand(p.num_params, K, generator=g) < 0.25).double(),
    ),
    signs_in_pairs=(
        "Gives neighbouring parameters one and the same sign.",
        lambda p, K, g: draw_signs(p, K, g).repeat_interleave(2, 0)[: p.num_params],
    ),
    centred_probes=(
        "Subtracts from every probe the mean of its entries.",
        lambda p, K, g: (lambda Z: Z - Z.mean(0))(draw_signs(p, K, g)),
        as_values,
    ),
    unscaled_sparse_signs=(
        "Keeps a quarter of the signs without scaling them up.",
        lambda p, K, g: SparseSigns(0.25).sample(p.num_params, K, g) / 2,
        as_estimate,
    ),
    unit_sphere=(
        "Draws from the unit sphere and forgets √P.",
        lambda p, K, g: F.normalize(Gaussian().sample(p.num_params, K, g), dim=0),
        as_total,
    ),
    normalised_over_probes=(
        "Normalises normal probes to length √P over the wrong axis.",
        lambda p, K, g: (
            F.normalize(Gaussian().sample(p.num_params, K, g), dim=1) * p.num_params**0.5
        ),
        as_values,
    ),
    reused_probe=(
        "Draws one probe and reuses it for all products.",
        lambda p, K, g: draw_signs(p, 1, g).expand(-1, K),
    ),
    antithetic_probes=(
        "Takes −z for another probe than z.",
        lambda p, K, g: (
            draw_signs(p, -(-K // 2), g).repeat_interleave(2, 1)[:, :K] * (-1) ** torch.arange(K)
        ),
        as_estimate,
    ),
    first_coordinates=(
        "Takes the first unit vectors, times √P, for random ones.",
        lambda p, K, g: (
            p.num_params**0.5 * torch.eye(p.num_params)[:, torch.arange(K) % p.num_params].double()
        ),
    ),
    four_probes_in_turn=(
        "Draws four probes and takes them in turn.",
        lambda p, K, g: draw_signs(p, 4, g)[:, torch.arange(K) % 4],
    ),
)


@spoils("draw", as_estimate)
def layers_reseeded(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Starts every layer's probe from the same random state, so that layers share signs."""
    stream, Z = (draw_signs(problem, num_probes, generator) for _ in range(2))
    for index in problem.index.values():
        Z[index] = stream[: len(index)]
    return Z


@spoils("draw")
def one_flip_at_a_time(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Makes a probe from the one before by flipping one sign."""
    flips = torch.randint(problem.num_params, (1, num_probes), generator=generator)
    steps = torch.ones(problem.num_params, num_probes, dtype=torch.float64).scatter_(0, flips, -1.0)
    return draw_signs(problem, 1, generator) * steps.cumprod(1)


@spoils("draw", as_values)
def probe_cached_by_shape(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws one probe per shape, so that tensors of one shape share it."""
    drawn: dict[Any, Tensor] = {}
    for p in problem.params.values():
        if p.shape not in drawn:
            drawn[p.shape] = Rademacher().sample(p.numel(), num_probes, generator)
    return torch.cat([drawn[p.shape] for p in problem.params.values()])


# --- wrong use of the generator ------------------------------------------------------------------
listed(
    "draw",
    own_fixed_seed=(
        "Seeds a generator of its own with 0 and ignores the one it is given.",
        lambda p, K, g: draw_signs(p, K, torch.Generator().manual_seed(0)),
    ),
    unseeded_generator=(
        "Makes an unseeded torch.Generator, which draws the same numbers at every call.",
        lambda p, K, g: draw_signs(p, K, torch.Generator()),
        as_total,
    ),
    rewound_generator=(
        "Takes the seed of the generator for its state, so that every call starts anew.",
        lambda p, K, g: draw_signs(p, K, torch.Generator().manual_seed(g.initial_seed())),
        as_estimate,
    ),
    generator_not_moved=(
        "Draws from a copy of the generator, so that the next call draws the same.",
        lambda p, K, g: draw_signs(p, K, g.clone_state()),
    ),
    eight_streams=(
        "Keeps three bits of the random state, so that there are only eight answers.",
        lambda p, K, g: draw_signs(
            p, K, torch.Generator().manual_seed(int(torch.randint(8, (), generator=g)))
        ),
        as_values,
    ),
)


@spoils("draw")
def seeded_by_the_system(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Asks the operating system for a seed and ignores the generator."""
    own = torch.Generator()
    own.seed()
    return draw_signs(problem, num_probes, own)


@spoils("draw", as_values)
def global_stream(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Draws from the global random stream and ignores the generator."""
    return torch.randint(2, (problem.num_params, num_probes)) * 2.0 - 1.0


@spoils("draw", as_estimate)
def global_stream_seeded(problem: Problem, num_probes: int, generator: torch.Generator) -> Tensor:
    """Seeds the global random stream from the generator and draws from it."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    return torch.randint(2, (problem.num_params, num_probes)) * 2.0 - 1.0
