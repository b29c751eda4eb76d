# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tied weights: the trace that is lost between two uses
#
# A recurrent network uses one matrix at every step, a tied autoencoder uses it once to encode and
# once to decode.
# Call the tensor $w$ and its uses $r=1,\dots,T$. Pretend for a moment that every use had a tensor
# $w_r$ of its own.
# The Hessian of this *unrolled* network has blocks $U_{rs}=\partial^2R/\partial w_r\partial w_s$,
# and the chain rule
# with $w_1=\dots=w_T=w$ gives
#
# $$H_w=\sum_{r=1}^{T}\sum_{s=1}^{T}U_{rs}.$$
#
# A program that does not know of the tie treats the uses as separate tensors, each with a probe of
# its own. It
# estimates $\sum_r\operatorname{tr}U_{rr}$ and is off by (claim T7)
#
# $$\text{bias}=\sum_r\operatorname{tr}U_{rr}-\operatorname{tr}H_w=-\sum_{r\ne
# s}\operatorname{tr}U_{rs}.$$
#
# More probes do not help, and the sign can be anything. Here is the smallest example of each sign,
# what bounds the
# bias, and the ways in which PyTorch code loses a tie. Every expectation below is an average over
# **all** sign
# vectors, so nothing is left to chance.

# %%
import copy
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from hesstheory import LayerwiseTrace, Problem, hessian, theory, unrolled_hessian, zoo
from hesstheory.estimators.enumerations import all_signs

EPS = np.finfo(np.float64).eps
generator = torch.Generator().manual_seed(0)


def same(left, right, magnitude, terms=5000):
    """Equal up to rounding: `terms` additions whose absolute values add up to `magnitude`."""
    return abs(float(left) - float(right)) <= terms * EPS * float(magnitude)


# %% [markdown]
# ## One number, used twice in a row
#
# $f=w_2w_1$ with the loss $\tfrac12f^2$ at $w_1=w_2=1$. The second derivatives are
# $U_{11}=w_2^2=1$, $U_{22}=w_1^2=1$
# and $U_{12}=2w_1w_2=2$. The tied loss is $\tfrac12w^4$, with second derivative $6w^2=6=1+1+2+2$.
# Separate probes
# report $1+1=2$: a bias of $-4$.

# %%
w = torch.ones(2, dtype=torch.float64, requires_grad=True)
U = torch.autograd.functional.hessian(lambda w: 0.5 * (w[0] * w[1]) ** 2, w).reshape(2, 1, 2, 1)

assert U.flatten().tolist() == [1, 2, 2, 1]
assert float(U.sum()) == 6, "the sum of all blocks is the Hessian of the tied weight"
assert float(theory.tied_bias(U)) == -4
U.reshape(2, 2)

# %% [markdown]
# ## Two uses side by side: every sign
#
# $f=Wx_1+Wx_2$ with the loss $\tfrac12\lVert f-y\rVert^2$, $d$ outputs. Then
# $\operatorname{tr}U_{rs}=d\cdot\operatorname{mean}(x_r\cdot x_s)$: the bias is
# $-2d\operatorname{mean}(x_1\cdot
# x_2)$, and the correlation of the two inputs alone decides the sign. Let $x_2$ have the length of
# $x_1$ and the
# angle $\phi$ to it, and turn it.
#
# $U$ is positive semidefinite here, since the loss is convex in the outputs and the outputs are
# linear in $W$. Then
# the bias is bounded (claim T8):
#
# $$-(T-1)\sum_r\operatorname{tr}U_{rr}\;\le\;\text{bias}\;\le\;\sum_r\operatorname{tr}U_{rr}.$$
#
# The upper bound is $\operatorname{tr}H_w\ge0$, the lower one Cauchy-Schwarz. Both are attained: by
# opposite and by
# equal inputs.

# %%
W = torch.randn(2, 2, generator=generator, dtype=torch.float64)
x1 = torch.randn(33, 2, generator=generator, dtype=torch.float64)
turned = torch.stack([-x1[:, 1], x1[:, 0]], dim=1)


def side_by_side(cosine):
    x2 = cosine * x1 + (1 - cosine**2) ** 0.5 * turned
    return Problem(
        zoo.TwoUses(W, series=False), zoo.half_squared_error, [(torch.stack([x1, x2], dim=1), x1)]
    )


def untied(problem):
    """The same network with a copy of the weight in each module, as if the tie were lost."""
    model = copy.deepcopy(problem.model)
    model.second.weight = nn.Parameter(model.first.weight.detach().clone())
    return Problem(model, problem.loss_fn, problem.batches)


def mean_over_all_signs(problem):
    return float(LayerwiseTrace()(problem, probes=all_signs(problem.num_params)).value.sum())


curve = []
for cosine in np.linspace(-1, 1, 21):
    tied = side_by_side(cosine)
    U = unrolled_hessian(tied, "first.weight")
    bounds = theory.tied_bias_bounds(U)
    own = float(U.abs().sum())
    truth = float(hessian(tied).to_dense().trace())
    right = mean_over_all_signs(tied)
    wrong = mean_over_all_signs(untied(tied))
    assert same(right, truth, own), "one leaf, one probe: no bias"
    assert same(wrong - right, theory.tied_bias(U), own)
    assert same(wrong - right, -4 * cosine * x1.square().sum(1).mean(), own), (
        "-2 d mean(x1 . x2) with d = 2"
    )
    assert (
        float(bounds.low) - 5000 * EPS * own
        <= wrong - right
        <= float(bounds.high) + 5000 * EPS * own
    )
    curve.append(
        {
            "cosine": cosine,
            "bias": wrong - right,
            "low": float(bounds.low),
            "high": float(bounds.high),
        }
    )
curve = pd.DataFrame(curve)

assert curve["bias"].min() < 0 < curve["bias"].max()
assert same(curve["bias"].iloc[-1], curve["low"].iloc[-1], own), (
    "equal inputs attain the lower bound"
)
assert same(curve["bias"].iloc[0], curve["high"].iloc[0], own), (
    "opposite inputs attain the upper bound"
)

fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
ax.plot(
    curve["cosine"],
    -4 * curve["cosine"] * float(x1.square().sum(1).mean()),
    color="#0072B2",
    label="formula",
)
ax.plot(curve["cosine"], curve["bias"], "o", color="#0072B2", ms=4, label="all sign vectors")
ax.fill_between(
    curve["cosine"], curve["low"], curve["high"], color="grey", alpha=0.15, label="bounds (T8)"
)
ax.axhline(0, color="black", lw=0.8)
ax.set(xlabel=r"cosine between the inputs of the two uses", ylabel="bias of separate probes")
_ = ax.legend(fontsize=8)

# %% [markdown]
# ## Two uses in a row: every sign again
#
# In series, $f=WWx$, the unrolled Hessian also holds the residual $f-y$ and need not be
# semidefinite: the bounds do
# not apply and `tied_bias_bounds` refuses. The hand example above leaves them: its bias is $-4$
# with
# $\sum_r\operatorname{tr}U_{rr}=2$. The zoo builds one pair of ties, parallel and in series, for
# each sign.

# %%
outside = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64).reshape(2, 1, 2, 1)
try:
    theory.tied_bias_bounds(outside)
except ValueError as error:
    print(error)
else:
    raise AssertionError("an indefinite U has no bounds")
assert float(theory.tied_bias(outside)) < -float(outside[0, 0, 0, 0] + outside[1, 0, 1, 0])

rows = []
for sign in (1, -1, 0):
    for pair in zoo.tied_pairs(sign, generator):
        U = unrolled_hessian(pair.problem, "first.weight")
        own = U.abs().sum()
        right = mean_over_all_signs(pair.problem)
        wrong = mean_over_all_signs(untied(pair.problem))
        rows.append({"tie": pair.name, "sign": sign, "one probe": right, "separate probes": wrong})
        assert same(right, pair.trace, own)
        assert same(wrong - right, pair.bias, own)
        assert same(theory.tied_bias(U), pair.bias, own)
        assert np.sign(wrong - right) == sign or (sign == 0 and same(wrong, right, own))
signs = pd.DataFrame(rows).assign(
    bias=lambda table: (table["separate probes"] - table["one probe"]).round(12) + 0.0
)

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
place = np.arange(len(signs))
ax.bar(
    place - 0.18,
    signs["one probe"],
    0.36,
    color="#0072B2",
    label=r"tie kept: $\operatorname{tr}H_w$",
)
ax.bar(place + 0.18, signs["separate probes"], 0.36, color="#D55E00", label="tie lost")
ax.set_xticks(
    place,
    [f"{tie}\nbias {bias:+.2f}" for tie, bias in zip(signs["tie"], signs["bias"], strict=True)],
)
ax.set_ylabel("mean over all sign vectors")
ax.legend(fontsize=8)
signs

# %% [markdown]
# **The cure without rewriting the network** is to copy *one* probe to all uses. Then $\mathbb
# E\sum_{rs}z^\top
# U_{rs}z=\sum_{rs}\operatorname{tr}U_{rs}=\operatorname{tr}H_w$.

# %%
pair = zoo.tied_pairs(-1, generator)[1]
U = unrolled_hessian(pair.problem, "first.weight")
z = all_signs(4)
copied = torch.einsum("ik,risj,jk->k", z, U, z).mean()
Z = all_signs(8).reshape(2, 4, -1)
separate = torch.einsum("rik,risj,sjk->k", Z, U, Z).mean()

assert same(copied, pair.trace, U.abs().sum())
assert same(separate, pair.trace + pair.bias, U.abs().sum())
print(
    f"exact {pair.trace:.6f}; one probe for both uses {float(copied):.6f}; separate probes "
    f"{float(separate):.6f}"
)

# %% [markdown]
# ## A recurrent network on the digits
#
# The rows of a digit are read one after another, so the recurrent matrix is used seven times. The
# heat map shows
# $\operatorname{tr}U_{rs}$: everything off the diagonal is lost by separate probes.

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.4), layout="constrained")
for ax, steps in zip(axes, (0, 300), strict=True):
    recurrent = zoo.problem("rnn", torch.Generator().manual_seed(1), steps=steps)
    U = unrolled_hessian(recurrent, "recurrent.weight")
    traces = torch.einsum("risi->rs", U).numpy()
    truth = float(hessian(recurrent).block("recurrent", "recurrent").trace())
    bias = float(theory.tied_bias(U))
    assert U.shape[0] == 7, "eight rows, and the first step has no state to multiply"
    assert same(traces.sum(), truth, U.abs().sum())
    assert same(traces.trace() - truth, bias, U.abs().sum())
    assert abs(bias) > 0.05 * abs(truth), "on this network the loss of the tie is visible"
    largest = np.abs(traces).max()
    image = ax.imshow(traces, cmap="RdBu_r", vmin=-largest, vmax=largest)
    stage = f"trained {steps} steps" if steps else "untrained"
    ax.set_title(f"{stage}: $\\operatorname{{tr}}H_w$ = {truth:.2f},\nbias {bias:+.2f}")
    ax.set(xlabel="use $s$", ylabel="use $r$")
    fig.colorbar(image, ax=ax, shrink=0.8)

# %% [markdown]
# ## How PyTorch code loses a tie
#
# The trap is always the same: the derivative is taken in something else than the one leaf tensor
# that all uses share.
# Each of the following looks reasonable. `trace_in` is exact: it differentiates the loss twice in
# the listed tensors
# and takes the trace.


# %%
def trace_in(loss, leaves):
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    total = 0.0
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            entries = [
                torch.autograd.grad(g, leaf, retain_graph=True)[0].flatten()
                for g in gradient.flatten()
            ]
            total += float(torch.stack(entries).trace())
    return total


pair, _ = zoo.tied_pairs(1, generator)
model = pair.problem.model
loss_fn = pair.problem.loss_fn
(first, *_) = pair.problem.batches
problem = Problem(model, loss_fn, [first])
inputs, targets = first
U = unrolled_hessian(problem, "first.weight")
truth = float(torch.einsum("risi->", U))
separate = float(torch.einsum("riri->", U))
found = {}

# %% [markdown]
# 1. **Listing parameters with duplicates.** `named_parameters(remove_duplicate=False)` names the
#    one leaf twice, and
#    its whole trace is counted once per name.

# %%
duplicates = [p for _, p in model.named_parameters(remove_duplicate=False)]
found["named_parameters(remove_duplicate=False)"] = trace_in(
    loss_fn(model(inputs), targets), duplicates
)
assert same(found["named_parameters(remove_duplicate=False)"], 2 * truth, U.abs().sum())

# %% [markdown]
# 2. **A functional call with a tensor for every name.** `functional_call(..., tie_weights=False)`
#    puts separate
#    tensors into the two modules.

# %%
leaves = {
    name: p.detach().clone().requires_grad_()
    for name, p in model.named_parameters(remove_duplicate=False)
}
outputs = functional_call(model, leaves, (inputs,), tie_weights=False)
found["functional_call(tie_weights=False)"] = trace_in(
    loss_fn(outputs, targets), list(leaves.values())
)
assert same(found["functional_call(tie_weights=False)"], separate, U.abs().sum())

# %% [markdown]
# 3. **Two `nn.Parameter`s over one storage.** They share numbers, so training even looks right for
#    a while, but
#    autograd sees two leaves. `Problem` notices and refuses.

# %%
twins = copy.deepcopy(model)
twins.second.weight = nn.Parameter(twins.first.weight.data)
found["two nn.Parameters over one storage"] = trace_in(
    loss_fn(twins(inputs), targets), list(twins.parameters())
)
assert same(found["two nn.Parameters over one storage"], separate, U.abs().sum())
try:
    Problem(twins, loss_fn, [first])
except ValueError as error:
    print(error)
else:
    raise AssertionError("two parameters over one storage must be refused")

# %% [markdown]
# 4. **Differentiating in a parametrised tensor.** A weight under `torch.nn.utils.parametrize` is
#    computed anew at
#    every access: the tensor that `module.weight` returns is not the one that the forward pass
#    used. With
#    `allow_unused=True` the answer is a silent zero. The leaf is
#    `parametrizations.weight.original`, which is what
#    `Problem` lists.


# %%
class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


parametrised = copy.deepcopy(model)
torch.nn.utils.parametrize.register_parametrization(parametrised.first, "weight", Doubled())
parametrised.second = parametrised.first  # module reuse keeps the tie
loss = loss_fn(parametrised(inputs), targets)
found["grad in a parametrised weight, allow_unused=True"] = trace_in(
    loss, [parametrised.first.weight]
)
assert found["grad in a parametrised weight, allow_unused=True"] == 0.0
aware = Problem(parametrised, loss_fn, [first])
assert list(aware.params) == ["first.parametrizations.weight.original"]
# The Hessian in V of a loss that is quadratic in W = 2V is four times the Hessian in W.
assert same(hessian(aware).to_dense().trace(), 4 * truth, 4 * U.abs().sum())

# %% [markdown]
# 5. **Reentrant checkpointing** hides the parameters of the recomputed part from
#    `torch.autograd.grad`. The trace would be a zero again, but `Problem` refuses: the gradient is
#    not that of the forward pass. The other kind of checkpointing is fine.


# %%
class Checkpointed(nn.Module):
    def __init__(self, inner, use_reentrant):
        super().__init__()
        self.inner = inner
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.use_reentrant)


fresh = (inputs.clone(), targets)
kept = Problem(Checkpointed(copy.deepcopy(model), use_reentrant=False), loss_fn, [fresh])
assert same(hessian(kept).to_dense().trace(), truth, U.abs().sum())

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of parameters that the loss does not reach
    reentrant = Checkpointed(copy.deepcopy(model), use_reentrant=True)
    try:
        Problem(reentrant, loss_fn, [fresh])
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    hidden = Problem(reentrant, loss_fn, [fresh], allow_surrogate=True)
assert "use_reentrant=True" in refusal
print(refusal)
found["checkpoint(use_reentrant=True)"] = mean_over_all_signs(hidden)
assert found["checkpoint(use_reentrant=True)"] == 0.0

# %% [markdown]
# **What keeps a tie**: one `nn.Parameter` object in both modules, or one module called twice.

# %%
layer = nn.Linear(2, 2, bias=False).double()
reused = nn.Sequential(layer, nn.Tanh(), layer)
reuse = Problem(reused, zoo.half_squared_error, [(x1, turned)])
assert [*reuse.partition.blocks] == ["0+2"]
U_reuse = unrolled_hessian(reuse, "0.weight")
assert len(U_reuse) == 2
assert same(mean_over_all_signs(reuse), torch.einsum("risi->", U_reuse), U_reuse.abs().sum())

found["library, one shared nn.Parameter"] = mean_over_all_signs(problem)
assert same(found["library, one shared nn.Parameter"], truth, U.abs().sum())
pd.Series(found, name=f"trace, exact value {truth:.4f}").to_frame()

# %% [markdown]
# **What to remember.** A tied tensor is one block, whose trace holds the cross terms between its
# uses. Without them
# the error has any sign, is not random, and no number of probes removes it. In PyTorch:
# differentiate in the leaf,
# list every leaf once. `hesstheory validate T7 T8 T9` decides these statements with mutants.
