"""The page: nothing that was recorded is left out, nothing is loaded, contradictions are said."""

from __future__ import annotations

import base64
import re

import pytest
from pages import Page
from records import FORMULA, RUN, counted_checks, synthetic_run

from hesstheory.show import gallery, pages
from hesstheory.show.text import mathml


def page_of(records, drawn=None):
    page = Page(pages.render(records, drawn or []))
    assert page.open == []
    return page


def shown(records, drawn=()):
    """How many checks stand on the page."""
    return pages.count_checks(pages.render(records, drawn))


def test_every_check_recorded_is_shown(records, drawn):
    text = pages.render(records, drawn)
    assert pages.count_checks(text) == counted_checks(records) == records[-1]["records_run"]
    page = Page(text)
    assert page.state() == "green"
    assert f"{counted_checks(records)} of {counted_checks(records)} checks shown" in page.text


def test_a_lost_check_is_missed_on_the_page(records, drawn):
    """The count is read off the page, not off the records."""
    text = pages.render(records, drawn)
    lost = text.replace('<tr class="check passed">', "<tr>", 1)
    assert pages.count_checks(lost) == counted_checks(records) - 1


@pytest.mark.parametrize("status", ["skipped", "blocked", "xfailed", "unheard of"])
def test_every_status_is_counted(status, records, drawn):
    records[1]["checks"][0]["status"] = status
    assert f"1 {status}" in Page(pages.render(records, drawn)).text


def test_every_word_of_the_records_is_on_the_page(records, drawn):
    page = page_of(records, drawn)
    spoken = (
        "id",
        "subject",
        "statement",
        "source",
        "reason",
        "verdict",
        "detail",
        "condition",
        "counterexample",
    )
    for claim in records[1:-1]:
        assert all(claim[key] in page.text for key in (*spoken, "reproduce"))
        assert all(
            check["name"] in page.text and check["detail"] in page.text for check in claim["checks"]
        )
        assert all(
            m["name"] in page.text and m["sin"] in page.text and m["by"] in page.text
            for m in claim["mutants"]
        )
    assert (
        "at most 1e-06 in a whole run, divided among 31 statistical checks, α = 3.2e-08 each"
        in page.text
    )
    assert all(value in page.text for value in records[0]["provenance"].values())


def test_nothing_is_loaded(records, drawn):
    page = page_of(records, drawn)
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|url\(|@import", page.source)
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "svg",
    }
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.all_of("src"))
    assert all(target.startswith(("#", "data:text/csv;")) for target in page.all_of("href"))


def test_links_meet_their_targets_and_ids_are_unique(records, drawn):
    page = page_of([*records[:-1], records[1], records[-1]], drawn)
    ids = page.all_of("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.all_of("href") if target.startswith("#")} <= set(ids)


def test_figures_carry_their_picture_and_data(records, drawn):
    page = page_of(records, drawn)
    pictures = [base64.b64decode(source.split(",")[1]) for source in page.all_of("src")]
    data = [
        base64.b64decode(target.split(",")[1])
        for target in page.all_of("href")
        if target.startswith("data:")
    ]
    assert pictures == [figure.svg for figure in drawn]
    assert data == [figure.csv.encode() for figure in drawn]
    assert all(len(text) > 20 for text in page.all_of("alt"))
    assert len(drawn) == len(gallery.PLOTS)


def test_premises_are_named_and_linked_where_they_are_shown(records):
    records[2]["rests_on"] = ["T1", "T99"]
    page = page_of(records)
    assert "Rests onT1, T99" in page.text  # a term and its definition
    assert page.all_of("href").count("#claim-T1") == 2  # its row of the table, and this one
    assert "#claim-T99" not in page.all_of("href")


def test_rows_without_a_figure_stand_with_their_check(records):
    records[1]["checks"][0] |= {
        "table": "unheard of",
        "rows": [{"layer": "only here", "value": 0.12345}],
    }
    page = page_of(records)
    assert "only here" in page.text
    assert "0.1235" in page.text or "0.1234" in page.text


@pytest.mark.parametrize("place", ["claim", "check", "mutant", "row", "header", "figure"])
def test_records_cannot_write_markup(place, records):
    evil = (
        '"\'><script>alert(1)</script><tr class="check passed">'
        "<img src=http://a.example/x onerror=alert(1)>&amp;"
    )
    claim = records[1]
    if place == "header":
        records[0] |= {
            "profile": evil,
            "run": evil,
            "provenance": {evil: evil},
            "claims": [evil],
            "num_statistical": evil,
        }
    elif place == "figure":
        claim["checks"][1]["rows"][0]["block"] = evil
    else:
        target = {"claim": claim, "check": claim["checks"][0], "mutant": claim["mutants"][0]}.get(
            place
        )
        if target is None:
            claim["checks"][0] |= {"table": evil, "rows": [{evil: evil}]}
        else:
            target |= {
                key: evil
                for key, value in target.items()
                if isinstance(value, str) and key != "record"
            }
    drawn = gallery.draw_all([claim]) if place == "figure" else []
    page = page_of(records, drawn)
    assert shown(records, drawn) == counted_checks(records)
    assert not {tag for tag, _ in page.tags} & {"script"}
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert all(source.startswith("data:") for source in page.all_of("src"))
    assert evil in "".join(page.words)


@pytest.mark.parametrize(
    "formula",
    [
        r"\text{<script>alert(1)</script>}",
        r"\href{javascript:alert(1)}{x}",
        r"a < b \& c > d",
        r"\frac{a",
        r"\begin{matrix} a",
        "}",
        "\\",
        "<b>x</b>",
        "$x^2$",
    ],
)
def test_a_formula_is_mathematics_or_its_source_never_markup(formula):
    page = Page(str(mathml(formula)))
    assert page.open == []
    assert {tag for tag, _ in page.tags} <= {"code", "math"} | {
        t for t, _ in page.tags if t.startswith("m")
    }
    assert page.all_of("href") == []


def test_a_formula_reads_as_mathematics():
    page = Page(str(mathml(FORMULA)))
    assert page.tags[0][0] == "math"
    assert "∑" in page.text
    assert mathml("") == mathml(" $ $ ") == ""


def change(records, what):
    header, claim, *_, end = records
    match what:
        case "verdict":
            claim["verdict"] = "REFUTED"
        case "stale":
            claim["verdict"] = "STALE"
        case "inconclusive":
            claim["verdict"] = "INCONCLUSIVE"
        case "unknown verdict":
            claim["verdict"] = "PROBABLY"
        case "survivor":
            claim["mutants"][0]["rejected"] = False
        case "failed check":
            claim["checks"][0]["status"] = "failed"
        case "lost check":
            end["records_run"] += 1
        case "announced":
            header["claims"].append("T99")
        case "not passed":
            end["passed"] = False
        case "other end":
            end["run"] = "another"
        case "other claim":
            claim["run"] = "another"
        case "no claims":
            return [header, {**end, "records_run": 0}]
        case "no header":
            return records[1:]
        case "no end":
            return records[:-1]
    return records


@pytest.mark.parametrize(
    ("what", "state", "said"),
    [
        ("nothing", "green", "Green: 9 of 9 verdicts are as expected"),
        ("verdict", "red", "T1: REFUTED where HOLDS was expected."),
        ("stale", "red", "T1: STALE where HOLDS was expected."),
        ("inconclusive", "red", "T1: INCONCLUSIVE where HOLDS was expected."),
        ("unknown verdict", "red", "T1: PROBABLY where HOLDS was expected."),
        ("survivor", "red", "Said to hold although a mutant survived: T1."),
        ("failed check", "red", "Said to hold although a check failed: T1."),
        ("lost check", "red", "The run counted 19 checks, but 18 are recorded."),
        ("announced", "red", "Announced but without a verdict: T99."),
        ("not passed", "red", "The end record says that the run did not pass."),
        ("other end", "red", "The end record belongs to another run, another."),
        ("other claim", "red", f"Recorded by another run than {RUN}: T1."),
        ("no claims", "red", "No claim was decided."),
        ("no header", "red", "its budget and provenance are unknown"),
        ("no end", "unfinished", "it was interrupted or has not finished"),
    ],
)
def test_the_banner_says_what_is_wrong(what, state, said, records):
    page = page_of(change(records, what))
    assert page.state() == state
    assert said in page.text


def test_a_survivor_of_a_claim_known_to_be_inconclusive_is_flagged_but_not_red(records):
    records[1] |= {"verdict": "INCONCLUSIVE", "expected": "INCONCLUSIVE"}
    records[1]["mutants"][0]["rejected"] = False
    page = page_of(records)
    assert page.state() == "green"
    assert page.text.count("SURVIVED") == 1
    assert "mutant DroppedCrossBlocks survived: omits Σ‖H_lm‖²" in page.text


@pytest.mark.parametrize(
    "bare", [{}, {"checks": None, "mutants": None}, {"checks": [{}], "mutants": [{}]}]
)
def test_missing_keys_cost_nothing(bare):
    records = [
        {"record": "run"},
        {"record": "claim", **bare},
        {"record": "end"},
        {"record": "note"},
        {},
    ]
    assert shown(records) == len(bare.get("checks") or ())
    assert shown([]) == 0


def test_long_words_and_numbers_beyond_range(records):
    records[1] |= {"statement": "x" * 20_000, "detail": "word " * 4_000}
    records[1]["checks"][0] |= {
        "discrepancy": float("inf"),
        "bound": float("nan"),
        "num_draws": 10**30,
    }
    assert shown(records) == counted_checks(records)


def test_rerun_gives_the_same_bytes(records, drawn):
    assert pages.render(records, drawn) == pages.render(synthetic_run(), drawn)
