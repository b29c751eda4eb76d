"""What a kill may cost, and what makes a verdict stale."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import warm
from claim_package import ALL, NAME, SMOKE, decided

import hesstheory
from hesstheory.claims.course import fingerprints
from hesstheory.claims.ledger import Ledger
from hesstheory.evidence.checks import Verdict

ROOT = Path(hesstheory.__file__).parents[1]


def interrupt_after(id):
    def on_result(record, done, total):
        if record["id"] == id:
            raise KeyboardInterrupt

    return on_result


def ledger_counts(book):
    return {
        kind: sum(record["record"] == kind for record in book.records())
        for kind in ("run", "claim", "end")
    }


@pytest.mark.parametrize("last", SMOKE)
def test_an_interrupted_run_goes_on(run, package, tmp_path, last):
    with pytest.raises(KeyboardInterrupt):
        run(profile="smoke", on_result=interrupt_after(last))
    book = Ledger(tmp_path / "ledger.jsonl")
    done = SMOKE.index(last) + 1
    assert ledger_counts(book) == {"run": 1, "claim": done, "end": 0}

    found = run(profile="smoke")
    assert decided(package) == SMOKE
    assert ledger_counts(book) == {"run": 1, "claim": len(SMOKE), "end": 1}
    assert [record["id"] for record in found.claims] == SMOKE
    assert found.records_run == book.records()[-1]["records_run"] == 2 * len(SMOKE)

    run(profile="smoke")
    assert ledger_counts(book) == {"run": 2, "claim": 2 * len(SMOKE), "end": 2}, (
        "a finished run is not gone on with"
    )


@pytest.mark.parametrize(
    ("again", "ids"),
    [
        ({"seed": 1}, SMOKE),
        ({"profile": "ci"}, ALL),
        ({"names": ["A2"]}, ["A2", "A2.a"]),
        ({"code": "CHANGED = True\n"}, SMOKE),
    ],
    ids=["seed", "profile", "names", "code"],
)
def test_another_run_starts_anew(run, package, tmp_path, again, ids):
    with pytest.raises(KeyboardInterrupt):
        run(profile="smoke", on_result=interrupt_after("A2"))
    with open(package / "arithmetic.py", "a") as source:
        source.write(again.pop("code", ""))
    found = run(**{"profile": "smoke"} | again)
    assert decided(package) == ["A1", "A2", *ids]
    assert [record["id"] for record in found.claims] == ids
    assert ledger_counts(Ledger(tmp_path / "ledger.jsonl")) == {
        "run": 2,
        "claim": 2 + len(ids),
        "end": 1,
    }


CHANGES = {
    "a comment": ("spare.py", "# longer\nVALUE = 1\n", Verdict.HOLDS),
    "a docstring": ("spare.py", '"""Of no use."""\nVALUE = 1\n', Verdict.HOLDS),
    "a module that nothing imports": ("other.py", "VALUE = 1\n", Verdict.HOLDS),
    "a file that is no code": ("notes.txt", "no code", Verdict.HOLDS),
    "a value": ("spare.py", "VALUE = 2\n", Verdict.STALE),
    "an import inside a function": ("late.py", "VALUE = 2\n", Verdict.STALE),
    "the claim itself": ("arithmetic.py", "EXTRA = 1\n", Verdict.STALE),
}


@pytest.mark.parametrize(("name", "text", "verdict"), CHANGES.values(), ids=CHANGES)
def test_a_verdict_is_stale_once_code_that_it_imports_changes(
    run, registry, package, tmp_path, name, text, verdict
):
    imports = f"from {NAME} import spare\n\ndef later():\n    from {NAME}.late import VALUE\n"
    for module in ("spare", "late"):
        (package / f"{module}.py").write_text("VALUE = 1\n")
    with open(package / "arithmetic.py", "a") as source:
        source.write(imports)
    run(["A2"], profile="smoke")
    with open(package / name, "a" if name == "arithmetic.py" else "w") as changed:
        changed.write(text)
    code = fingerprints(registry.values())
    book = Ledger(tmp_path / "ledger.jsonl")
    found = [book.verdict(id, code[id]) for id in ("A2", "A2.a", "A3")]
    assert found == [verdict, verdict, Verdict.UNTESTED]


def start(folder, *arguments):
    """Python in a process of its own, with the claim package that lies there."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    return warm.start(*arguments, folder=folder, environment=environment)


def kill_when(process, condition):
    """SIGKILL, to this process and no other, as soon as the condition is met."""
    deadline = time.monotonic() + 300  # a loaded machine is slow, not wrong
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def finish(process):
    _, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints


def test_a_kill_costs_the_claim_in_flight_and_no_other(package, tmp_path):
    """A3 is made to wait, so that the kill finds it in flight."""
    hold, book = package / "hold A3", Ledger(tmp_path / "ledger.jsonl")
    script = (
        "import sys; from hesstheory import validate; "
        f"validate({SMOKE}, profile='smoke', ledger=sys.argv[1])"
    )
    hold.touch()
    log = package / "decided"
    kill_when(
        start(package.parent, "-c", script, book.path),
        lambda: log.exists() and decided(package)[-1:] == ["A3"],
    )
    assert [record.get("id") for record in book.records()] == [None, "A1", "A2", "A2.a"]

    hold.unlink()
    finish(start(package.parent, "-c", script, book.path))
    assert decided(package) == ["A1", "A2", "A2.a", "A3", "A3", "A10"]
    head, *middle, end = book.records()
    assert [record["id"] for record in middle] == SMOKE
    assert {record["run"] for record in (*middle, end)} == {head["run"]}
    assert (end["record"], end["passed"], end["records_run"]) == ("end", True, 2 * len(SMOKE))


@pytest.mark.filterwarnings("ignore:.*is torn:UserWarning")
def test_a_kill_at_any_time_is_made_good(tmp_path):
    """With claims of the library, killed once the first is in the ledger, wherever the next happens
    to be by then."""
    ids, book = ["E2", "T1.a", "T5", "T13", "T14.b"], Ledger(tmp_path / "reports" / "ledger.jsonl")
    command = ["-m", "hesstheory", "validate", *ids[::-1], "--profile", "smoke", "--out", tmp_path]
    mark = b'"record": "claim"'
    kill_when(start(ROOT, *command), lambda: book.path.exists() and mark in book.path.read_bytes())
    before = book.path.read_bytes()
    whole = [json.loads(line) for line in before.split(b"\n")[:-1]]
    assert [record.get("id") for record in whole] == [None, *ids][: len(whole)]
    assert not any(record["record"] == "end" for record in whole)

    finish(start(ROOT, *command))
    assert book.path.read_bytes().startswith(before)
    heads = [record for record in book.records() if record["record"] == "run"]
    same_code = heads[0]["fingerprint"] == heads[-1]["fingerprint"]
    assert len(heads) == (1 if same_code else 2)
    found = book.run(heads[-1]["run"])
    assert [record.get("id") for record in found] == [None, *ids, None]
    assert found[-1]["passed"]
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="claim-{id.replace(".", "-")}"' in page for id in ids)
