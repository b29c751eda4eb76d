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
# # Unbiasedness and variance of the layer-wise trace, from scratch
#
# A network of a million parameters has a Hessian $H$ of $10^{12}$ entries, which nobody writes
# down. What autograd
# gives is the product $Hz$ with a vector, at the price of about two gradients. Hutchinson's trick
# turns such products
# into traces: draw a random $z$ with $\mathbb E\,zz^\top=I$, then $\mathbb E\,z^\top
# Hz=\operatorname{tr}H$. Cut $z$
# and $Hz$ along the layers $l=1,\dots,L$ and **one** product gives one number per layer,
#
# $$q_l = z_l^\top (Hz)_l = \sum_{i\in l}\sum_{j} z_i H_{ij} z_j .$$
#
# Two questions: *is the mean of $q_l$ the trace of the diagonal block $H_{ll}$?* and *how much does
# $q_l$ scatter?*
# We answer both without sampling. The network below is so small that **all** sign vectors can be
# tried, so that the
# mean and the variance are finite sums. These are claims T1 to T4 of the catalogue.

# %%
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from hesstheory import (
    Gaussian,
    LayerwiseTrace,
    Partition,
    Problem,
    Rademacher,
    hessian,
    theory,
    zoo,
)
from hesstheory.estimators.enumerations import all_signs, strength_four_signs

EPS = np.finfo(np.float64).eps
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## A network by hand
#
# Two inputs, two tanh units, two classes: $f(x)=W_2\tanh(W_1x+b_1)+b_2$ with cross-entropy. Layer 1
# owns $W_1$ and
# $b_1$, layer 2 owns $W_2$ and $b_2$: 12 parameters, $2^{12}=4096$ sign vectors.


# %%
def normal(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


theta = normal(12)
inputs = normal(20, 2)
targets = torch.arange(20) % 2
rows = {"layer1": slice(0, 6), "layer2": slice(6, 12)}


def risk(theta):
    W1 = theta[0:4].view(2, 2)
    b1 = theta[4:6]
    W2 = theta[6:10].view(2, 2)
    b2 = theta[10:12]
    outputs = torch.tanh(inputs @ W1.T + b1) @ W2.T + b2
    return torch.nn.functional.cross_entropy(outputs, targets)


theta.requires_grad_()
(gradient,) = torch.autograd.grad(risk(theta), theta, create_graph=True)
H = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient]).numpy()

fig, ax = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
largest = np.abs(H).max()
image = ax.imshow(H, cmap="RdBu_r", vmin=-largest, vmax=largest)
ax.axhline(5.5, color="black", lw=1)
ax.axvline(5.5, color="black", lw=1)
ax.set_xticks([2.5, 8.5], ["layer 1", "layer 2"])
ax.set_yticks([2.5, 8.5], ["layer 1", "layer 2"])
ax.set_title("blocks $H_{lm}$ of the Hessian")
fig.colorbar(image)

assert np.abs(H - H.T).max() <= 100 * EPS * largest, "second derivatives commute"

# %% [markdown]
# ## The mean (claim T1)
#
# $\mathbb E\,z_iz_j=\delta_{ij}$ removes every term but $i=j\in l$:
#
# $$\mathbb E\,q_l=\sum_{i\in l}\sum_j H_{ij}\,\mathbb E\,z_iz_j=\sum_{i\in
# l}H_{ii}=\operatorname{tr}H_{ll}.$$
#
# Neither independence nor $\mathbb E\,z=0$ was used, only $\mathbb E\,zz^\top=I$. The average over
# all 4096 sign
# vectors is this expectation, so the two sides may differ by rounding alone: at most (number of
# additions) ×
# $\varepsilon$ × (sum of absolute values).

# %%
Z = np.array(list(product((-1.0, 1.0), repeat=12))).T  # a column is a probe
HZ = H @ Z
q = {layer: (Z[i] * HZ[i]).sum(axis=0) for layer, i in rows.items()}
traces = {layer: np.trace(H[i, i]) for layer, i in rows.items()}

for layer, i in rows.items():
    bound = (12 * 6 + len(Z.T)) * EPS * np.abs(H[i]).sum()
    assert abs(q[layer].mean() - traces[layer]) <= bound, layer

pd.DataFrame(
    {"mean of q over all signs": {k: v.mean() for k, v in q.items()}, "trace of the block": traces}
)

# %% [markdown]
# **A mistake that looks harmless.** Suppose a program re-seeds its generator for every layer, so
# that both layers get
# the same signs. Then $\mathbb E\,z_1z_2^\top=I$ instead of $0$ and the trace of the *cross* block
# slips in: $\mathbb
# E\,q_1=\operatorname{tr}H_{11}+\operatorname{tr}H_{12}$. The error does not shrink with more
# probes.

# %%
half = np.array(list(product((-1.0, 1.0), repeat=6))).T
reseeded = np.vstack([half, half])
wrong = (reseeded[:6] * (H @ reseeded)[:6]).sum(axis=0).mean()
added = np.trace(H[:6, 6:])

assert abs(wrong - (traces["layer1"] + added)) <= 200 * EPS * np.abs(H[:6]).sum()
assert abs(added) > 0.01 * abs(traces["layer1"]), "on this network the mistake is visible"
print(
    f"tr H_11 = {traces['layer1']:.4f}; with re-seeded probes the mean is {wrong:.4f}, off by tr "
    f"H_12 = {added:+.4f}"
)

# %% [markdown]
# ## The variance (claim T2)
#
# Let the entries of $z$ be independent with mean 0, variance 1 and fourth moment $\kappa=\mathbb E
# z_i^4$. Split
# $q_l=z_l^\top H_{ll}z_l+\sum_{m\ne l}z_l^\top H_{lm}z_m$. The parts are uncorrelated, since each
# holds other
# products of entries:
#
# * $\sum_{i\in l}H_{ii}z_i^2$ has variance $(\kappa-1)\sum_{i\in l}H_{ii}^2$, for
#   $\operatorname{Var}z_i^2=\kappa-1$;
# * $2\sum_{i<j\in l}H_{ij}z_iz_j$ has variance $4\sum_{i<j}H_{ij}^2=2\bigl(\lVert
#   H_{ll}\rVert^2-\sum_i
#   H_{ii}^2\bigr)$;
# * $\sum_{i\in l,\,j\in m}H_{ij}z_iz_j$ has variance $\lVert H_{lm}\rVert^2$: every pair occurs
#   **once**, not twice.
#
# Added up,
#
# $$\operatorname{Var}q_l=2\lVert H_{ll}\rVert^2+(\kappa-3)\sum_{i\in l}H_{ii}^2+\sum_{m\ne l}\lVert
# H_{lm}\rVert^2 .$$
#
# The first two terms are the classical variance for the matrix $H_{ll}$ alone. The last one is the
# price of using one
# product for all layers, and the term that is easily forgotten.


# %%
def variance(i, kurtosis):
    own = H[i, i]
    cross = (H[i] ** 2).sum() - (own**2).sum()
    return 2 * (own**2).sum() + (kurtosis - 3) * (np.diag(own) ** 2).sum() + cross


table = {}
for layer, i in rows.items():
    cross = (H[i] ** 2).sum() - (H[i, i] ** 2).sum()
    table[layer] = {
        "all signs": q[layer].var(),
        "formula": variance(i, 1),
        "without the cross term": variance(i, 1) - cross,
        "cross term twice": variance(i, 1) + cross,
        "normal probes, formula": variance(i, 3),
    }
    # Rounding of a variance: that of q times |q|, twice, and of the sum of squares.
    magnitude = 3 * np.abs(H[i]).sum() ** 2
    assert abs(q[layer].var() - variance(i, 1)) <= (12 * 6 + len(Z.T)) * EPS * magnitude, layer
    assert variance(i, 1) - cross < 0.9 * q[layer].var(), (
        "leaving the cross term out is a mistake one can see"
    )

pd.DataFrame(table)

# %% [markdown]
# **Two layers share a product**, so their estimates are correlated:
# $\operatorname{Cov}(q_l,q_m)=\lVert
# H_{lm}\rVert^2\ge0$ (claim T3), since the same products $z_iz_j$ occur in both. Variances and
# covariances together
# make the classical variance of $z^\top Hz$.

# %%
covariance = np.mean(q["layer1"] * q["layer2"]) - q["layer1"].mean() * q["layer2"].mean()
cross = (H[:6, 6:] ** 2).sum()
rounding = 5000 * EPS * np.abs(H).sum() ** 2

assert abs(covariance - cross) <= rounding
parts = variance(rows["layer1"], 1) + variance(rows["layer2"], 1) + 2 * cross
assert abs(parts - variance(slice(0, 12), 1)) <= rounding
print(f"covariance over all signs {covariance:.6f}, squared norm of H_12 {cross:.6f}")

# %% [markdown]
# ## Signs or normal numbers? (claim T4)
#
# $\kappa$ enters only through $\sum H_{ii}^2$. Signs have $\kappa=1$, the least there is, because
# $\kappa=\mathbb E
# z^4\ge(\mathbb E z^2)^2=1$. Normal numbers have $\kappa=3$, and their variance is larger by
# $2\sum_{i\in
# l}H_{ii}^2$. With signs $z_i^2=1$ and the diagonal adds no noise at all.

# %%
draws = torch.randn(12, 200_000, generator=generator, dtype=torch.float64).numpy()
normal_q = {layer: (draws[i] * (H @ draws)[i]).sum(axis=0) for layer, i in rows.items()}

fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for ax, (layer, i) in zip(axes, rows.items(), strict=True):
    low, high = np.quantile(normal_q[layer], [0.002, 0.998])
    bins = np.linspace(low, high, 60)
    ax.hist(
        normal_q[layer],
        bins,
        density=True,
        alpha=0.45,
        color="#D55E00",
        label="normal numbers, 200,000 draws",
    )
    ax.hist(q[layer], bins, density=True, alpha=0.55, color="#0072B2", label="all 4096 signs")
    ax.axvline(traces[layer], color="black", lw=1, label=r"$\operatorname{tr}H_{ll}$")
    ax.axvline(0, color="grey", lw=0.8, ls=":")
    ax.set(title=layer, xlabel="$q_l$ of one probe", yticks=[])
    # The sample variance of n draws has the standard error Var·√((kurtosis − 1)/n).
    # Six of them fail once in 10⁹.
    excess = np.mean((normal_q[layer] - normal_q[layer].mean()) ** 4) / normal_q[layer].var() ** 2
    assert abs(normal_q[layer].var() / variance(i, 3) - 1) < 6 * np.sqrt(
        (excess - 1) / draws.shape[1]
    )
    assert abs(variance(i, 3) - variance(i, 1) - 2 * (np.diag(H[i, i]) ** 2).sum()) <= rounding
axes[1].legend(fontsize=8, loc="upper right")
_ = fig.suptitle("One probe scatters widely, and can be negative where the trace is positive")

# %% [markdown]
# ## The same with the library
#
# `Problem` is the risk of any `nn.Module` over batches; `LayerwiseTrace` estimates all blocks from
# one product per
# probe; `probes=` injects the probes, here all of them; `theory.probe_variance` is the formula
# above, stated once for
# tensors and for symbols. Our hand-made numbers are a second route to the same ones. The batches
# are of unequal sizes
# on purpose: they are weighted by their numbers of samples.

# %%
model = torch.nn.Sequential()
model.add_module("layer1", torch.nn.Linear(2, 2))
model.add_module("act", torch.nn.Tanh())
model.add_module("layer2", torch.nn.Linear(2, 2))
model.double()
torch.nn.utils.vector_to_parameters(theta.detach(), model.parameters())

batches = [(inputs[:13], targets[:13]), (inputs[13:], targets[13:])]
problem = Problem(model, torch.nn.functional.cross_entropy, batches, Partition.by_layer(model))
estimate = LayerwiseTrace()(problem, probes=all_signs(problem.num_params))

for layer, i in rows.items():
    H_ll = torch.tensor(H[i, i])
    cross_blocks = [torch.tensor(H[i, j]) for m, j in rows.items() if m != layer]
    scale = np.abs(H[i]).sum()
    assert abs(estimate.value[layer] - traces[layer]) <= 5000 * EPS * scale
    assert abs(estimate.samples[layer].var(ddof=0) - q[layer].var()) <= 5000 * EPS * 3 * scale**2
    assert (
        abs(float(theory.probe_variance(H_ll, cross_blocks, 1)) - variance(i, 1))
        <= 100 * EPS * scale**2
    )
problem

# %% [markdown]
# In real use there are a few random probes. Each estimate then comes with a standard error $s/\sqrt
# K$ and a Student
# interval; the formula says beforehand what the standard error will be about. An interval of level
# 95 % misses the
# exact trace once in twenty times, so do not be surprised if one does here.

# %%
estimate = LayerwiseTrace(num_probes=50, probe=Rademacher())(problem, generator)
summary = estimate.confidence_interval(0.95).assign(
    estimate=estimate.value,
    stderr=estimate.stderr,
    predicted_stderr=[np.sqrt(variance(i, 1) / 50) for i in rows.values()],
    exact=traces,
)

# Chebyshev: twenty predicted standard errors fail with probability at most 1/400 per layer,
# whatever the distribution.
assert ((summary["estimate"] - summary["exact"]).abs() < 20 * summary["predicted_stderr"]).all()
summary

# %% [markdown]
# ## Is the cross term large on real networks?
#
# Two multilayer perceptrons and a convolutional network on the handwritten digits, before and after
# 300 steps of
# training. $2^P$ sign vectors are too many now, but the variance involves only four entries of $z$
# at a time: an
# *orthogonal array of strength four* holds $4^m>P^2$ sign vectors of which any four entries run
# through all 16
# patterns equally often, so its mean and its variance equal those over all $2^P$ sign vectors.

# %%
records = []
for name in ("tanh_mlp", "relu_mlp", "cnn"):
    for steps in (0, 300):
        case = zoo.problem(name, torch.Generator().manual_seed(1), steps=steps)
        dense = hessian(case).to_dense()
        index = case.index
        signs = strength_four_signs(case.num_params)
        products = dense @ signs
        for l, i in index.items():
            own = dense[i][:, i]
            cross_blocks = [dense[i][:, j] for m, j in index.items() if m != l]
            measured = float((signs[i] * products[i]).sum(0).var(correction=0))
            records.append(
                {
                    "network": name,
                    "stage": f"trained {steps} steps" if steps else "untrained",
                    "layer": l,
                    "measured": measured,
                    "predicted": float(
                        theory.probe_variance(own, cross_blocks, Rademacher().kurtosis(1))
                    ),
                    "without cross term": float(
                        theory.probe_variance(own, [], Rademacher().kurtosis(1))
                    ),
                    "normal probes": float(
                        theory.probe_variance(own, cross_blocks, Gaussian().kurtosis(1))
                    ),
                    "rounding": (case.num_params + signs.shape[1])
                    * EPS
                    * 3
                    * float(dense[i].abs().sum()) ** 2,
                }
            )
layers = pd.DataFrame(records)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
for ax, column in zip(axes, ["predicted", "without cross term"], strict=True):
    for (name, stage), part in layers.groupby(["network", "stage"]):
        colour = {"tanh_mlp": "#0072B2", "relu_mlp": "#D55E00", "cnn": "#009E73"}[name]
        face = "white" if stage == "untrained" else colour
        ax.plot(
            part[column],
            part["measured"],
            "o",
            color=colour,
            markerfacecolor=face,
            label=f"{name}, {stage}",
        )
    ends = [layers["without cross term"].min() / 2, layers["measured"].max() * 2]
    ax.plot(ends, ends, color="black", lw=0.8)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=f"formula, {column}" if column != "predicted" else "formula",
    )
axes[0].set_ylabel(r"$\operatorname{Var}q_l$ over all signs")
axes[1].legend(fontsize=7)

assert ((layers["measured"] - layers["predicted"]).abs() <= layers["rounding"]).all()
assert (layers["normal probes"] >= layers["predicted"]).all()
factor = layers["measured"] / layers["without cross term"]
assert factor.max() > 2, "for some layer the forgotten term is more than half of the variance"
print(
    f"true variance over the one without the cross term: {factor.min():.2f} to {factor.max():.2f}"
)

# %% [markdown]
# **What to remember.** One product per probe serves all layers, without bias, for every probe with
# $\mathbb
# E\,zz^\top=I$ that is independent *across* layers. The noise of a layer is its own $2\lVert
# H_{ll}\rVert^2+(\kappa-3)\sum H_{ii}^2$ plus $\lVert H_{lm}\rVert^2$ for every other layer $m$,
# once. Prefer signs.
# `hesstheory validate T1 T2 T3 T4` decides these statements on all networks of the zoo, with
# mutants that must be
# caught.
