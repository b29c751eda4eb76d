"""Full scale: every layer and quantity reaches the data, and what is infinite or zero is drawn."""

from __future__ import annotations

import csv
import io

import pytest
from pages import Page

from hesstheory.harness import show
from hesstheory.show import harness_page, layers


def layer(scale, **changes):
    quantities = {
        "exact": scale,
        "estimate": 1.1 * scale,
        "stderr": 0.2 * abs(scale),
        "logit_estimate": 0.99 * scale,
        "logit_stderr": 0.01 * abs(scale),
        "predicted_sd": 0.6 * abs(scale),
        "logit_sd": 1e-5 * abs(scale),
        "variance_ratio": 1.2,
        "variance_low": 1e-4,
        "variance_high": 20.0,
        "k_star": 40.0,
        "k_cost_optimal": 12.0,
    }
    return quantities | changes


@pytest.fixture
def report():
    """What `harness.json` holds, as far as it is shown."""
    return {
        "model": "vgg11",
        "data": "digits",
        "device": "cpu",
        "dtype": "float64",
        "batch": 4,
        "num_params": 1234,
        "matrix": "H",
        "settings": {"steps": 0, "width": 8, "probes": 10},
        "layers": {
            "conv": layer(300.0),
            "norm": layer(-2.0, k_star=None),
            "dead": layer(0.0, variance_ratio=None, surplus=1.0),
        },
        "checks": {
            "symmetry": {"kind": "exact", "status": "passed", "detail": "1e-16"},
            "K in [5, 10]": {"kind": "empirical", "status": "reported", "detail": "0 of 3"},
        },
        "passed": True,
        "processes": 1,
        "peak_memory_bytes": 2.5e9,
        "seconds": {"one gradient": 0.5},
        "gradients": {"one gradient": 1.0},
        "provenance": {"python": "3.11"},
        "precision": {"matmul": "highest"},
        "threads": 1,
    }


def test_the_data_hold_every_quantity_of_every_layer(report):
    figure = layers.draw_layers(report, "a title")
    rows = list(csv.DictReader(io.StringIO(figure.csv, newline="")))
    assert [row["layer"] for row in rows] == ["conv", "norm", "dead"]
    for row, values in zip(rows, report["layers"].values(), strict=True):
        for quantity in (*layer(1.0), "surplus"):
            value = values.get(quantity)
            assert row[quantity] == ("" if value is None else str(value))


def test_a_rerun_gives_the_same_bytes(report):
    assert layers.draw_layers(report, "a title") == layers.draw_layers(report, "a title")


def test_one_layer_is_enough(report):
    report["layers"] = {"fc": layer(1.0)}
    assert layers.draw_layers(report, "a title").png.startswith(b"\x89PNG")


def test_layers_without_any_curvature_are_drawn(report):
    report["layers"] = {"a": layer(0.0), "b": layer(0.0)}
    assert layers.draw_layers(report, "a title").png.startswith(b"\x89PNG")


def test_the_page_shows_checks_layers_and_costs_and_loads_nothing(report):
    report["checks"]["<script>"] = {"kind": "exact", "status": "failed", "detail": "<b>"}
    figure = layers.draw_layers(report, "a title")
    page = Page(harness_page.render(report, figure))
    assert page.open == []
    words = ("a title", "symmetry", "0 of 3", "conv", "dead", "one gradient", "3.11", "2.50 GB")
    assert [word for word in words if word not in page.text] == []
    assert "–" in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "b"}
    assert all(source.startswith("data:image/png;base64,") for source in page.all_of("src"))


def test_the_run_is_written_where_it_says(report, tmp_path):
    paths = show.write(report, tmp_path / "run")
    assert [path.relative_to(tmp_path / "run").as_posix() for path in paths] == [
        "layers.csv",
        "figures/layers.png",
        "figures/layers.svg",
        "index.html",
    ]
    assert sorted(paths) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    title = "vgg11 of width 8, 1,234 parameters, untrained, 4 images of digits, float64 on cpu"
    assert title in paths[-1].read_text(encoding="utf-8")


def test_lines_and_conclusion(report):
    assert show.lines(report) == ["passed    symmetry: 1e-16", "reported  K in [5, 10]: 0 of 3"]
    assert show.conclusion(report).startswith("all 1 checks held: vgg11")
    report["checks"]["symmetry"]["status"] = "failed"
    assert show.conclusion(report) == "did not hold: symmetry"
    report["settings"] |= {"steps": 5, "width": 64}
    assert "vgg11, 1,234 parameters, after 5 steps" in show.title(report)
