"""Full-scale networks for images of 32×32 pixels: ResNet-18, ResNet-34 and VGG-11 with batch norm.

Modules are named as in torchvision. Weights are N(0, 2/fan-in) (He, Zhang, Ren and Sun 2015), norm weights one, biases
zero. A smaller `width` gives the same network with fewer channels.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hesstheory.problem.risk import Problem
from hesstheory.zoo.data import Data
from hesstheory.zoo.initial import draw_parameters, set_running_statistics

Activation = Callable[[], nn.Module]

# --- residual networks ------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """φ(N₂ W₂ φ(N₁ W₁ x) + x), with x projected where the shape changes (He, Zhang, Ren and Sun 2016)."""

    def __init__(self, num_in: int, num_out: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(num_in, num_out, stride), nn.BatchNorm2d(num_out)
        self.act1 = activation()
        self.conv2, self.bn2 = _conv3x3(num_out, num_out, 1), nn.BatchNorm2d(num_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            projection = nn.Conv2d(num_in, num_out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(num_out))
        self.act2 = activation()

    def forward(
        self, x: Float[Tensor, "samples in height width"]
    ) -> Float[Tensor, "samples out height2 width2"]:
        inner = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(inner + self.downsample(x))
        return out


class ResNet(nn.Sequential):
    """A 3×3 stem without pooling, four stages of basic blocks, the mean over positions, a linear head."""

    def __init__(
        self,
        num_blocks: Sequence[int],
        num_classes: int,
        activation: Activation,
        width: int,
        in_channels: int,
    ) -> None:
        widths = [width * 2**stage for stage in range(len(num_blocks))]
        stages = [
            _stage(num_in, num_out, blocks, 1 if stage == 0 else 2, activation)
            for stage, (num_in, num_out, blocks) in enumerate(
                zip([width, *widths], widths, num_blocks, strict=False)
            )
        ]
        super().__init__(
            OrderedDict[str, nn.Module](
                conv1=_conv3x3(in_channels, width, 1),
                bn1=nn.BatchNorm2d(width),
                act1=activation(),
                **{f"layer{number}": stage for number, stage in enumerate(stages, start=1)},
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(widths[-1], num_classes),
            )
        )


def _conv3x3(num_in: int, num_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)


def _stage(
    num_in: int, num_out: int, num_blocks: int, stride: int, activation: Activation
) -> nn.Sequential:
    first = BasicBlock(num_in, num_out, stride, activation)
    return nn.Sequential(
        first, *(BasicBlock(num_out, num_out, 1, activation) for _ in range(num_blocks - 1))
    )


# --- VGG --------------------------------------------------------------------------------------------------------------

# Channels of the convolutions in units of the width; the maximum over 2×2 positions follows each group.
_VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))


class VGG(nn.Sequential):
    """Groups of 3×3 convolutions with batch norm and pooling, the mean over positions, a linear head."""

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        num_classes: int,
        activation: Activation,
        width: int,
        in_channels: int,
    ) -> None:
        features, num_in = nn.Sequential(), in_channels
        for group in groups:
            for multiple in group:
                num_out = multiple * width
                features.extend(
                    [
                        nn.Conv2d(num_in, num_out, 3, padding=1),
                        nn.BatchNorm2d(num_out),
                        activation(),
                    ]
                )
                num_in = num_out
            features.append(nn.MaxPool2d(2))
        super().__init__(
            OrderedDict[str, nn.Module](
                features=features,
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                classifier=nn.Linear(num_in, num_classes),
            )
        )


# --- two exits --------------------------------------------------------------------------------------------------------


class TwoExits(nn.Module):
    """A copy of a network of this module with an earlier second exit: the mean of the logits at both.

    The exits lie before and after the last block (of VGG, the last convolution), where the channels are as many. One
    classifier serves both if `tied`, which makes its two uses two instances of one tensor; else each has a copy.
    """

    def __init__(self, model: nn.Module, *, tied: bool) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        *stem, (name, final) = [
            (n, m) for n, m in model.named_children() if n not in ("avgpool", "flatten", *_HEADS)
        ]
        assert isinstance(final, nn.Sequential)
        first, last = (final[:-4], final[-4:]) if name == "features" else (final[:-1], final[-1:])
        self.stem = nn.Sequential(OrderedDict([*stem, ("first", first)]))
        self.last = last
        head = next(getattr(model, n) for n in _HEADS if hasattr(model, n))
        self.head1 = head
        self.head2 = head if tied else copy.deepcopy(head)

    def forward(
        self, x: Float[Tensor, "samples in height width"]
    ) -> Float[Tensor, "samples classes"]:
        early = self.stem(x)
        logits: Tensor = (
            self.head1(early.mean((2, 3))) + self.head2(self.last(early).mean((2, 3)))
        ) / 2
        return logits


_HEADS = ("fc", "classifier")

# --- drawn from a generator -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A kind of network; a call draws one."""

    name: str
    build: Callable[[int, Activation, int, int], nn.Module]

    def __call__(
        self,
        num_classes: int = 10,
        *,
        activation: Activation = nn.ReLU,
        width: int = 64,
        in_channels: int = 3,
        inputs: Float[Tensor, "samples in_channels height width"] | None = None,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator,
    ) -> nn.Module:
        """A network in eval mode; `activation` makes one module for each use, e.g. `torch.nn.SiLU`.

        Running statistics of batch norm are those of `inputs`, by default 16 images of white noise: pass the first
        hundred images of the data. The same generator state gives the same weights with any `inputs` and `dtype`.
        """
        if min(num_classes, width, in_channels) < 1:
            sizes = f"num_classes is {num_classes}, width {width}, in_channels {in_channels}"
            raise ValueError(f"{sizes}: pass one or more of each")
        with torch.device(
            "meta"
        ):  # the layers' own initialisation would draw from the global random stream
            model = self.build(num_classes, activation, width, in_channels).to(dtype)
        model.to_empty(device="cpu")
        draw_parameters(model, generator, gain=math.sqrt(2), spread=0.0)
        if inputs is None:
            inputs = torch.randn(
                (16, in_channels, 32, 32), generator=generator, dtype=torch.float64
            ).to(dtype)
        set_running_statistics(model, inputs)
        return model.eval()


resnet18 = Architecture("resnet18", partial(ResNet, (2, 2, 2, 2)))
resnet34 = Architecture("resnet34", partial(ResNet, (3, 4, 6, 3)))
vgg11 = Architecture("vgg11", partial(VGG, _VGG11))
FULL_SCALE: Mapping[str, Architecture] = {kind.name: kind for kind in (resnet18, resnet34, vgg11)}


def full_scale_problem(
    name: str,
    data: Data,
    *,
    num_classes: int = 10,
    batch_size: int = 128,
    activation: Activation = nn.ReLU,
    width: int = 64,
    generator: torch.Generator,
) -> Problem:
    """The cross-entropy of a network of `FULL_SCALE` on images, with its layers as blocks.

    Its dtype is that of the data, its running statistics are those of the first batch.
    """
    if name not in FULL_SCALE:
        raise KeyError(f"no full-scale network {name!r}; the networks are {', '.join(FULL_SCALE)}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}: pass a whole number of at least 1")
    if (largest := int(data.targets.max())) >= num_classes:
        raise ValueError(
            f"the targets go up to {largest}: pass num_classes={largest + 1} or more, not {num_classes}"
        )
    batches = list(
        zip(
            torch.split(data.inputs, batch_size), torch.split(data.targets, batch_size), strict=True
        )
    )
    first = batches[0][0]
    model = FULL_SCALE[name](
        num_classes,
        activation=activation,
        width=width,
        in_channels=first.shape[1],
        inputs=first,
        dtype=first.dtype,
        generator=generator,
    )
    return Problem(model, F.cross_entropy, batches)
