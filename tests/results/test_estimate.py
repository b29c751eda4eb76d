"""Estimates: mappings of traces that know their errors, are shown, saved and loaded."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from hesstheory import Estimate
from hesstheory.results.estimate import as_mapping

SAMPLES = pd.DataFrame({"0": [1.0, 3.0, 5.0], "2": [-1.0, -1.0, -1.0]})


@pytest.fixture
def sampled():
    return Estimate(SAMPLES, num_matvecs=3)


@pytest.fixture
def known():
    return Estimate.exact({"0": 3.0, "2": -1.0}, num_matvecs=9, name="tr H")


# --- a mapping --------------------------------------------------------------------------------


def test_an_estimate_is_a_mapping_of_its_traces(sampled):
    assert dict(sampled) == {"0": 3.0, "2": -1.0}
    assert list(sampled) == ["0", "2"]
    assert list(sampled.items()) == [("0", 3.0), ("2", -1.0)]
    assert len(sampled) == 2
    assert "0" in sampled
    assert "1" not in sampled
    assert type(sampled["0"]) is float


def test_a_block_that_does_not_exist_is_named_beside_those_that_do(sampled):
    with pytest.raises(KeyError, match="no block '1': choose one of 0, 2"):
        sampled["1"]


def test_an_estimate_equals_the_mapping_of_its_traces(sampled, known):
    assert sampled == {"0": 3.0, "2": -1.0}
    assert known == {"2": -1.0, "0": 3.0}
    assert sampled != {"0": 3.0}
    assert sampled != known
    assert sampled != Estimate(SAMPLES + 1, num_matvecs=3)
    with pytest.raises(TypeError, match="unhashable"):
        hash(sampled)


UNEQUAL = {
    "another sample": {"samples": SAMPLES.assign(**{"2": [-2.0, 0.0, -1.0]})},
    "another order": {"samples": SAMPLES[::-1]},
    "another number": {"samples": SAMPLES.iloc[[1]]},
    "another block": {"samples": SAMPLES.rename(columns={"2": "3"})},
    "another cost": {"num_matvecs": 4},
    "another name": {"name": "tr G"},
    "exact": {"samples": SAMPLES.iloc[[1]], "is_exact": True},
}


@pytest.mark.parametrize("change", UNEQUAL.values(), ids=UNEQUAL)
def test_estimates_are_equal_where_all_that_is_known_of_them_is(change):
    """Means may agree where standard errors do not."""
    facts = {"samples": SAMPLES, "num_matvecs": 3, "is_exact": False, "name": None}
    estimate = Estimate(**facts)
    assert estimate == Estimate(**facts | {"samples": SAMPLES[["2", "0"]].copy()})
    assert estimate != Estimate(**facts | change)
    missing = SAMPLES.assign(**{"2": math.nan})
    assert Estimate(missing, 3) == Estimate(missing.copy(), 3)


def test_an_estimate_cannot_be_changed(sampled):
    with pytest.raises(AttributeError):
        sampled.num_matvecs = 0
    with pytest.raises(TypeError):
        sampled["0"] = 0.0


# --- errors ------------------------------------------------------------------------------------


def test_the_standard_error_is_that_of_the_mean(sampled):
    assert sampled.stderr["0"] == pytest.approx(2 / math.sqrt(3))
    assert sampled.stderr["2"] == 0


def test_one_probe_has_no_standard_error():
    assert Estimate(SAMPLES[:1], num_matvecs=1).stderr.isna().all()


def test_exact_traces_have_none_and_intervals_of_no_width(known):
    assert (known.stderr == 0).all()
    interval = known.confidence_interval(0.99)
    assert (interval["low"] == known.value).all()
    assert (interval["high"] == known.value).all()
    assert known.value.name == "tr H"
    assert len(known.samples) == 1


def test_an_exact_estimate_is_built_from_a_series_too(known):
    assert Estimate.exact(known.value, 9, "tr H") == known
    assert Estimate.exact(known.value).num_matvecs == 0


def test_a_nan_among_the_samples_is_not_left_out():
    estimate = Estimate(pd.DataFrame({"0": [1.0, math.nan]}), num_matvecs=2)
    assert math.isnan(estimate["0"])
    assert math.isnan(estimate.stderr["0"])


def test_exact_traces_are_subtracted_from_every_probe(sampled, known):
    errors = sampled - known
    assert errors.samples["0"].tolist() == [-2.0, 0.0, 2.0]
    assert errors.num_matvecs == 12
    assert not errors.is_exact
    assert (known - sampled).samples["0"].tolist() == [2.0, 0.0, -2.0]
    assert (known - known).is_exact
    assert dict(known - known) == {"0": 0.0, "2": 0.0}


def test_as_mapping_pairs_traces_with_errors(known):
    assert as_mapping(known) == {"0": (3.0, 0.0), "2": (-1.0, 0.0)}


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ({"0": [1.0]}, TypeError, "samples is a dict: pass a DataFrame"),
        (pd.DataFrame({"0": []}), ValueError, "samples is empty"),
        (pd.DataFrame([[1.0, 2.0]], columns=["0", "0"]), ValueError, "give every column its own"),
    ],
)
def test_samples_that_are_none(samples, error, message):
    with pytest.raises(error, match=message):
        Estimate(samples, num_matvecs=1)


def test_several_rows_are_not_exact():
    with pytest.raises(ValueError, match=r"3 rows of exact traces: pass one row"):
        Estimate(SAMPLES, num_matvecs=3, is_exact=True)


# --- shown -------------------------------------------------------------------------------------


def test_a_table_has_a_row_per_block(sampled):
    table = sampled.to_frame()
    assert list(table) == ["value", "stderr"]
    assert list(table.index) == ["0", "2"]
    assert table["value"].tolist() == [3.0, -1.0]


def test_a_notebook_shows_a_table_and_what_it_cost():
    shown = Estimate.exact({"<b>": 1.0}, num_matvecs=9, name="tr <H>")._repr_html_()
    assert "Estimate(tr &lt;H&gt;, exact, 9 products)" in shown
    assert "<table" in shown
    assert "<b>" not in shown


# --- saved -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sampled", "known"])
def test_a_saved_estimate_comes_back(kind, request, tmp_path):
    estimate = request.getfixturevalue(kind)
    estimate.save(tmp_path / "traces.npz")
    loaded = Estimate.load(str(tmp_path / "traces.npz"))
    pd.testing.assert_frame_equal(loaded.samples, estimate.samples, check_column_type=False)
    assert loaded.num_matvecs == estimate.num_matvecs
    assert loaded.is_exact == estimate.is_exact
    assert loaded.name == estimate.name
    assert list(tmp_path.iterdir()) == [tmp_path / "traces.npz"]


def test_a_file_holds_numbers_and_json(sampled, tmp_path):
    sampled.save(tmp_path / "traces.npz")
    with np.load(tmp_path / "traces.npz", allow_pickle=False) as file:
        assert file["samples"].dtype == np.float64
        assert json.loads(str(file["meta"]))["blocks"] == ["0", "2"]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickled object was executed",))


def _of_objects(path):
    np.savez(path, samples=np.array([Bomb()]), meta=np.array("{}"))


def _of_another_kind(path):
    np.savez(path, samples=np.ones((1, 1)))


def _of_a_later_layout(path):
    meta = {"format": "hesstheory.Estimate/2"}
    np.savez(path, samples=np.ones((1, 1)), meta=np.array(json.dumps(meta)))


def _cut(path):
    Estimate(SAMPLES, num_matvecs=3).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def _with_a_wrong_byte(path):
    Estimate(SAMPLES, num_matvecs=3).save(path)
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF  # past the header of the first member, in what its checksum covers
    path.write_bytes(bytes(content))


def _with_bytes_behind(path):
    _of_an_estimate(path)
    path.write_bytes(path.read_bytes() + b"\0")


def _with_a_line_behind(path):
    _of_an_estimate(path)
    path.write_bytes(path.read_bytes() + b"PK\x05\x06 and more\n")


def _with_bytes_before(path):
    _of_an_estimate(path)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())


def _twice(path):
    _of_an_estimate(path)
    path.write_bytes(2 * path.read_bytes())


def _of_an_estimate(path):
    Estimate(SAMPLES, num_matvecs=3).save(path)
    assert Estimate.load(path) == Estimate(SAMPLES, num_matvecs=3)


def _of_text(path):
    path.write_text("block,trace\n0,1.0\n")


@pytest.mark.parametrize(
    "write",
    [
        _of_objects,
        _of_another_kind,
        _of_a_later_layout,
        _cut,
        _with_a_wrong_byte,
        _with_bytes_behind,
        _with_a_line_behind,
        _with_bytes_before,
        _twice,
        _of_text,
    ],
)
def test_foreign_and_damaged_files_are_refused(write, tmp_path):
    path = tmp_path / "traces.npz"
    write(path)
    with pytest.raises(ValueError, match=r"holds no Estimate .*: pass a file that Estimate.save"):
        Estimate.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Estimate.load(tmp_path / "none.npz")


def test_a_folder_is_no_file(tmp_path):
    estimate = Estimate.exact({"0": 1.0})
    with pytest.raises(ValueError, match="is a folder: name a file"):
        estimate.save(tmp_path)
    with pytest.raises(ValueError, match="is a folder: name a file"):
        Estimate.load(tmp_path)
