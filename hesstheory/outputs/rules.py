"""Rules: squared per-sample gradients of a layer from its inputs and the slopes at its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.autograd.layers import Geometry

# Of slopes at a module's output (columns × samples × …): by tensor, the squared norms of the
# samples' gradients, summed over the columns.
Norms = Callable[[Tensor], dict[str, Float[Tensor, " samples"]]]

# Bytes of per-sample gradients held at once: small beside a GPU's memory, large beside its caches.
CHUNK_BYTES = 256 * 2**20

# Of a module, its input and the wanted tensors {attribute: name}: the rule, None where it does not
# fit. A rule knows the type of its module, for which the key in NORM_RULES stands.
_Rule = Callable[[Any, Tensor, dict[str, str]], "Norms | None"]


def _of_products(
    A: Float[Tensor, samples in positions], num_out: int, groups: int = 1
) -> Callable[[Tensor], Tensor]:
    """‖δ_n A_nᵀ‖² for slopes δ_n (out × positions), over groups.

    By the gradient, or by the Gram matrices of positions: ‖δAᵀ‖² = ⟨δᵀδ, AᵀA⟩. That is cheaper
    where there are fewer positions than entries, and AᵀA serves all columns.
    """
    B, I, T = A.shape
    inside = I // groups
    A = A.reshape(B, groups, inside, T)

    def cut(slope: Float[Tensor, "samples out positions"]) -> Tensor:
        return slope.reshape(B, groups, -1, T)

    if T == 1:
        squares = A.square().sum((2, 3))
        return lambda slope: (cut(slope).square().sum((2, 3)) * squares).sum(1)
    # Gram matrices hold T² numbers, the gradient out·inside (Li et al. 2022). Up to four times as
    # many are worth it, since AᵀA serves all columns.
    if inside > T and 4 * num_out // groups * inside >= T * T:
        gram = A.mT @ A  # all that is kept of A
        return lambda slope: ((cut(slope).mT @ cut(slope)) * gram).sum((1, 2, 3))

    def by_gradient(slope: Tensor) -> Tensor:
        size = max(CHUNK_BYTES // (slope[0].numel() // T * inside * A.element_size()), 1)
        parts = zip(torch.split(cut(slope), size), torch.split(A, size), strict=True)
        return torch.cat([(d @ a.mT).square().sum((1, 2, 3)) for d, a in parts])

    return by_gradient


def _linear(module: nn.Linear, x: Tensor, names: dict[str, str]) -> Norms | None:
    """The gradient of a weight is δ_nᵀx_n for one position, Σ_t δ_ntᵀx_nt for several."""
    if x.ndim < 2:
        return None
    return _of_rows(x, names) if x.ndim == 2 else _of_positions(module, x, names)


def _of_rows(x: Tensor, names: dict[str, str]) -> Norms:
    """‖δ_nᵀx_n‖² = ‖δ_n‖²‖x_n‖²."""
    sizes = {"weight": torch.linalg.vector_norm(x, dim=1).square(), "bias": x.new_ones(len(x))}
    factors = {name: sizes[attribute] for attribute, name in names.items()}

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        squares = torch.linalg.vector_norm(slopes, dim=2).square().sum(0)
        return {name: squares * factor for name, factor in factors.items()}

    return norms


def _of_positions(module: nn.Linear, x: Tensor, names: dict[str, str]) -> Norms:
    """The same where every sample has several positions."""
    of_weight = _of_products(x.reshape(len(x), -1, x.shape[-1]).mT, module.out_features)

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        # Columns lie side by side as further outputs.
        D = (
            slopes.reshape(len(slopes), len(x), -1, slopes.shape[-1])
            .permute(1, 0, 3, 2)
            .flatten(1, 2)
        )
        found = {}
        if "weight" in names:
            found[names["weight"]] = of_weight(D)
        if "bias" in names:
            found[names["bias"]] = D.sum(2).square().sum(1)
        return found

    return norms


def _convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, names: dict[str, str]) -> Norms | None:
    """A linear map of patches, with zeros around the image."""
    if (
        module.padding_mode != "zeros"
        or isinstance(module.padding, str)
        or x.ndim != len(module.kernel_size) + 2
    ):
        return None
    of_weight: list[Callable[[Tensor], Tensor]] = []

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        found = {}
        if "weight" in names:
            if not of_weight:
                of_weight.append(_of_kernel(module, x, math.prod(slopes.shape[3:])))
            found[names["weight"]] = reduce(add, map(of_weight[0], slopes))
        if "bias" in names:
            found[names["bias"]] = slopes.flatten(3).sum(3).square().sum((0, 2))
        return found

    return norms


def _of_kernel(
    module: nn.Conv1d | nn.Conv2d, x: Tensor, positions: int
) -> Callable[[Tensor], Tensor]:
    """‖∂⟨δ_n, W ∗ x_n⟩/∂W‖² by Gram matrices of few patches, else by every sample's gradient."""
    inside = module.weight[0].numel()
    few = positions < inside and positions**2 <= 4 * len(module.weight) // module.groups * inside
    if few or x.device.type != "cpu":  # sample by sample, an accelerator would wait for its host
        patches = _of_products(_patches(module, x), module.out_channels, module.groups)
        return lambda slope: patches(slope.flatten(2))
    assert not isinstance(module.padding, str)  # such a module has no rule
    zeros = (0,) * len(module.kernel_size)
    options = (module.stride, module.padding, module.dilation, False, zeros, module.groups)
    one = Geometry(x[:1].shape, module.weight.shape, options)
    return lambda slope: torch.stack(
        [
            one.slope(d, a, None).square().sum()
            for d, a in zip(torch.split(slope, 1), torch.split(x, 1), strict=True)
        ]
    )


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Float[Tensor, samples in positions]:
    """What the kernel sees at every position of its output."""
    flat = 2 - len(module.kernel_size)
    options = {
        name: (fill,) * flat + tuple(getattr(module, name))
        for name, fill in (("kernel_size", 1), ("dilation", 1), ("padding", 0), ("stride", 1))
    }
    return F.unfold(x[:, :, None] if flat else x, **options)


def _batch_norm(module: nn.BatchNorm2d, x: Tensor, names: dict[str, str]) -> Norms | None:
    """An affine map of each channel, by running statistics: those of the batch mix samples."""
    if module.training or module.running_mean is None or module.running_var is None or x.ndim < 2:
        return None
    mean = module.running_mean
    scale = (module.running_var + module.eps).rsqrt()

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        found = dict[str, Tensor]()
        rows = (len(slopes), *x.shape[:2], -1)
        of_bias = slopes.reshape(rows).sum(3)
        if "weight" in names:
            # Σ δ·(x − mean)/deviation, without holding the normalised input of every batch norm.
            of_weight = ((slopes * x).reshape(rows).sum(3) - mean * of_bias) * scale
            found[names["weight"]] = of_weight.square().sum((0, 2))
        if "bias" in names:
            found[names["bias"]] = of_bias.square().sum((0, 2))
        return found

    return norms


def _embedding(module: nn.Embedding, x: Tensor, names: dict[str, str]) -> Norms | None:
    """‖Σ_t δ_nt e_{x_nt}ᵀ‖² = Σ_{s,t} ⟨δ_ns, δ_nt⟩ [x_ns = x_nt]."""
    if x.ndim < 1:
        return None
    tokens = x.reshape(len(x), -1)
    same = (tokens[:, :, None] == tokens[:, None]).to(module.weight.dtype)
    if module.padding_idx is not None:
        same = same * (tokens != module.padding_idx)[:, None]

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        D = slopes.reshape(len(slopes), *tokens.shape, -1)
        return {names["weight"]: ((D @ D.mT) * same).sum((0, 2, 3))}

    return norms


def _affine_norm(
    module: nn.LayerNorm | nn.RMSNorm, x: Tensor, names: dict[str, str]
) -> Norms | None:
    """Σ_t δ_nt ∘ x̂_nt of the weight and Σ_t δ_nt of the bias, x̂ the normalised input."""
    entries = math.prod(module.normalized_shape)
    if x.ndim <= len(module.normalized_shape):
        return None
    rows = x.reshape(len(x), -1, entries)
    centred = rows - rows.mean(2, keepdim=True) if isinstance(module, nn.LayerNorm) else rows
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    normalised = centred * (centred.square().mean(2, keepdim=True) + eps).rsqrt()

    def norms(slopes: Tensor) -> dict[str, Tensor]:
        D = slopes.reshape(len(slopes), *rows.shape)
        found = dict[str, Tensor]()
        if "weight" in names:
            found[names["weight"]] = (D * normalised).sum(2).square().sum((0, 2))
        if "bias" in names:
            found[names["bias"]] = D.sum(2).square().sum((0, 2))
        return found

    return norms


def tied_norms(
    embedding: nn.Embedding, tokens: Tensor, head: nn.Linear, x: Tensor, name: str
) -> Callable[[Sequence[Tensor | None]], dict[str, Tensor]] | None:
    """The rule for a matrix that embeds tokens and is the head as well.

    The gradient of a sample is Σ_t e_{x_t} δ_tᵀ + Σ_s σ_s h_sᵀ, with slopes δ at the embedding and
    σ at the head, whose input is h. The cross term of its square is 2 Σ_ts σ_s[x_t] ⟨δ_t, h_s⟩.

    Parameters
    ----------
    embedding, tokens
        The module and its input.
    head, x
        The module and its input.
    name
        Of the matrix.
    """
    if x.ndim != 3 or tokens.ndim != 2 or len(x) != len(tokens):
        return None
    of_embedding = _embedding(embedding, tokens, {"weight": name})
    of_head = _linear(head, x, {"weight": name})
    if of_embedding is None or of_head is None:
        return None
    padding = embedding.padding_idx
    is_token = None if padding is None else (tokens != padding)[:, :, None]

    def norms(slopes: Sequence[Tensor | None]) -> dict[str, Tensor]:
        at_embedding, at_head = slopes
        squares = x.new_zeros(len(x))
        if at_embedding is not None:
            squares = squares + of_embedding(at_embedding)[name]
        if at_head is not None:
            squares = squares + of_head(at_head)[name]
        if at_embedding is None or at_head is None:
            return {name: squares}
        for delta, sigma in zip(at_embedding, at_head, strict=True):
            products = delta @ x.mT  # samples × t × s
            index = tokens[:, None].expand(-1, sigma.shape[1], -1)
            picked = sigma.gather(2, index).mT
            if is_token is not None:
                picked = picked * is_token
            squares = squares + 2 * (products * picked).sum((1, 2))
        return {name: squares}

    return norms


NORM_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Embedding: _embedding,
    nn.LayerNorm: _affine_norm,
    nn.RMSNorm: _affine_norm,
}
