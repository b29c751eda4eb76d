"""The model and the loss, run so that nothing about the model changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hesstheory.autograd.graph import differentiating
from hesstheory.problem.batches import Batch, num_rows

Loss = Callable[[Any, Any], Tensor]


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Gradients on, the random state given back, autocast off, attention twice differentiable."""
    # PyTorch would take a fused kernel for attention, which has one derivative and no second.
    with (
        torch.random.fork_rng(cuda_devices(device)),
        differentiating(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


def cuda_devices(device: torch.device) -> list[torch.device]:
    """The device, where it has a random stream of its own."""
    return [device] if device.type == "cuda" else []


def outputs_of(
    model: nn.Module, tensors: Mapping[str, Tensor], inputs: object, device: torch.device
) -> Any:
    """What a model makes of inputs, with its graph, at other values of some parameters.

    Parameters
    ----------
    model
        Its parameters, buffers and modes stay as they are.
    tensors
        Values to use in place of parameters, by name.
    inputs
        A tuple is spread over positions, a dict over keywords; anything else is one input.
    device
        The device whose random state is given back.
    """
    args, kwargs = arguments(inputs)
    with undisturbed(device):
        # Copies of buffers: batch norm in train mode writes into them.
        replaced = {name: b.clone() for name, b in model.named_buffers()} | dict(tensors)
        if not replaced:
            return model(*args, **kwargs)
        return functional_call(model, replaced, args, kwargs)


def arguments(inputs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Positions and keywords by which a model takes inputs; a namedtuple is one input."""
    if type(inputs) is tuple:
        return inputs, {}
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs,), {}


def own_loss(outputs: Any, targets: object) -> Tensor:
    """The loss that a model returns among its outputs, as those of Hugging Face do."""
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(found, Tensor):
        raise ValueError(
            "loss_fn is None and the model returns no loss: give it its targets (such as labels) "
            "among the inputs, or pass a loss function"
        )
    return found


def loss_value(
    loss_fn: Loss, outputs: object, batch: Batch, device: torch.device
) -> Float[Tensor, ""]:
    """What a loss gives for outputs of a batch, finite or not.

    Raises
    ------
    ValueError
        It is not one real number.
    """
    with undisturbed(device):
        loss = loss_fn(outputs, batch[1])
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn returned {shape}, not one real number: let it return the mean over the batch"
        )
    # A loss of shape (1,) is one number too; the view must have a graph in every mode.
    with differentiating():
        return loss.reshape(())


def check_finite_loss(loss: Float[Tensor, ""], batch: Batch) -> None:
    """Raises ValueError where the loss of a batch is NaN or infinite."""
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"the loss of a batch of {num_rows(batch[0])} samples is {loss.item()}: look for NaN "
            "or infinity in the inputs, the targets and the parameters, or drop a batch whose "
            "targets are all ignored; a curvature of it would be meaningless"
        )
