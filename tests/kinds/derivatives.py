"""The backward pass and the forward pass: Functions, hooks, detached values, checkpoints."""

from __future__ import annotations

import torch
from builders import mlp
from kinds.case import Case, by_differences, by_plain_autograd
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint


def _samples(number=12, num_in=3, num_classes=2):
    return torch.randn(number, num_in), torch.randint(num_classes, (number,))


SMOOTH = {"exact H": "tr H may not be tr G"}


class KeepsTheGate(torch.autograd.Function):
    """x·σ(x); the gate is kept, so that its own derivative is lost in the second one."""

    @staticmethod
    def forward(ctx, x):
        gate = torch.sigmoid(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx, slope):
        x, gate = ctx.saved_tensors
        return slope * (gate + x * gate * (1 - gate))


class KeepsTheInput(torch.autograd.Function):
    """x·σ(x), twice differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return slope * (gate + x * gate * (1 - gate))


class Reversed(torch.autograd.Function):
    """The identity, with the gradient turned round."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return -slope


class Between(nn.Module):
    """Two layers with a function between them."""

    def __init__(self, function, width=4):
        super().__init__()
        self.a = nn.Linear(3, width)
        self.b = nn.Linear(width, 2)
        self.function = function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


def function_that_keeps_an_intermediate():
    return Case(
        Between(KeepsTheGate.apply), F.cross_entropy, [_samples()], refused="KeepsTheGate.*save"
    )


def function_that_keeps_its_input():
    return Case(
        Between(KeepsTheInput.apply),
        F.cross_entropy,
        [_samples()],
        right=by_differences,
        right_ggn=lambda case: _ggn_of(case, F.silu),
        refuses={"exact H": "tr H may not be tr G"},
    )


def _ggn_of(case, function):
    """G of the same net with an operation of torch in place of the Function."""
    net = Between(function)
    net.load_state_dict(case.model.state_dict())
    return Case(net, case.loss_fn, case.batches).ggn_traces()


def gradient_reversal():
    return Case(Between(Reversed.apply), F.cross_entropy, [_samples()], refused="Reversed")


def gradient_reversal_that_is_wanted():
    """The numbers are those of the surrogate, as autograd has it."""
    return Case(
        Between(lambda z: Reversed.apply(torch.tanh(z))),
        F.cross_entropy,
        [_samples()],
        {"allow_surrogate": True},
        right=by_plain_autograd,
        right_ggn=lambda case: _ggn_of(case, torch.tanh),
        refuses={"exact H": "tr H may not be tr G"},
    )


def gradient_scaled_by_a_hook_on_a_tensor():
    def scaled(z):
        z = torch.tanh(z)
        if z.requires_grad:
            z.register_hook(lambda slope: 0.1 * slope)
        return z

    return Case(Between(scaled), F.cross_entropy, [_samples()], refused="hook.*registers on a")


def hook_on_a_tensor_that_only_reads():
    kept = []

    def read(z):
        z = torch.relu(z)
        if z.requires_grad:
            z.register_hook(lambda slope: kept.append(slope.detach().norm()))
        return z

    return Case(Between(read), F.cross_entropy, [_samples()])


def hook_on_a_parameter():
    """A mask of pruned weights, laid over their gradients."""
    net = Between(torch.tanh)
    mask = torch.arange(12).view(4, 3) % 2
    net.a.weight.register_hook(lambda g: g * mask)
    return Case(net, F.cross_entropy, [_samples()], refused="hook on parameter a.weight")


def hook_on_a_module():
    net = Between(torch.tanh)
    net.b.register_full_backward_hook(lambda module, before, after: (2 * before[0],))
    return Case(net, F.cross_entropy, [_samples()], refused="hook of module 'b'")


def hook_on_a_module_that_only_reads():
    net = Between(torch.relu)
    kept = []
    net.a.register_forward_hook(lambda module, inputs, made: kept.append(made.detach().mean()))
    return Case(net, F.cross_entropy, [_samples()])


def hook_that_clips():
    def clipped(z):
        z = torch.tanh(z)
        if z.requires_grad:
            z.register_hook(lambda slope: slope.clamp(-1e3, 1e3))
        return z

    return Case(Between(clipped), F.cross_entropy, [_samples()], refused="not linear in the slope")


def straight_through_rounding():
    def rounded(z):
        return z + ((4 * z).round() / 4 - z).detach()

    return Case(Between(rounded), F.cross_entropy, [_samples()], refused="detaches")


def straight_through_without_gradients():
    def rounded(z):
        with torch.no_grad():
            gap = (4 * z).round() / 4 - z
        return z + gap

    return Case(Between(rounded), F.cross_entropy, [_samples()], refused="no_grad")


def semi_gradient_in_the_loss():
    """A value network that chases its own, detached, values."""
    net = mlp()
    x, _ = _samples()

    def loss(values, after):
        return (values - 0.9 * net(after).detach()).square().mean()

    return Case(net, loss, [(x, torch.randn(12, 3))], refused="detaches")


def detached_maximum_of_a_softmax():
    """The shift cancels: the gradient is right all the same."""

    def softmax(z):
        e = (z - z.max(1, keepdim=True).values.detach()).exp()
        return e / e.sum(1, keepdim=True)

    return Case(Between(softmax), F.cross_entropy, [_samples()], refuses=SMOOTH)


def frozen_features():
    """What is detached depends on no parameter that is trained."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 4)
            self.body.requires_grad_(False)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            with torch.no_grad():
                z = torch.tanh(self.body(x))
            return self.head(z)

    return Case(Head(), F.cross_entropy, [_samples()])


def pruned_modules():
    net = Between(torch.relu)
    prune.random_unstructured(net.a, "weight", amount=0.3)
    return Case(net, F.cross_entropy, [_samples()])


class Attention(nn.Module):
    """One head of fused attention over the tokens of a sample, under a checkpoint."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.last = nn.Linear(2, 2)
        self.use_reentrant = use_reentrant

    def mixed(self, x):
        query, key, value = self.embed(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(query, key, value)

    def forward(self, x):
        z = checkpoint(self.mixed, x, use_reentrant=self.use_reentrant)
        return self.last(z).mean(1)


class Plain(Attention):
    def forward(self, x):
        return self.last(self.mixed(x)).mean(1)


def checkpointed_attention():
    x, y = torch.randn(5, 4, 3), torch.randint(2, (5,))

    def plain(case):
        net = Plain(False)
        net.load_state_dict(case.model.state_dict())
        return Case(net, case.loss_fn, case.batches)

    return Case(
        Attention(False),
        F.cross_entropy,
        [(x, y)],
        right=lambda case: plain(case).traces(),
        right_ggn=lambda case: plain(case).ggn_traces(),
        refuses=SMOOTH,
    )


def checkpoint_that_hides_parameters():
    x, y = torch.randn(5, 4, 3, requires_grad=True), torch.randint(2, (5,))
    return Case(
        Attention(True),
        F.cross_entropy,
        [(x, y)],
        refused="a checkpoint with use_reentrant=True",
        says="use_reentrant",
    )


def pruned_modules_in_float32():
    net = Between(torch.relu).float()
    prune.random_unstructured(net.a, "weight", amount=0.3)
    x, y = _samples()
    net(x.float())  # leaves a weight with a graph on the module
    whole = Between(torch.relu)
    whole.load_state_dict(
        {
            "a.weight": net.a.weight.detach(),
            "a.bias": net.a.bias.detach(),
            **{f"b.{k}": v for k, v in net.b.state_dict().items()},
        }
    )

    def masked(case):
        """The trace over the entries that the mask leaves."""
        prune.custom_from_mask(whole.a, "weight", net.a.weight_mask.double())
        return Case(whole, F.cross_entropy, [(x, y)])

    return Case(
        net,
        F.cross_entropy,
        [(x.float(), y)],
        right=lambda case: masked(case).traces(),
        right_ggn=lambda case: masked(case).ggn_traces(),
    )


def number_read_off_a_value():
    def scaled(z):
        z = torch.tanh(z)
        return z * z.norm().item()

    return Case(Between(scaled), F.cross_entropy, [_samples()], refused=r"detaches.*\.item\(\)")


class SquaresThatKeepTheSlope(torch.autograd.Function):
    """Squares; the slope is kept from the forward pass."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(2 * x)
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0]


def function_in_the_loss():
    def loss(outputs, targets):
        return SquaresThatKeepTheSlope.apply(outputs - targets).mean()

    batch = (torch.randn(8, 3), torch.randn(8, 2))
    return Case(mlp(), loss, [batch], refused="SquaresThatKeepTheSlope")
