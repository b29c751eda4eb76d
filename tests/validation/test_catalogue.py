"""The catalogue of claims and the bibliography are current: nothing is missing in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import hesstheory_

from hesstheory import claims
from hesstheory.claims.listing import markdown, package_of

ROOT = Path(__file__).parents[2]
VALIDATION = ROOT / "validation"

OURS = [c for c in claims.catalogue().values() if package_of(c) == "hesstheory_validation"]


def test_the_catalogue_is_current():
    """Renew it by `hesstheory claim list --markdown > validation/CLAIMS.md`."""
    written = (VALIDATION / "CLAIMS.md").read_text(encoding="utf-8")
    assert written == markdown(OURS)


@pytest.mark.parametrize("c", OURS, ids=lambda c: c.id)
def test_an_entry_says_everything(c):
    entry = markdown([c]).partition("### ")[2]
    for fact in (
        c.id,
        c.title,
        c.statement,
        c.source,
        c.expected,
        c.reason,
        c.profile,
        *c.rests_on,
    ):
        assert fact in entry
    assert f"{len(c.mutants)} mutants" in entry


def list_claims(*arguments):
    return hesstheory_("claim", "list", *arguments)


def test_the_command_prints_the_page():
    result = list_claims("T2", "--markdown")
    assert result.exit_code == 0
    assert result.stdout == markdown([c for c in OURS if c.id == "T2"])


def test_the_command_prints_a_table():
    result = list_claims("T14")
    rows = [line.split("│") for line in result.stdout.splitlines() if "│" in line]
    found = {row[1].strip(): row[4].strip() for row in rows}
    assert found == {"T14": "T11", "T14.a": "T14", "T14.b": "T14"}
    assert result.stdout.endswith("3 claims.\n")


def test_an_unknown_claim_is_misuse():
    result = list_claims("T99")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no claim 'T99'" in result.stderr


# --- sources --------------------------------------------------------------------------------------


def bibliography():
    """Authors and year of every entry, by its key."""
    text = (VALIDATION / "references.bib").read_text(encoding="utf-8")
    entries = {}
    for kind, key, body in re.findall(r"^@(\w+)\{(\w+),(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        fields = dict(re.findall(r"^\s+(\w+)\s*= \{(.*)\},?$", body, re.MULTILINE))
        assert key not in entries, f"{kind} {key} twice"
        entries[key] = fields
    return entries


# The last name before a year: "Cortinovis and Kressner 2021", "Dong et al. 2020", "Higham (2002)".
CITATION = re.compile(r"([^\W\d_][\w'’-]+)(?: et al\.)?,? \(?((?:1[89]|20)\d\d)\b")


def citations():
    """Names and years in the sources of the library and of its claims, with the file."""
    files = [*(ROOT / "hesstheory").rglob("*.py"), *VALIDATION.rglob("*.py")]
    for file in sorted(files):
        # A citation may go on in the next line of a comment.
        text = re.sub(r"\s*\n\s*#?\s*", " ", file.read_text(encoding="utf-8"))
        for name, year in CITATION.findall(text):
            if name[0].isupper():
                yield name, year, file.relative_to(ROOT).as_posix()


def test_every_citation_is_in_the_bibliography():
    entries = bibliography().values()
    known = {(entry.get("year"), entry["author"]) for entry in entries}
    missing = [
        f"{name} {year} in {file}"
        for name, year, file in citations()
        if not any(year == when and re.search(rf"\b{name}\b", who) for when, who in known)
    ]
    assert not missing


def test_citations_are_found():
    found = {(name, year) for name, year, _ in citations()}
    assert {("Hutchinson", "1990"), ("Cochran", "1977"), ("Kressner", "2021")} <= found
    assert len(found) > 20


def test_sources_of_claims_are_in_the_bibliography():
    cited = {key for c in OURS for key in re.findall(r"\[([A-Z]{3})\]", c.source)}
    assert cited == {"LHT"}
    assert cited | {"DAG", "LOC", "DYN", "SKE"} <= set(bibliography())


@pytest.mark.parametrize(("key", "entry"), bibliography().items(), ids=str)
def test_an_entry_has_authors_and_a_way_to_find_it(key, entry):
    assert entry["author"]
    assert entry["title"]
    assert entry.get("year") or "not known to us" in entry["note"]
