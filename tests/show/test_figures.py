"""Guards of the figures: all rows reach the data file, a rerun gives the same bytes, and no figure outlives its run."""

from __future__ import annotations

import ast
import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from hesstheory.show import figures

NETWORKS = {
    "mlp relu 8-6-3": ("fc1", "fc2", "head"),
    "mlp tanh 8-6-6-3": ("fc1", "fc2", "fc3", "head"),
    "small convolution, batch norm": ("conv1", "norm1", "conv2", "norm2", "head"),
    "tied autoencoder": ("up+down", "bias"),
    "attention, 2 heads": ("query", "key", "value", "output", "mlp", "head"),
    "recurrent": ("input", "recurrent", "head"),
}
STAGES = ("untrained", "trained")


def synthetic_rows(table: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    return ROWS[table](rng)


def estimate_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for network, blocks in NETWORKS.items():
        for stage in STAGES:
            for block in blocks:
                exact = float(rng.choice([1, 1, 1, -1]) * 10 ** rng.uniform(-3, 2))
                for probe in ("Rademacher", "Gaussian"):
                    half = abs(exact) * 10 ** rng.uniform(-1.5, -0.3)
                    estimate = exact + half * float(rng.normal()) / 1.96
                    row = {
                        "network": network,
                        "stage": stage,
                        "block": block,
                        "exact": exact,
                        "estimate": estimate,
                    }
                    rows.append(
                        {
                            **row,
                            "low": estimate - half,
                            "high": estimate + half,
                            "num_probes": 64,
                            "probe": probe,
                        }
                    )
    return rows


def variance_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {
            "network": network,
            "stage": stage,
            "block": block,
            "probe": probe,
            "predicted": predicted,
            "measured": measured,
        }
        for network, blocks in NETWORKS.items()
        for stage in STAGES
        for block in blocks
        for probe in ("Rademacher", "Gaussian", "Sphere")
        for predicted in [float(10 ** rng.uniform(-5, 3))]
        for measured in [predicted * float(1 + 0.03 * rng.normal())]
    ]


def tied_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for example, instances, bias in (
        ("shared encoder and decoder", 2, -0.71),
        ("opposed copies", 2, 0.85),
        ("orthogonal copies", 3, 0.0),
        ("recurrent matrix, 4 steps", 4, -1.9),
    ):
        separate = float(10 ** rng.uniform(-1, 2))
        row = {
            "example": example,
            "tensor": "weight",
            "stage": "untrained",
            "instances": instances,
            "exact_trace": separate * (1 - bias),
        }
        row |= {
            "separate_trace": separate,
            "bias": separate * bias,
            "bound_low": -(instances - 1) * separate,
        }
        rows.append({**row, "bound_high": separate})
    return rows


def total_variance_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for network in list(NETWORKS)[:3]:
        for block in NETWORKS[network]:
            k_star, floor = float(10 ** rng.uniform(-0.5, 2.2)), float(10 ** rng.uniform(-4, 1))
            for batch_size in (8, 32):
                for num_probes in (1, 2, 4, 8, 16, 32, 64, 128):
                    predicted = floor * (1 + k_star * batch_size / 8 / num_probes)
                    row = {
                        "network": network,
                        "block": block,
                        "batch_size": batch_size,
                        "num_probes": num_probes,
                    }
                    row |= {
                        "predicted": predicted,
                        "measured": predicted * float(1 + 0.05 * rng.normal()),
                    }
                    rows.append({**row, "k_star": k_star * batch_size / 8, "floor": floor})
    return rows


def budget_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for network in list(NETWORKS)[:2]:
        for ratio in (0.5, 4.0):
            for block in NETWORKS[network]:
                k_star, floor = float(10 ** rng.uniform(-1, 2)), float(10 ** rng.uniform(-3, 0))
                for num_probes in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64):
                    variance = floor * (1 + k_star / num_probes) * (ratio + num_probes) / 1000
                    row = {
                        "network": network,
                        "block": block,
                        "num_probes": num_probes,
                        "variance": variance,
                    }
                    rows.append(
                        {**row, "k_opt": math.sqrt(ratio * k_star), "overhead_ratio": ratio}
                    )
    return rows


def critical_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {"network": network, "block": block, "step": step, "batch_size": size, "k_star": k_star}
        for network in list(NETWORKS)[:4]
        for block in NETWORKS[network]
        for base in [float(10 ** rng.uniform(-1, 2))]
        for step in (0, 50, 400)
        for size in (4, 16, 64, 256)
        for k_star in [
            math.inf if size == 256 and block == "fc1" else base * size**0.7 / 8 * (1 + step / 100)
        ]
    ]


def power_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for draws, scale in (("normal", 0.16), ("lognormal", 0.22), ("Rademacher form", 0.18)):
        for effect in np.linspace(0, 2, 11):
            rate = float(0.5 * (1 + math.erf((effect - 1) / scale / math.sqrt(2))))
            row = {
                "draws": draws,
                "effect": float(effect),
                "rejection_rate": rate,
                "low": max(0.0, rate - 0.03),
            }
            rows.append(
                {
                    **row,
                    "high": min(1.0, rate + 0.03),
                    "theory": rate if draws == "normal" else None,
                }
            )
    return rows


def crossover_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for network, blocks in NETWORKS.items():
        for stage in STAGES:
            for block in blocks:
                separated = float(10 ** rng.uniform(-5, 2))
                ratio = float(10 ** rng.normal(0.1, 0.5))
                row = {
                    "network": network,
                    "stage": stage,
                    "block": block,
                    "separated_variance": separated,
                }
                row |= {
                    "full_variance": separated * ratio,
                    "ratio": ratio,
                    "full_vector_wins": ratio < 1,
                }
                rows.append(row)
    return rows


def gain_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        row | {"probe": ("logit", "residual")[n % 2]} for n, row in enumerate(variance_rows(rng))
    ]


ROWS = {
    "estimates": estimate_rows,
    "variance": variance_rows,
    "tied_bias": tied_rows,
    "total_variance": total_variance_rows,
    "budget": budget_rows,
    "critical_probes": critical_rows,
    "power": power_rows,
    "crossover": crossover_rows,
    "gain": gain_rows,
}
CLAIM_OF = {
    "estimates": "T1",
    "variance": "T2",
    "tied_bias": "T7",
    "total_variance": "T10",
    "budget": "T13",
    "critical_probes": "T12",
    "power": "suite.power",
    "crossover": "T6",
    "gain": "G8",
}


def synthetic_check(table: str, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    check = {
        "name": f"{table} agree",
        "kind": "statistical",
        "status": "passed",
        "detail": f"{len(rows)} comparisons.",
    }
    check |= {
        "discrepancy": 0.0123,
        "bound": 0.05,
        "alpha": 2e-8,
        "power": 0.9993,
        "detectable": 0.061,
    }
    return {**check, "num_draws": 65536, "table": table, "rows": rows, **changes}


def synthetic_claims(*tables: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    return [
        {
            "record": "claim",
            "id": CLAIM_OF[table],
            "checks": [synthetic_check(table, synthetic_rows(table, rng))],
        }
        for table in tables or ROWS
    ]


def data_of(figure: figures.Figure) -> list[dict[str, str]]:
    with figure.csv.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[figures.Figure]:
    return figures.draw_all(synthetic_claims(), tmp_path_factory.mktemp("figures"))


def test_every_table_has_one_figure(drawn: list[figures.Figure]) -> None:
    assert {figure.name for figure in drawn} == set(figures.FIGURE_OF_TABLE.values())
    assert set(figures.FIGURE_OF_TABLE) == set(ROWS)
    assert all(path.stat().st_size > 0 for f in drawn for path in (f.svg, f.png, f.csv))


@pytest.mark.parametrize("table", ROWS)
def test_data_file_holds_every_row_unchanged(table: str, drawn: list[figures.Figure]) -> None:
    figure = next(f for f in drawn if f.name == figures.FIGURE_OF_TABLE[table])
    (claim,) = (c for c in synthetic_claims() if c["id"] == CLAIM_OF[table])
    rows, data = claim["checks"][0]["rows"], data_of(figure)
    assert figure.claims == (CLAIM_OF[table],)
    assert len(data) == len(rows)
    for row, line in zip(rows, data, strict=True):
        for key, value in row.items():
            if value is None:
                assert line[key] == ""
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                assert float(line[key]) == value
            else:
                assert line[key] == str(value)
        assert line["drawn"] == "True"


def test_rerun_gives_the_same_bytes(drawn: list[figures.Figure], tmp_path: Path) -> None:
    again = figures.draw_all(synthetic_claims(), tmp_path)
    for first, second in zip(drawn, again, strict=True):
        for suffix in ("svg", "png", "csv"):
            assert getattr(first, suffix).read_bytes() == getattr(second, suffix).read_bytes(), (
                first.name,
                suffix,
            )


def test_figures_of_an_earlier_run_are_removed_and_other_files_kept(tmp_path: Path) -> None:
    figures.draw_all(synthetic_claims("power", "tied_bias"), tmp_path)
    (tmp_path / "mine.svg").write_text("kept")
    (figure,) = figures.draw_all(synthetic_claims("power"), tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mine.svg", *(path.name for path in (figure.svg, figure.png, figure.csv))}


@pytest.mark.parametrize(
    "records", [[], [{"record": "run"}], [{"record": "claim", "id": "T1"}], [{"record": "end"}]]
)
def test_no_table_means_no_figure(records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert figures.draw_all(records, tmp_path) == []


def test_unknown_and_empty_tables_are_left_out(tmp_path: Path) -> None:
    checks = [
        synthetic_check("unheard of", [{"a": 1}]),
        synthetic_check("power", []),
        {"table": "power", "rows": None},
    ]
    assert figures.draw_all([{"record": "claim", "id": "T1", "checks": checks}], tmp_path) == []


@pytest.mark.parametrize("table", ROWS)
@pytest.mark.parametrize("damage", ["missing", "nan", "zero", "infinite", "negative"])
def test_rows_that_cannot_be_drawn_stay_in_the_data_and_are_counted(
    table: str, damage: str, tmp_path: Path
) -> None:
    plot = next(p for p in figures.PLOTS if p.table == table)
    values = {"nan": math.nan, "zero": 0.0, "infinite": math.inf, "negative": -1.0}
    (claim,) = synthetic_claims(table)
    rows = claim["checks"][0]["rows"]
    del rows[4:]
    rows[0] = {
        key: values[damage] if key in plot.numbers else old
        for key, old in rows[0].items()
        if damage in values
    }
    (figure,) = figures.draw_all([claim], tmp_path)
    data = data_of(figure)
    hidden = sum(line["drawn"] == "False" for line in data)
    assert len(data) == len(rows)
    assert f"{len(rows)} rows." in figure.caption
    assert (f"{hidden} of them cannot" in figure.caption) == (hidden > 0)


@pytest.mark.parametrize("table", ROWS)
def test_one_row_is_enough_and_none_drawable_is_said(table: str, tmp_path: Path) -> None:
    (claim,) = synthetic_claims(table)
    del claim["checks"][0]["rows"][1:]
    assert len(figures.draw_all([claim], tmp_path)) == 1
    claim["checks"][0]["rows"] = [{"network": "only a name"}]
    (figure,) = figures.draw_all([claim], tmp_path)
    assert [line["drawn"] for line in data_of(figure)] == ["False"]
    assert "1 of them cannot" in figure.caption


def test_a_repeated_cell_of_the_map_is_not_drawn_twice(tmp_path: Path) -> None:
    (claim,) = synthetic_claims("critical_probes")
    rows = claim["checks"][0]["rows"]
    rows.append({**rows[0], "k_star": 1.0})
    (figure,) = figures.draw_all([claim], tmp_path)
    assert data_of(figure)[-1]["drawn"] == "False"


def test_names_are_drawn_as_text_not_as_mathematics(tmp_path: Path) -> None:
    """A dollar sign in a layer name must not start a formula."""
    (claim,) = synthetic_claims("crossover")
    claim["checks"][0]["rows"][0] |= {
        "network": "cost $x_{",
        "block": "a$b",
        "stage": "$\\nothing$",
    }
    assert len(figures.draw_all([claim], tmp_path)) == 1


def test_settings_of_the_caller_are_untouched(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures.draw_all(synthetic_claims("power"), tmp_path)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("module", ["figures", "report"])
def test_no_torch_and_no_pyplot(module: str) -> None:
    """Neither in the imports as written nor in what they load."""
    source = Path(figures.__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not {
        name for name in names if name.split(".")[0] == "torch" or name == "matplotlib.pyplot"
    }
    loaded = f"import sys, hesstheory.{module}; sys.exit({{'torch', 'matplotlib.pyplot'}} & set(sys.modules) != set())"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
