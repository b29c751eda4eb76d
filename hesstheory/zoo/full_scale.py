"""Full-scale networks for images of 32×32 pixels: ResNet-18, ResNet-34 and VGG-11 with batch norm.

Modules are named as in torchvision. A smaller `width` gives the same network with fewer channels.
Weights are N(0, 2/fan-in) (He, Zhang, Ren and Sun 2015), norm weights one, biases zero.
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
from hesstheory.run.names import no_such
from hesstheory.zoo.data import Data
from hesstheory.zoo.initial import blank, draw_parameters, set_running_statistics

Activation = Callable[[], nn.Module]

_HEADS = ("fc", "classifier")  # names of the last layer, in residual networks and in VGG


class BasicBlock(nn.Module):
    """φ(N₂ W₂ φ(N₁ W₁ x) + x), with x projected where the shape changes.

    Source: He, Zhang, Ren and Sun (2016), ResNet-18 and ResNet-34.
    """

    def __init__(self, num_in: int, num_out: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = _conv3x3(num_in, num_out, stride)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.act1 = activation()
        self.conv2 = _conv3x3(num_out, num_out, 1)
        self.bn2 = nn.BatchNorm2d(num_out)
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
    """A 3 × 3 stem without pooling, stages of basic blocks, mean over positions, linear head."""

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
    """A convolution that keeps the size of the image at stride one; a norm follows, so no bias."""
    return nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)


def _stage(
    num_in: int, num_out: int, num_blocks: int, stride: int, activation: Activation
) -> nn.Sequential:
    """Basic blocks of one width; the first changes width and size."""
    first = BasicBlock(num_in, num_out, stride, activation)
    return nn.Sequential(
        first, *(BasicBlock(num_out, num_out, 1, activation) for _ in range(num_blocks - 1))
    )


# Channels of the convolutions in units of the width (Simonyan and Zisserman 2015, network A).
# The maximum over 2 × 2 positions follows each group.
_VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))


class VGG(nn.Sequential):
    """Groups of 3 × 3 convolutions with batch norm and pooling, mean over positions, a head."""

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        num_classes: int,
        activation: Activation,
        width: int,
        in_channels: int,
    ) -> None:
        features = nn.Sequential()
        num_in = in_channels
        for group in groups:
            for multiple in group:
                num_out = multiple * width
                features.append(nn.Conv2d(num_in, num_out, 3, padding=1))
                features.append(nn.BatchNorm2d(num_out))
                features.append(activation())
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


class TwoExits(nn.Module):
    """A copy of a network of this module with a second, earlier exit: the mean of both logits.

    The exits lie before and after the last block (of VGG, the last convolution). Both have the same
    number of channels there.

    Parameters
    ----------
    model
        A network that an `Architecture` of this module drew.
    tied
        Whether one classifier serves both exits, so that its weight is used twice. Otherwise each
        exit has a copy.
    """

    def __init__(self, model: nn.Module, *, tied: bool) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        *stem, (name, final) = [
            (n, m) for n, m in model.named_children() if n not in ("avgpool", "flatten", *_HEADS)
        ]
        assert isinstance(final, nn.Sequential)
        # The last four modules of VGG: convolution, norm, activation, maximum.
        last = 4 if name == "features" else 1
        self.stem = nn.Sequential(OrderedDict([*stem, ("first", final[:-last])]))
        self.last = final[-last:]
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


@dataclass(frozen=True)
class Architecture:
    """A kind of network; a call draws one.

    `build` makes it from the number of classes, the activation, the width and the input channels.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> model = zoo.resnet18(width=2, generator=torch.Generator().manual_seed(0))
    >>> sum(p.numel() for p in model.parameters())
    11420
    """

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
        """A network in eval mode, with weights drawn from the generator.

        The same state of the generator gives the same weights with any `inputs` and `dtype`.

        Parameters
        ----------
        num_classes
            Length of the outputs.
        activation
            Makes one module for each use, e.g. `torch.nn.SiLU`.
        width
            Channels of the first layer.
        in_channels
            Channels of the images.
        inputs
            Images for the running statistics of batch norm: pass the first hundred of the data.
            White noise by default.
        dtype
            Of parameters and buffers.
        generator
            Draws the weights.

        Returns
        -------
        nn.Module
            The network, on the CPU.

        Raises
        ------
        ValueError
            A size is below one.
        """
        if min(num_classes, width, in_channels) < 1:
            sizes = f"num_classes is {num_classes}, width {width}, in_channels {in_channels}"
            raise ValueError(f"{sizes}: pass one or more of each")
        model = blank(self.build, num_classes, activation, width, in_channels).to(dtype)
        draw_parameters(model, generator, gain=math.sqrt(2), spread=0.0)
        if inputs is None:
            inputs = _white_noise(in_channels, generator).to(dtype)
        set_running_statistics(model, inputs)
        return model.eval()


def _white_noise(channels: int, generator: torch.Generator) -> Float[Tensor, "16 channels 32 32"]:
    """Images for running statistics; 16 have thousands of pixels in most layers."""
    return torch.randn((16, channels, 32, 32), generator=generator, dtype=torch.float64)


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
    """The cross-entropy of a full-scale network on images, with its layers as blocks.

    Parameters
    ----------
    name
        A key of `FULL_SCALE`: resnet18, resnet34 or vgg11.
    data
        Images and classes, e.g. `images("digits")`. The network has their dtype.
    num_classes
        Length of the outputs.
    batch_size
        Samples of a batch; the last batch may be smaller. The first batch sets the running
        statistics of batch norm.
    activation
        Makes one module for each use, e.g. `torch.nn.SiLU`.
    width
        Channels of the first layer.
    generator
        Draws the weights.

    Returns
    -------
    Problem
        The mean cross-entropy over all samples, the model in eval mode.

    Raises
    ------
    KeyError
        No full-scale network has this name.
    ValueError
        A size is below one, or a target is not below `num_classes`.

    Examples
    --------
    >>> from hesstheory import zoo
    >>> data = zoo.images("digits", num_samples=3)
    >>> generator = torch.Generator().manual_seed(0)
    >>> problem = zoo.full_scale_problem("vgg11", data, width=1, generator=generator)
    >>> len(problem.partition.blocks), problem.batch_sizes
    (17, (3,))
    """
    _check_sizes(name, data, num_classes, batch_size)
    first = data.inputs[:batch_size]
    model = FULL_SCALE[name](
        num_classes,
        activation=activation,
        width=width,
        in_channels=first.shape[1],
        inputs=first,
        dtype=first.dtype,
        generator=generator,
    )
    inputs = torch.split(data.inputs, batch_size)
    targets = torch.split(data.targets, batch_size)
    return Problem(model, F.cross_entropy, list(zip(inputs, targets, strict=True)))


def _check_sizes(name: str, data: Data, num_classes: int, batch_size: int) -> None:
    """Raises KeyError or ValueError for arguments that do not fit each other."""
    if name not in FULL_SCALE:
        raise KeyError(no_such("full-scale network", name, FULL_SCALE))
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}: pass a whole number of at least 1")
    if (largest := int(data.targets.max())) >= num_classes:
        raise ValueError(
            f"the targets go up to {largest}: "
            f"pass num_classes={largest + 1} or more, not {num_classes}"
        )
