"""What the caller has switched: gradients, inference mode, training mode, the default dtype."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from builders import mlp
from kinds.case import Case
from torch import nn
from torch.nn import functional as F


def _batch(number=8, dtype=torch.float64):
    return torch.randn(number, 3).to(dtype), torch.randint(2, (number,))


def _relu_net(*last):
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), *last)


def _shielded(case):
    """Right values are found outside of the mode."""

    def outside(work):
        @torch.inference_mode(False)
        @torch.enable_grad()
        def run(case):
            return work(Case(case.model, case.loss_fn, case.batches))

        return run

    case.right = outside(Case.traces)
    case.right_ggn = outside(Case.ggn_traces)
    return case


def without_gradients():
    return _shielded(
        Case(_relu_net(), F.cross_entropy, [_batch(), _batch(3)], inside=torch.no_grad)
    )


def inference_mode():
    return _shielded(
        Case(_relu_net(), F.cross_entropy, [_batch(), _batch(3)], inside=torch.inference_mode)
    )


@contextmanager
def _default_float32():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def default_dtype_float32():
    return Case(_relu_net(), F.cross_entropy, [_batch(), _batch(3)], inside=_default_float32)


def active_dropout():
    return Case(_relu_net(nn.Dropout()), F.cross_entropy, [_batch()], refused="dropout.*eval")


def batch_norm_in_train_mode():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return Case(net, F.cross_entropy, [_batch()], refused="batch norm.*eval")


def batch_norm_in_eval_mode():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    return Case(net, F.cross_entropy, [_batch(), _batch(3)])


def functional_dropout():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return F.dropout(self.net(x))

    return Case(Drops(), F.cross_entropy, [_batch()], refused="random")
