"""Mistakes that the checks of a full-scale run must notice, and rounding that is none."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from full_scale_runs import TINY, quiet

from hesstheory.curvature.matrix import ggn
from hesstheory.harness import show, stages, subject
from hesstheory.harness.course import run
from hesstheory.harness.stages import logit_probes, matrices, products, rows
from hesstheory.harness.subject import Settings
from hesstheory.outputs.gram import DualGram

ROOMS = [
    importlib.import_module(f"hesstheory.harness.stages.{room.name}")
    for room in pkgutil.iter_modules(stages.__path__)
]


def plant(monkeypatch, name, change, rooms=ROOMS):
    """Replaces a function, by what `change` makes of it, in every stage that knows it."""
    knowing = [room for room in rooms if hasattr(room, name)]
    assert knowing, name
    changed = change(getattr(knowing[0], name))
    for room in knowing:
        monkeypatch.setattr(room, name, changed)


def faulty_traces(monkeypatch):
    plant(monkeypatch, "sample_traces", lambda right: lambda *given: 1.001 * right(*given))


def one_trace_for_all_samples(monkeypatch):
    def alike(right):
        return lambda *given: 0 * right(*given) + right(*given).mean()

    plant(monkeypatch, "sample_traces", alike)


def wrong_last_sample(monkeypatch):
    def last_doubled(right):
        def traces(*given):
            found = right(*given)
            found.iloc[-1] *= 2
            return found

        return traces

    plant(monkeypatch, "sample_traces", last_doubled)


# Where products are taken; `exact` names the matrix of its traces, and needs the right one.
PRODUCTS = (matrices, products)


def gauss_newton_for_hessian(monkeypatch):
    plant(monkeypatch, "hessian", lambda right: ggn, PRODUCTS)


class _Bent:
    """A curvature whose products are changed."""

    def __init__(self, matrix, bend):
        self.matrix = matrix
        self.bend = bend

    def __matmul__(self, V):
        return self.bend(self.matrix @ V, V)

    def __getattr__(self, name):
        return getattr(self.matrix, name)


def bent(bend):
    def bent_hessian(monkeypatch):
        def changed(right):
            return lambda problem: _Bent(right(problem), bend)

        plant(monkeypatch, "hessian", changed, PRODUCTS)

    return bent_hessian


def reused_probe(monkeypatch):
    right = subject.Subject.probes

    def probes(self, numbers, purpose="probes"):
        if purpose != "probes":
            return right(self, numbers, purpose)
        return right(self, range(1), purpose).expand(-1, len(numbers))

    monkeypatch.setattr(subject.Subject, "probes", probes)


def shifted_estimates(monkeypatch):
    plant(monkeypatch, "forms", lambda right: lambda *given: right(*given) + 1e4)


def doubled_estimates(monkeypatch):
    plant(monkeypatch, "forms", lambda right: lambda *given: 2 * right(*given))


def wrong_second_group(monkeypatch):
    def doubled_later(right):
        return lambda s, matrix, numbers: (1 + (numbers.start > 0)) * right(s, matrix, numbers)

    plant(monkeypatch, "forms", doubled_later)


def spread_estimates(monkeypatch):
    plant(monkeypatch, "forms", lambda right: lambda *given: 100 * right(*given))


def small_norms(monkeypatch):
    plant(monkeypatch, "row_norms2", lambda right: lambda *given: right(*given) / 2)


def no_sample_traces(monkeypatch):
    zeros = property(lambda self: self.grams.new_zeros(len(self.blocks), 4))
    monkeypatch.setattr(DualGram, "sample_traces", zeros)


def wrong_logit_signs(monkeypatch):
    signs = logit_probes.PartOfSigns
    right = signs.sample
    monkeypatch.setattr(signs, "sample", lambda *given: 9 * right(*given))


@pytest.mark.parametrize(
    ("mistake", "noticed_by"),
    [
        (faulty_traces, "exact traces by two routes"),
        (one_trace_for_all_samples, "exact traces by two routes"),
        (gauss_newton_for_hessian, "H = G + R, probe by probe"),
        (gauss_newton_for_hessian, "central differences"),
        (bent(lambda Y, V: Y + 1e-3 * Y.roll(1, 0)), "symmetry"),
        (bent(lambda Y, V: Y + 1e-6 * Y.norm() * V.square()), "linearity"),
        (bent(lambda Y, V: 1.01 * Y), "central differences"),
        (reused_probe, "probes differ"),
        (doubled_estimates, "H = G + R, probe by probe"),
        (wrong_second_group, "H = G + R, probe by probe"),
        (spread_estimates, "variance as predicted"),
        (small_norms, "norms of products by rows"),
        (no_sample_traces, "exact traces by two routes"),
        (shifted_estimates, "joint z-test of the layers"),
        (wrong_logit_signs, "logit probes"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_mistake_is_noticed(mistake, noticed_by, tmp_path, monkeypatch):
    mistake(monkeypatch)
    settings = Settings(model="vgg11", batch=4, probes=16, width=1, dtype="float64")
    report = run(settings, tmp_path, say=quiet)
    assert report["checks"][noticed_by]["status"] == "failed"
    assert not report["passed"]
    assert noticed_by in show.conclusion(report)


@pytest.mark.parametrize(
    ("mistake", "noticed_by"),
    [
        (doubled_estimates, "estimates are forms of products"),
        (wrong_last_sample, "exact traces by two routes"),
        (wrong_logit_signs, "logit probes"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_mistake_is_noticed_in_sketched_runs(mistake, noticed_by, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 30)
    mistake(monkeypatch)
    report = run(TINY, tmp_path, say=quiet)
    assert report["checks"][noticed_by]["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "changed", "noticed_by"),
    [
        (
            "sample_traces",
            lambda right: lambda *a: 1.000001 * right(*a),
            "exact traces by two routes, in float64",
        ),
        (
            "full_forms",
            lambda right: lambda *a: 1.000001 * right(*a),
            "H = G + R, probe by probe, in float64",
        ),
        (
            "residual",
            lambda right: lambda problem: ggn(problem),
            "H = G + R, probe by probe, in float64",
        ),
        (
            "row_norms2",
            lambda right: lambda *a: 1.000001 * right(*a),
            "norms of products by rows, in float64",
        ),
    ],
)
def test_the_strict_check_of_two_samples_notices_what_float32_hides(
    name, changed, noticed_by, tmp_path, monkeypatch
):
    """A millionth is rounding in float32, and is found in float64."""
    plant(monkeypatch, name, changed)
    report = run(Settings(model="vgg11", batch=4, probes=2, width=1), tmp_path, say=quiet)
    assert report["checks"][noticed_by]["status"] == "failed"


def test_float32_beside_float64_is_noticed(tmp_path, monkeypatch):
    bent(lambda Y, V: 1.01 * Y if Y.dtype == torch.float32 else Y)(monkeypatch)
    report = run(Settings(model="vgg11", batch=4, probes=2, width=1), tmp_path, say=quiet)
    assert report["checks"]["agreement with float64"]["status"] == "failed"


# --- what is no mistake ---------------------------------------------------------------------------


def test_rounding_that_switches_units_is_no_mistake(tmp_path):
    """Seed 0 of these sizes switches a unit in one route and not in the other."""
    settings = Settings(model="resnet18", batch=4, probes=4, width=1)
    report = run(settings, tmp_path, say=quiet)
    assert report["found"]["kinks"]["flipped"] > 0
    assert report["passed"]


def test_rounding_that_switches_units_does_not_spoil_norms(tmp_path):
    """Seed 1132 of these sizes: they change the norm of a product in one layer by a third."""
    report = run(
        Settings(model="resnet18", batch=6, probes=9, width=2, seed=1132), tmp_path, say=quiet
    )
    assert report["found"]["kinks"]["flipped"]
    assert report["passed"]


def test_a_variance_that_is_not_told_from_zero_is_left_out(tmp_path):
    """Seed 102 of these sizes has small layers whose norms are not known well enough."""
    report = run(
        Settings(model="resnet18", batch=6, probes=8, width=1, seed=102), tmp_path, say=quiet
    )
    assert "no variance told from zero" in report["checks"]["joint z-test of the layers"]["detail"]
    assert report["passed"]
    assert None in [row["z"] for row in report["layers"].values()]
