"""Looks and scales: what a reader must be able to tell apart, and labels that fit."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure as Canvas

from hesstheory.show import axes, critical_probes, layers, scales, tied_bias


def test_many_names_are_told_apart():
    """By colour and marker together, in print and for colour-blind readers."""
    chosen = axes.looks([f"block {n}" for n in range(20)])
    assert len({(look["color"], look["marker"]) for look in chosen.values()}) == 20


def test_colours_stand_out_on_white():
    luminance = np.array([0.2126, 0.7152, 0.0722])
    for colour in (*axes.COLOURS, axes.GREY):
        linear = np.power(to_rgb(colour), 2.2)  # the sRGB curve, nearly
        assert 1.05 / (linear @ luminance + 0.05) > 2, colour


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("a$b", r"a\$b"), ("_hidden", " _hidden"), ("x" * 40, "x" * 29 + "…"), ("plain", "plain")],
)
def test_names_are_made_fit_to_draw(name, drawn):
    assert axes.shortened(name) == drawn


@pytest.mark.parametrize(("count", "columns"), [(3, 3), (7, 4), (8, 4)])
def test_rows_of_a_legend_are_about_equally_long(count, columns):
    canvas = Canvas(figsize=(7.0, 3.0), layout="constrained")
    axes.legend_below(canvas, [axes.dot(f"{n:08d}", marker="o") for n in range(count)])
    (legend,) = canvas.legends
    assert legend._ncols == columns
    assert canvas.get_size_inches()[1] > 3.0


@pytest.mark.parametrize(
    ("limits", "labels"),
    [((1.0, 30.0), ["1", "2", "5", "10", "20"]), ((1e-6, 3e-6), [r"$1\cdot 10^{-6}$"])],
)
def test_narrow_logarithmic_axes_have_plain_labels(limits, labels):
    ax = Canvas().subplots()
    ax.plot(limits, limits)
    scales.log_axes(ax)
    ax.set_xlim(*limits)
    shown = [text.get_text() for text in ax.get_xticklabels()]
    assert [label for label in labels if label not in shown] == []


def test_one_value_has_room_on_a_logarithmic_axis():
    ax = Canvas().subplots()
    ax.plot([3.0], [3.0], "o")
    scales.log_axes(ax)
    low, high = ax.get_xlim()
    assert low < 3.0 / 1.5
    assert high > 3.0 * 1.5


def test_traces_of_either_sign_share_one_scale():
    ax = Canvas().subplots()
    scales.signed_scale(ax, np.array([-0.02, 0.5, 900.0]))
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xscale() == ax.get_yscale() == "symlog"
    ticks = ax.get_xticks()
    assert min(ticks) < 0 < max(ticks)


def test_labels_of_large_traces_do_not_touch():
    """Where −10² and −10³ would lie beside each other, only −10³ is labelled."""
    canvas = Canvas(figsize=(2.5, 3.0))
    ax = canvas.subplots()
    ax.plot([-2500.0, 20000.0], [0.0, 1.0])
    layers._symmetric(ax, 12.0)
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert len(boxes) >= 3


# --- the map of K* --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "–"),
        (math.inf, "∞"),
        (0.123, "0.12"),
        (5.04, "5.0"),
        (42.4, "42"),
        (9949.0, "9949"),
        (9950.0, "10k"),
        (2e7, "2e7"),
    ],
)
def test_counts_are_short(value, text):
    assert critical_probes._written(value) == text


def test_counts_are_readable_on_their_colour():
    """Dark cells have white numbers; pale ones and cells without a count have black ones."""
    cells = np.array([[0.07, 7.0, 25.0, 700.0, math.nan]])
    inks = critical_probes._inks(cells, LogNorm(0.07, 700.0))
    assert inks.tolist() == [["white", "black", "black", "white", "black"]]


# --- tied weights ---------------------------------------------------------------------------------


def test_examples_of_one_name_are_told_apart():
    frame = pd.DataFrame(
        [
            ("parallel", "weight", 2.0, "bias −"),
            ("parallel", "weight", 2.0, "bias +"),
            ("single", "weight", 2.0, "T = 2"),
            ("rnn", "weight", 8.0, "untrained"),
        ],
        columns=["example", "tensor", "instances", "stage"],
    )
    assert tied_bias._labels(frame) == [
        "parallel, weight × 2, bias −",
        "parallel, weight × 2, bias +",
        "single, weight × 2",
        "rnn, weight × 8, untrained",
    ]
