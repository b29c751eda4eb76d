"""Models and slips of practice: scripted, parametrised, stateful, recurrent, of graphs."""

from __future__ import annotations

import warnings

import torch
from builders import mlp
from kinds.case import Case
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

SMOOTH = {"exact H": "tr H may not be tr G"}
GRAPH = {"exact H": "DifferentiableGraph is not known"}


def _batch(number=8, num_in=3, dtype=torch.float64):
    return torch.randn(number, num_in).to(dtype), torch.randint(2, (number,))


def _images(number=5):
    return torch.randn(number, 1, 4, 4), torch.randint(2, (number,))


def _of(net, *batches, **options):
    return Case(net, F.cross_entropy, list(batches), **options)


def class_in_place_of_a_model():
    class Net(nn.Linear):
        pass

    return Case(Net, F.cross_entropy, [_batch()], refused="an instance, not its class")


def class_in_place_of_a_loss():
    return Case(mlp(), nn.CrossEntropyLoss, [_batch()], refused=r"pass CrossEntropyLoss\(\)")


def parallel_model():
    return _of(nn.DataParallel(mlp()), _batch(), refused=r"model\.module")


def inputs_of_two_layouts():
    """Inputs and targets the wrong way round."""
    x, y = _batch()
    return Case(mlp(), F.cross_entropy, [(y, x)], refused="fails on batch 0")


def scripted_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        net = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plain.load_state_dict(net.state_dict())
    return _of(
        net,
        _batch(),
        right=lambda case: _of(plain, *case.batches).traces(),
        right_ggn=lambda case: _of(plain, *case.batches).ggn_traces(),
        refuses=GRAPH,
    )


def scripted_model_in_float32():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        net = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).float())
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).float()
    plain.load_state_dict(net.state_dict())
    return _of(
        net,
        _batch(dtype=torch.float32),
        right=lambda case: _of(plain, *case.batches).traces(),
        right_ggn=lambda case: _of(plain, *case.batches).ggn_traces(),
        refuses=GRAPH | {"hessian": "scripted", "ggn": "scripted"},
    )


def _weight_normed(dtype):
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)
    ).to(dtype)
    return _of(net, _batch(dtype=dtype), refuses=SMOOTH)


def weight_norm():
    return _weight_normed(torch.float64)


def weight_norm_in_float32():
    return _weight_normed(torch.float32)


def old_weight_norm_in_float32():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    net.float()
    x, y = _batch(dtype=torch.float32)
    net(x)

    def plain(case):
        old = case.model[0]
        new = parametrizations.weight_norm(nn.Linear(3, 4))
        with torch.no_grad():
            new.bias.copy_(old.bias)
            new.parametrizations.weight.original0.copy_(old.weight_g)
            new.parametrizations.weight.original1.copy_(old.weight_v)
        last = nn.Linear(4, 2)
        last.load_state_dict(case.model[2].state_dict())
        return _of(nn.Sequential(new, nn.Tanh(), last), (x.double(), y))

    return _of(
        net,
        (x, y),
        right=lambda case: plain(case).traces(),
        right_ggn=lambda case: plain(case).ggn_traces(),
        refuses=SMOOTH,
    )


def spectral_norm_in_eval_mode():
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    return _of(net.eval(), _batch(), refuses=SMOOTH)


class KeepsActivations(nn.Module):
    """Leaves tensors with graphs on itself."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 2)
        self.kept = []

    def forward(self, x):
        self.last = torch.relu(self.a(x))
        self.kept.append(self.last)
        return self.b(self.last)


class KeepsNothing(KeepsActivations):
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def module_that_keeps_activations_in_float32():
    net = KeepsActivations().float()
    x, y = _batch(dtype=torch.float32)
    net(x)

    def plain(case):
        other = KeepsNothing().float()
        other.load_state_dict(case.model.state_dict())
        return _of(other, *case.batches)

    return _of(
        net,
        (x, y),
        right=lambda case: plain(case).traces(),
        right_ggn=lambda case: plain(case).ggn_traces(),
    )


class StateOfZeros(nn.Module):
    """A recurrence whose first state has the default dtype."""

    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(3, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        h = torch.zeros(len(x), 2)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h)


def state_of_zeros():
    return _of(StateOfZeros(), (torch.randn(6, 3, 3), torch.randint(2, (6,))), refuses=SMOOTH)


def parameter_without_entries():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)
            self.none = nn.Parameter(torch.zeros(0))

        def forward(self, x):
            return self.net(x) + self.none.sum()

    def with_none(traces):
        return {"net": sum(traces.values()), "none": 0.0}

    return _of(
        Net(),
        _batch(),
        right=lambda case: with_none(_of(case.model.net, *case.batches).traces()),
        right_ggn=lambda case: with_none(_of(case.model.net, *case.batches).ggn_traces()),
    )


def frozen_layers():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return _of(net, _batch(), _batch(3))


def circular_padding():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 2),
    )
    return _of(net, _images())


def upsampling_in_one_dimension():
    net = nn.Sequential(
        nn.Conv1d(1, 2, 3),
        nn.Upsample(scale_factor=2, mode="linear"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    return _of(net, (torch.randn(5, 1, 4), torch.randint(2, (5,))))


def upsampling_in_two_dimensions():
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    return _of(net, _images())


def upsampling_in_three_dimensions():
    net = nn.Sequential(
        nn.Conv3d(1, 1, 2),
        nn.Upsample(scale_factor=2, mode="trilinear"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    return _of(net, (torch.randn(5, 1, 2, 2, 2), torch.randint(2, (5,))))


class Scatters(nn.Module):
    """Messages along edges within every sample, added up by scatter."""

    def __init__(self, how):
        super().__init__()
        self.a = nn.Linear(2, 3)
        self.b = nn.Linear(3, 2)
        self.how = how

    def forward(self, x):
        edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
        z = torch.relu(self.a(x))
        index = edges[1][None, :, None].expand(len(z), 5, 3)
        if self.how == "add":
            mixed = torch.zeros_like(z).scatter_add(1, index, z[:, edges[0]])
        else:
            mixed = torch.zeros_like(z).scatter_reduce(1, index, z[:, edges[0]], self.how)
        return self.b(torch.relu(mixed)).sum(1)


def _graphs():
    return torch.randn(5, 4, 2), torch.randint(2, (5,))


def graph_network_that_adds():
    return _of(Scatters("add"), _graphs())


def graph_network_that_takes_the_largest():
    return _of(Scatters("amax"), _graphs())


def graph_network_that_averages():
    return _of(Scatters("mean"), _graphs())


def hard_sigmoid():
    """PyTorch has no second derivative of it."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 2))
    no = "relu6"
    return _of(
        net,
        _batch(),
        refuses={"H": no, "R": no, "ggn": no, "exact H": no, "LayerwiseTrace of G": no},
    )


def recurrent_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.GRU(3, 2, batch_first=True)
            self.head = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(self.body(x)[0][:, -1])

    return _of(Net(), (torch.randn(6, 3, 3), torch.randint(2, (6,))), refuses=SMOOTH)


def transformer_layer():
    net = nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    return _of(net.eval(), (torch.randn(4, 3, 4), torch.randint(2, (4,))), refuses=SMOOTH)


def unused_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)
            self.idle = nn.Linear(2, 2)

        def forward(self, x):
            return self.net(x)

    def with_idle(traces):
        return {"net": sum(traces.values()), "idle": 0.0}

    return _of(
        Net(),
        _batch(),
        right=lambda case: with_idle(_of(case.model.net, *case.batches).traces()),
        right_ggn=lambda case: with_idle(_of(case.model.net, *case.batches).ggn_traces()),
        says="does not reach idle",
    )


def outputs_in_a_structure():
    """A dataclass of outputs, as Hugging Face models return them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x):
            f = self.net(x)
            return {"logits": f, "hidden_states": (x, f)}

    def loss(outputs, targets):
        return F.cross_entropy(outputs["logits"], targets)

    no_tensor = "outputs="
    return Case(
        Net(),
        loss,
        [_batch(), _batch(3)],
        refuses={"exact H": no_tensor, "G": no_tensor, "R": no_tensor},
    )


def selected_output_of_a_structure():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x):
            f = self.net(x)
            return {"logits": f, "hidden_states": (x, f)}

    return Case(
        Net(),
        F.cross_entropy,
        [_batch(), _batch(3)],
        {"outputs": lambda out: out["logits"]},
    )
