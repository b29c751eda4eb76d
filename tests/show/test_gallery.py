"""Figures: all rows reach the data, a rerun gives the same bytes, no record breaks a drawing."""

from __future__ import annotations

import csv
import io
import math

import matplotlib
import matplotlib.pyplot
import pytest
from records import CLAIM_OF, ROWS, synthetic_check, synthetic_claims, synthetic_run

from hesstheory.show import gallery
from hesstheory.show.figures import Figure, file_names


def data_of(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv, newline="")))


def rows_of_first_check(claim):
    return claim["checks"][0]["rows"]


def test_every_table_has_one_figure(drawn):
    assert {figure.name for figure in drawn} == set(gallery.FIGURE_OF_TABLE.values())
    assert set(gallery.FIGURE_OF_TABLE) == set(ROWS)
    for figure in drawn:
        assert figure.svg.startswith(b"<?xml")
        assert figure.png.startswith(b"\x89PNG")
        assert figure.csv


def test_a_figure_names_its_files(drawn):
    names = [name for figure in drawn for name in figure.files]
    assert sorted(names) == sorted(gallery.all_file_names())
    first = drawn[0]
    assert tuple(first.files) == file_names(first.name)
    assert list(first.files.values()) == [first.svg, first.png, first.csv]


@pytest.mark.parametrize("table", ROWS)
def test_the_data_hold_every_row_unchanged(table, drawn):
    figure = next(f for f in drawn if f.name == gallery.FIGURE_OF_TABLE[table])
    claim = next(record for record in synthetic_run() if record.get("id") == CLAIM_OF[table])
    (rows,) = [check["rows"] for check in claim["checks"] if check["table"] == table]
    data = data_of(figure)
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


def test_a_rerun_gives_the_same_bytes(drawn):
    assert gallery.draw_all(synthetic_run()) == drawn


@pytest.mark.parametrize(
    "records", [[], [{"record": "run"}], [{"record": "claim", "id": "T1"}], [{"record": "end"}]]
)
def test_no_table_means_no_figure(records):
    assert gallery.draw_all(records) == []


def test_unknown_and_empty_tables_are_left_out():
    checks = [
        synthetic_check("unheard of", [{"a": 1}]),
        synthetic_check("power", []),
        {"table": "power", "rows": None},
    ]
    assert gallery.draw_all([{"record": "claim", "id": "T1", "checks": checks}]) == []


@pytest.mark.parametrize("table", ROWS)
@pytest.mark.parametrize("damage", ["missing", "nan", "zero", "infinite", "negative"])
def test_rows_that_cannot_be_drawn_stay_in_the_data_and_are_counted(table, damage):
    plot = next(p for p in gallery.PLOTS if p.table == table)
    values = {"nan": math.nan, "zero": 0.0, "infinite": math.inf, "negative": -1.0}
    (claim,) = synthetic_claims(table)
    rows = rows_of_first_check(claim)
    del rows[4:]
    rows[0] = {
        key: values[damage] if key in plot.numbers else old
        for key, old in rows[0].items()
        if damage in values
    }
    (figure,) = gallery.draw_all([claim])
    data = data_of(figure)
    hidden = sum(line["drawn"] == "False" for line in data)
    assert len(data) == len(rows)
    assert f"{len(rows)} rows." in figure.caption
    assert (f"{hidden} of them cannot" in figure.caption) == (hidden > 0)


@pytest.mark.parametrize("table", ROWS)
def test_one_row_is_enough_and_none_drawable_is_said(table):
    (claim,) = synthetic_claims(table)
    del rows_of_first_check(claim)[1:]
    assert len(gallery.draw_all([claim])) == 1
    claim["checks"][0]["rows"] = [{"network": "only a name"}]
    (figure,) = gallery.draw_all([claim])
    assert [line["drawn"] for line in data_of(figure)] == ["False"]
    assert "1 of them cannot" in figure.caption


def test_a_repeated_cell_of_the_map_is_not_drawn_twice():
    (claim,) = synthetic_claims("critical_probes")
    rows = rows_of_first_check(claim)
    rows.append({**rows[0], "k_star": 1.0})
    (figure,) = gallery.draw_all([claim])
    assert data_of(figure)[-1]["drawn"] == "False"


def test_names_are_drawn_as_text_not_as_mathematics():
    """A dollar sign in a layer name must not start a formula."""
    (claim,) = synthetic_claims("crossover")
    rows_of_first_check(claim)[0] |= {
        "network": "cost $x_{",
        "block": "a$b",
        "stage": "$\\nothing$",
    }
    assert len(gallery.draw_all([claim])) == 1


def test_settings_of_the_caller_are_untouched():
    before = dict(matplotlib.rcParams)
    gallery.draw_all(synthetic_claims("power", "critical_probes"))
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []


# --- figures of other commands --------------------------------------------------------------------


def test_the_kill_matrix_shows_every_pair():
    pairs = [("reused_probe", "check_unbiased", 1.0), ("reused_probe", "check_signs", 0.0)]
    pairs += [("unnoticed", "check_unbiased", 0.0), ("unnoticed", "check_signs", 0.0)]
    rows = [dict(zip(("mutant", "check", "killed"), pair, strict=True)) for pair in pairs]
    figure = gallery.draw_kill_matrix(rows)
    data = data_of(figure)
    assert [(line["mutant"], line["noticed_by"], float(line["killed"])) for line in data] == pairs
    assert figure.claims == ()


def test_a_long_kill_matrix_is_drawn():
    rows = [{"mutant": f"wrong_{n}", "check": "check_one", "killed": 1.0} for n in range(41)]
    assert len(data_of(gallery.draw_kill_matrix(rows))) == 41


def test_the_frontier_keeps_rows_that_it_cannot_draw():
    rows = [
        {"problem": "a", "way": "exact_traces", "kind": "exact", "work": 8.0, "error": None},
        {"problem": "a", "way": "LayerwiseTrace", "kind": "ours", "work": 2.0, "error": 0.5},
        {"problem": "a", "way": "curvlinops", "kind": "peer", "work": 7.0, "error": math.inf},
    ]
    figure = gallery.draw_frontier(rows)
    assert [line["drawn"] for line in data_of(figure)] == ["True", "True", "False"]
    assert "1 of them cannot stand on these axes" in figure.caption
