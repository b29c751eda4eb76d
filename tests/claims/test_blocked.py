"""What is wrong in an installed claim package blocks itself and what rests on it, nothing else."""

from __future__ import annotations

import textwrap

import pytest
from claim_package import NAME, SMOKE

from hesstheory import claims
from hesstheory.claims.ledger import Ledger
from hesstheory.cli.report import write_report
from hesstheory.evidence.checks import Verdict

HEAD = f"""
    from hesstheory.claims import claim
    from hesstheory.evidence import exact
    from {NAME}.arithmetic import three, two

    settings = {{"subject": two, "mutants": [three], "reason": "counting"}}

    def value(subject, context):
        yield exact("value", subject(), 2.0)
"""
SLIP = f"{NAME}.slip"
GOOD = 'claim("C1", "Two is two.", **settings)(value)'


def with_setting(setting):
    """A claim C2 with a wrong setting, and a good one after it."""
    return f'claim("C2", "Two is two.", {setting}, **settings)(value)\n    {GOOD}'


# A module of the package; which claims it blocks, with a word of the reason; which it adds.
SLIPS = {
    "raises": ('raise RuntimeError("no data")', {SLIP: "RuntimeError: no data; mend it"}, []),
    "does not parse": ("def", {SLIP: "SyntaxError"}, []),
    "ends the process": ("import sys; sys.exit(4)", {SLIP: "SystemExit: 4"}, []),
    "needs what is missing": ("import no_such_module", {SLIP: "No module named"}, []),
    "raises after a claim": (
        f"{GOOD}\n    raise RuntimeError('no data')",
        {SLIP: "no data", "C1": f"claim C1 is registered by {SLIP}, which cannot be imported"},
        [],
    ),
    "premises as a text": (
        with_setting('rests_on="A1"'),
        {"C2": f"claim 'C2' of {SLIP} is malformed: claim C2: rests_on is the text 'A1'"},
        ["C1"],
    ),
    "an unknown keyword": (
        with_setting('premises=["A1"]'),
        {"C2": "unexpected keyword argument 'premises'"},
        ["C1"],
    ),
    "an unknown premise": (
        with_setting('rests_on=["Z9"]'),
        {"C2": "rests on Z9, which no claim package registers: correct rests_on= (claim of"},
        ["C1"],
    ),
    "a taken id": (
        f"{GOOD.replace('C1', 'A1')}\n    {GOOD}",
        {f"A1@{SLIP}": f"claim A1 is registered twice: {NAME}.arithmetic and {SLIP}"},
        ["C1"],
    ),
    "an id that is no text": (
        f'claim(3, "Two is two.", **settings)(value)\n    {GOOD}',
        {"3": "claim 3 has id=3: pass a text"},
        ["C1"],
    ),
}


def decided(found):
    """What a run says of every claim, without times and its own name."""
    unlike = ("run", "time", "seconds")
    return {
        record["id"]: {key: value for key, value in record.items() if key not in unlike}
        for record in found.claims
    }


@pytest.fixture
def clean(run):
    """The records of the package as it is."""
    return decided(run(profile="smoke"))


@pytest.mark.parametrize(("source", "blocked", "added"), SLIPS.values(), ids=SLIPS)
def test_a_slip_blocks_itself_alone(run, package, tmp_path, clean, source, blocked, added):
    """The records of all other claims are those of the package without the slip."""
    assert list(clean) == SMOKE
    (package / "slip.py").write_text(textwrap.dedent(f"{HEAD}\n    {source}\n"))
    result = run(profile="smoke")
    found = decided(result)
    assert {id: found[id] for id in clean} == clean
    assert found.keys() == {*clean, *blocked, *added}
    for id, reason in blocked.items():
        assert found[id]["verdict"] == Verdict.UNTESTED
        assert reason in found[id]["detail"]
        assert SLIP in found[id]["detail"]
    assert {found[id]["verdict"] for id in added} <= {"HOLDS"}
    assert result.exit_code == 3
    write_report(result.records, tmp_path)
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert all(id in page for id in blocked)


def test_a_mended_module_is_decided(run, package, registry):
    (package / "slip.py").write_text(textwrap.dedent(f"{HEAD}\n    {GOOD}\n    raise OSError\n"))
    assert claims.catalogue()["C1"].blocked
    (package / "slip.py").write_text(textwrap.dedent(f"{HEAD}\n    {GOOD}\n    mended = True\n"))
    assert not claims.catalogue()["C1"].blocked
    assert run(profile="smoke").exit_code == 0


def test_a_verdict_of_before_does_not_stand(run, package, tmp_path):
    """A status does not repeat it for a claim that is blocked now."""
    (package / "slip.py").write_text(textwrap.dedent(f"{HEAD}\n    {GOOD}\n"))
    run(profile="smoke")
    C1 = claims.REGISTRY["C1"]
    claims.REGISTRY["C1"] = type(C1)(**{**vars(C1), "rests_on": ("Z9",)})
    ledger = tmp_path / "ledger.jsonl"
    found = {standing.id: standing for standing in claims.standings(ledger)}
    assert (found["C1"].now, found["C1"].last) == (Verdict.UNTESTED, Verdict.HOLDS)
    assert found["A1"].now is Verdict.HOLDS
    assert Ledger(ledger).last_records()["C1"]["verdict"] == Verdict.HOLDS


def test_the_claims_of_the_library_are_in_order():
    assert not [c.id for c in claims.catalogue().values() if c.blocked]
