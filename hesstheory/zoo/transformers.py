"""Transformers in plain torch: a GPT, a text classifier and a vision transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.problem.risk import Problem
from hesstheory.zoo.text import sequences
from hesstheory.zoo.training import descend

_SPREAD = 0.02  # of initial weights, as in GPT-2

# Of the training: Adam, as for GPT-2 of this size.
_LEARNING_RATE = 1e-3
_TRAINING_BATCH = 8

Norm = Callable[[int], nn.Module]


class TransformerBlock(nn.Module):
    """Attention of several heads and a layer of 4·width GELU units, each behind a norm."""

    def __init__(self, width: int, heads: int, *, causal: bool, norm: Norm = nn.LayerNorm) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm1 = norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm2 = norm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def attend(
        self, x: Float[Tensor, "samples tokens width"]
    ) -> Float[Tensor, "samples tokens width"]:
        """softmax(QKᵀ/√d)V of every head, mapped to the width of the block."""
        N, T, width = x.shape
        shape = (N, T, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(N, T, width))
        return out

    def forward(
        self, x: Float[Tensor, "samples tokens width"]
    ) -> Float[Tensor, "samples tokens width"]:
        x = x + self.attend(self.norm1(x))
        out: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return out


class GPT(nn.Module):
    """Logits of the next token at every position; one matrix embeds tokens and is the head.

    Parameters
    ----------
    num_tokens
        Size of the vocabulary.
    length
        Most tokens of a sequence.
    width, depth, heads
        Of the blocks.
    norm
        `nn.LayerNorm` or `nn.RMSNorm`.
    """

    def __init__(
        self,
        num_tokens: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        norm: Norm = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, width)
        self.positions = nn.Embedding(length, width)
        make = partial(TransformerBlock, width, heads, causal=True, norm=norm)
        self.blocks = nn.Sequential(*(make() for _ in range(depth)))
        self.norm = norm(width)
        self.head = nn.Linear(width, num_tokens, bias=False)
        self.head.weight = self.tokens.weight

    def forward(
        self, x: Int64[Tensor, "samples tokens"]
    ) -> Float[Tensor, "samples tokens vocabulary"]:
        places = torch.arange(x.shape[1], device=x.device).expand_as(x)
        out: Tensor = self.head(self.norm(self.blocks(self.tokens(x) + self.positions(places))))
        return out


class TextClassifier(nn.Module):
    """Logits of the classes of a sequence, from the mean over its tokens, as in BERT's encoder."""

    def __init__(
        self, num_tokens: int, length: int, width: int, depth: int, heads: int, num_classes: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, width)
        self.positions = nn.Embedding(length, width)
        make = partial(TransformerBlock, width, heads, causal=False)
        self.blocks = nn.Sequential(*(make() for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Int64[Tensor, "samples tokens"]) -> Float[Tensor, "samples classes"]:
        places = torch.arange(x.shape[1], device=x.device).expand_as(x)
        h = self.norm(self.blocks(self.tokens(x) + self.positions(places)))
        out: Tensor = self.head(h.mean(1))
        return out


class VisionTransformer(nn.Module):
    """Logits of the classes of an image, from the mean over its square patches."""

    def __init__(
        self,
        side: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Embedding((side // patch) ** 2, width)
        make = partial(TransformerBlock, width, heads, causal=False)
        self.blocks = nn.Sequential(*(make() for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(
        self, images: Float[Tensor, "samples channels side side"]
    ) -> Float[Tensor, "samples classes"]:
        x = self.patches(images).flatten(2).mT
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        h = self.norm(self.blocks(x + self.positions(places)))
        out: Tensor = self.head(h.mean(1))
        return out


def next_token_loss(
    logits: Float[Tensor, "samples tokens vocabulary"], targets: Int64[Tensor, "samples tokens"]
) -> Float[Tensor, ""]:
    """Cross-entropy, the mean over all positions; targets of −100 are left out.

    With ignored targets in several batches, `Problem` needs
    `weight=lambda batch: int((batch[1] != -100).sum())`.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def language_model(
    generator: torch.Generator,
    *,
    num_tokens: int = 8192,
    length: int = 128,
    width: int = 320,
    depth: int = 6,
    heads: int = 8,
    num_sequences: int = 8,
    steps: int = 0,
    norm: Norm = nn.LayerNorm,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """The risk of a GPT on source text: 10 million parameters by default.

    Parameters
    ----------
    generator
        Draws the weights, the text of the training and that of the risk.
    num_tokens, length, width, depth, heads, norm
        As in `GPT`.
    num_sequences
        In the one batch of the risk.
    steps
        Of training, by Adam on batches of eight sequences.
    dtype
        Of the parameters.

    Examples
    --------
    >>> options = {"num_tokens": 256, "length": 8, "width": 8, "depth": 1, "heads": 2}
    >>> problem = language_model(torch.Generator().manual_seed(0), num_sequences=3, **options)
    >>> problem.outputs(problem.batches[0]).shape
    torch.Size([3, 8, 256])
    """
    with torch.random.fork_rng(devices=[]):  # layers draw their weights when they are made
        model = GPT(num_tokens, length, width, depth, heads, norm).to(dtype)
    draw_transformer(model, generator)
    if steps:
        descend(
            model,
            next_token_loss,
            lambda step: sequences(_TRAINING_BATCH, length, generator, num_tokens),
            torch.optim.Adam(model.parameters(), _LEARNING_RATE),
            range(steps),
        )
    batch = sequences(num_sequences, length, generator, num_tokens)
    return Problem(model, next_token_loss, [batch])


@torch.no_grad()
def draw_transformer(model: nn.Module, generator: torch.Generator) -> None:
    """Matrices from N(0, 0.02²), biases zero, norms one, as in GPT-2."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                parameter.fill_(float(name == "weight"))
            elif name == "bias":
                parameter.zero_()
            else:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(_SPREAD * noise)
