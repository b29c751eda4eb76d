"""The empirical risk of a model over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hesstheory.problem import views
from hesstheory.problem.admission import (
    check_functions,
    check_model,
    check_partition,
    check_types,
    check_unchanged,
    layout_of,
    trained,
)
from hesstheory.problem.batches import (
    Batch,
    Weight,
    read_batches,
    samples_of_batches,
)
from hesstheory.problem.first_pass import check_risk
from hesstheory.problem.forward import Loss, check_finite_loss, loss_value, outputs_of, own_loss
from hesstheory.problem.partition import Partition, uncompiled
from hesstheory.problem.sizes import Sizes


class Problem(Sizes):
    """The empirical risk R(θ) = Σ_b w_b ℓ_b / Σ_b w_b over batches of any sizes.

    ℓ_b is the loss of batch b, the mean of w_b terms: its samples, or what `weight` says.

    `params` maps names to the tensors of θ, each tied tensor once. `partition.blocks` maps the
    names of blocks to tuples of those names. Nothing that is done with a problem changes its
    model. A model that `torch.compile` made is replaced by the one it was made of, because
    PyTorch does not differentiate compiled code twice.

    Parameters
    ----------
    model
        f_θ, called as `model(inputs)`. A tuple of inputs is spread over positions, a dict or
        another Mapping over keywords; anything else is one input. Frozen parameters are left out
        of θ.
    loss_fn
        `loss_fn(outputs, targets)`, the mean over the terms of a batch. None takes the loss that
        the model returns, as those of Hugging Face do with `labels` among their inputs.
    batches
        `(inputs, targets)` pairs, or inputs alone where `loss_fn` is None; read once. Samples lie
        along the first axis of every tensor, unless `weight` is given.
    partition
        Blocks of the parameters; by layer if None.
    weight
        `weight(batch)`, the number of terms that the loss of a batch averages, such as labelled
        nodes, or tokens that are not ignored. By default its samples.
    outputs
        `outputs(model_output)` selects the tensor that `loss_fn` reads, such as
        `lambda out: out.logits`. By default all of it.
    allow_train_mode
        Accept batch norm in train mode and active dropout.
    allow_surrogate
        Accept a backward pass that is not the derivative of the forward pass, as in
        straight-through rounding. Results then say that they are those of a surrogate.

    Raises
    ------
    TypeError, ValueError
        Input that would give a wrong number. The message names the cure.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from hesstheory import Problem
    >>> with torch.random.fork_rng():  # fresh layers draw their weights
    ...     model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    >>> x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    >>> y = torch.tensor([0, 1, 0, 1, 1])
    >>> Problem(model, nn.functional.cross_entropy, [(x[:3], y[:3]), (x[3:], y[3:])])
    Problem(Sequential, 26 parameters in 2 blocks, 5 samples in 2 batches, torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss | None,
        batches: Iterable[Batch | Mapping[str, Any]],
        partition: Partition | None = None,
        *,
        weight: Weight | None = None,
        outputs: Callable[[Any], Any] | None = None,
        allow_train_mode: bool = False,
        allow_surrogate: bool = False,
    ) -> None:
        of_batch = own_loss if loss_fn is None else loss_fn
        check_types(model, of_batch)
        check_functions(weight=weight, outputs=outputs)
        self.model = uncompiled(model)
        self.loss_fn: Loss = of_batch
        self.weight = weight
        self.select = outputs
        self.batches = read_batches(batches, has_own_loss=loss_fn is None)
        self.samples_of_batch = samples_of_batches(self.batches, weight)
        self.allow_train_mode = allow_train_mode
        self.allow_surrogate = allow_surrogate
        self.params = trained(self.model)
        self.layout = layout_of(self.model)  # see check_unchanged
        check_model(self.model, self.params, allow_train_mode)
        self.partition = Partition.by_layer(self.model) if partition is None else partition
        check_partition(self.partition, self.params)
        # Why loss_fn is no mean over samples, and what shows that the gradient is a surrogate's.
        self.no_mean = self.surrogate = ""
        self.no_mean, self.surrogate = check_risk(self)

    def __repr__(self) -> str:
        return (
            f"Problem({type(self.model).__name__}, {self.num_params} parameters in "
            f"{len(self.partition.blocks)} blocks, {self.num_samples} samples in "
            f"{len(self.batches)} batches, {self.dtype}"
            f"{', differentiated by a surrogate' if self.surrogate else ''})"
        )

    def named(self, result: str | None = None) -> str | None:
        """The name of a result, which says where the backward pass is that of a surrogate."""
        return f"{result or 'trace'} of a surrogate" if self.surrogate else result

    # --- the same problem, seen otherwise -------------------------------------------------------

    with_batches = views.with_batches
    with_partition = views.with_partition
    double = views.double
    rebatched = views.rebatched
    largest = views.largest
    head = views.head
    samples = views.samples

    # --- forward --------------------------------------------------------------------------------

    def outputs(self, batch: Batch) -> Any:
        """f_θ(x) of a batch with its graph; raises ValueError where the model was changed."""
        check_unchanged(self.model, self.layout, self.allow_train_mode)
        return self.outputs_at({}, batch[0])

    def outputs_at(self, tensors: Mapping[str, Tensor], inputs: object) -> Any:
        """f at other values of some parameters, for inputs of any number of samples."""
        made = outputs_of(self.model, tensors, inputs, self.device)
        return made if self.select is None else self.select(made)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of one batch with its graph; raises ValueError where it is not finite."""
        return self.loss_of(self.outputs(batch), batch)

    def loss_of(self, outputs: object, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of given outputs of one batch; raises ValueError where it is not finite."""
        loss = loss_value(self.loss_fn, outputs, batch, self.device)
        check_finite_loss(loss, batch)
        return loss
