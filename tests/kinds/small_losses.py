"""Losses near zero: classifiers that have learnt their samples by heart. Right values by mpmath."""

from __future__ import annotations

from functools import partial

import mpmath
import torch
from kinds.case import Case
from torch import nn
from torch.nn import functional as F

SMOOTH = {"exact H": "tr H may not be tr G"}


def _net(num_out, scale, dtype):
    """A net and samples, the logits `scale` times those of a fresh net."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, num_out))
    x = torch.randn(9, 4)
    with torch.no_grad():
        f = net(x)
        net[2].weight.mul_(scale)
        net[2].bias.mul_(scale)
    return net.to(dtype), x.to(dtype), f


def _cross_entropy(scale, dtype):
    net, x, f = _net(3, scale, dtype)
    right = partial(_traces, of_sample=_softmax)
    return Case(
        net,
        F.cross_entropy,
        [(x, f.argmax(1))],
        right=lambda case: right(case)[0],
        right_ggn=lambda case: right(case)[1],
        refuses=SMOOTH,
    )


def _binary(scale, dtype):
    net, x, f = _net(2, scale, dtype)
    right = partial(_traces, of_sample=_sigmoids)
    return Case(
        net,
        F.binary_cross_entropy_with_logits,
        [(x, (f > 0).to(dtype))],
        right=lambda case: right(case)[0],
        right_ggn=lambda case: right(case)[1],
        refuses=SMOOTH,
    )


def _softmax(f, y):
    """Slope and Hessian of cross-entropy in the logits, in the precision of mpmath."""
    e = [mpmath.exp(v) for v in f]
    p = [v / sum(e) for v in e]
    classes = range(len(f))
    k = int(y)
    slope = [p[j] if j != k else -sum(p[i] for i in classes if i != k) for j in classes]
    bent = mpmath.matrix(len(f))
    for i in classes:
        for j in classes:
            others = sum(p[m] for m in classes if m != i)
            bent[i, j] = p[i] * others if i == j else -p[i] * p[j]
    return slope, bent


def _sigmoids(f, y):
    """Slope and Hessian of the mean binary cross-entropy of the entries."""
    up = [1 / (1 + mpmath.exp(-v)) for v in f]
    down = [1 / (1 + mpmath.exp(v)) for v in f]
    slope = [
        (u if not int(t) else -d) / len(f) for u, d, t in zip(up, down, y.tolist(), strict=True)
    ]
    return slope, mpmath.diag([u * d / len(f) for u, d in zip(up, down, strict=True)])


def _traces(case, of_sample):
    """Traces of H and G of both layers, summed over the samples with eighty digits."""
    with mpmath.workdps(80):
        ((inputs, targets),) = case.batches
        W, b = _numbers(case.model[0].weight), _numbers(case.model[0].bias[:, None])
        V, c = _numbers(case.model[2].weight), _numbers(case.model[2].bias[:, None])
        first, of_residual, last = mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(0)
        for x, y in zip(inputs, targets, strict=True):
            column = _numbers(x[:, None])
            h = (W * column + b).apply(mpmath.tanh)
            slope, bent = of_sample(list(V * h + c), y)
            size = 1 + sum(v**2 for v in column)
            last += (1 + sum(v**2 for v in h)) * sum(bent[j, j] for j in range(len(slope)))
            for i in range(len(h)):
                u = V[:, i]
                slope_of_h = 1 - h[i] ** 2
                first += size * (u.T * bent * u)[0] * slope_of_h**2
                drop = -2 * h[i] * slope_of_h
                of_residual += size * sum(s * v for s, v in zip(slope, u, strict=True)) * drop
        N = len(inputs)
        return (
            {"0": float((first + of_residual) / N), "2": float(last / N)},
            {"0": float(first / N), "2": float(last / N)},
        )


def _numbers(values):
    return mpmath.matrix(values.detach().double().tolist())


# Losses from 1 down to 1e-30.
SCALES = (1, 100, 1500)


def _case(loss, scale, dtype):
    def build():
        return loss(scale, dtype)

    return build


TABLE = {
    f"{loss.__name__[1:]}_{scale}_{str(dtype)[6:]}": _case(loss, scale, dtype)
    for loss in (_cross_entropy, _binary)
    for dtype in (torch.float32, torch.float64)
    for scale in SCALES
}
