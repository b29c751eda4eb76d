"""`hesstheory validate`: exit codes, the JSON, the files, and a message where it is misused."""

from __future__ import annotations

import json
import re

import pytest
from command_line import smoke
from pages import Page

from hesstheory import claims
from hesstheory.claims.ledger import Ledger
from hesstheory.claims.registry import claim
from hesstheory.evidence.checks import Check, Kind, Status, Verdict, holds
from hesstheory.evidence.exact import exact

NAMES = ("T14", "T2", "T18", "E2")
IDS = ["E2", "T2", "T14", "T14.a", "T14.b", "T18"]


def header(folder):
    """Of the last run in its ledger."""
    return [
        record
        for record in Ledger(folder / "reports" / "ledger.jsonl").records()
        if record["record"] == "run"
    ][-1]


# --- a run whose verdicts are as expected ---------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def result(out):
    """Some claims that hold, one refuted and one conditional, all as expected."""
    return smoke(*NAMES, "--out", out, "--json", out / "summary.json")


@pytest.fixture(scope="module")
def summary(result, out):
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(result, out):
    return Page((out / "reports" / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def records(result, out):
    return Ledger(out / "reports" / "ledger.jsonl").records()


def test_files_are_where_they_should_be(result, out):
    assert result.exit_code == 0, result.output
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    reports = {path for path in written if not path.startswith("figures/")}
    assert reports == {"reports/ledger.jsonl", "reports/index.html", "summary.json"}
    figures = {path.partition(".")[0] for path in written - reports}
    assert figures
    assert written - reports == {
        f"{name}.{suffix}" for name in figures for suffix in ("svg", "png", "csv")
    }


def test_json_contract(summary):
    assert set(summary) == {"claims", "suite_alpha", "records_run", "records_shown"}
    assert summary["suite_alpha"] == 1e-6
    assert [entry["id"] for entry in summary["claims"]] == IDS
    for entry in summary["claims"]:
        assert list(entry) == ["id", "verdict", "expected", "kind", "detail", "mutants"]
        assert Verdict(entry["verdict"]) is Verdict(entry["expected"])
        assert Kind(entry["kind"])
        assert isinstance(entry["detail"], str)
        assert entry["detail"]
        assert entry["mutants"]
        assert set(entry["mutants"].values()) == {True}


def test_json_says_what_the_ledger_says(summary, records):
    assert [record["record"] for record in records] == ["run", *["claim"] * len(IDS), "end"]
    decided = {record["id"]: record for record in records[1:-1]}
    for entry in summary["claims"]:
        record = decided[entry["id"]]
        assert {
            key: record[key] for key in ("verdict", "expected", "kind", "detail")
        }.items() <= entry.items()
        assert entry["mutants"] == {
            mutant["name"]: mutant["rejected"] for mutant in record["mutants"]
        }
        assert set(entry["mutants"]) == set(claims.REGISTRY[entry["id"]].mutants)
    assert summary["records_run"] == sum(len(record["checks"]) for record in decided.values()) > 0
    assert summary["records_shown"] == summary["records_run"]


def test_page_shows_every_claim_and_loads_nothing(page, records):
    anchors = page.all_of("id")
    rows = [
        attrs
        for tag, attrs in page.tags
        if tag == "tr" and "check" in (attrs.get("class") or "").split()
    ]
    assert len(rows) == records[-1]["records_run"]
    for record in records[1:-1]:
        assert f"claim-{record['id'].replace('.', '-')}" in anchors
        assert " ".join(record["statement"].split()) in page.text
    assert page.state() == "green"
    assert not [
        tag
        for tag, _ in page.tags
        if tag in ("script", "link", "iframe", "object", "embed", "base")
    ]
    assert all(source.startswith("data:") for source in page.all_of("src"))
    assert all(target.startswith(("#", "data:")) for target in page.all_of("href"))
    assert not re.search(r"https?://|url\(|@import|srcset", page.source)


def test_output_names_every_claim_and_the_report(result, out):
    for id in IDS:
        assert re.search(rf"^{re.escape(id)} ", result.stderr, re.MULTILINE), (
            "one line as each claim is decided"
        )
        assert re.search(rf"^\W*{re.escape(id)}\W", result.stdout, re.MULTILINE), (
            "one row of the table"
        )
    assert f"{len(IDS)} claims, 0 not as expected" in result.stdout
    assert "1e-06" in result.stdout
    assert str(out / "reports" / "index.html") in result.stdout.replace("\n", "")


def test_a_second_run_is_appended(result, out, tmp_path):
    before = (out / "reports" / "ledger.jsonl").read_bytes()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "ledger.jsonl").write_bytes(before)
    assert smoke("T14.b", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "reports" / "ledger.jsonl").read_bytes().startswith(before)
    page = Page((tmp_path / "reports" / "index.html").read_text(encoding="utf-8"))
    assert [anchor for anchor in page.all_of("id") if anchor.startswith("claim-")] == [
        "claim-T14-b"
    ]


def test_files_go_to_a_folder_of_the_command(tmp_path, monkeypatch):
    """A first try must not touch what a project keeps under version control."""
    monkeypatch.chdir(tmp_path)
    result = smoke("T14.b")
    assert result.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    written = {path.name for path in (tmp_path / "runs" / "validate").iterdir()}
    assert written == {"figures", "reports"}
    assert "Renewed in this folder" not in result.stdout


def test_files_of_the_current_folder_are_renewed_on_demand(tmp_path, monkeypatch):
    """And the ledger that lies there is appended to, never replaced."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    ledger = tmp_path / "reports" / "ledger.jsonl"
    before = b'{"record": "claim", "id": "T1", "verdict": "HOLDS", "fingerprint": "f"}\n'
    ledger.write_bytes(before)
    result = smoke("T14.b", "--out", ".")
    assert result.exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"figures", "reports"}
    assert ledger.read_bytes().startswith(before)
    said = " ".join(result.stdout.split())
    assert "Renewed in this folder: reports/index.html and figures/; the run was appended" in said


# --- verdicts that differ -------------------------------------------------------------------------


def two():
    return 2.0


def three():
    """Is one too many."""
    return 3.0


def value_is_two(subject, context):
    yield exact("value", subject(), 2.0)


def value_is_three(subject, context):
    yield holds("value", subject() == 3, f"{subject()} [/nonsense] [bold]is not[/bold] 3 <b>&amp;")


def undecided(subject, context):
    yield exact("value", subject(), 2.0)
    yield Check("study", Kind.EMPIRICAL, Status.INCONCLUSIVE)


def breaking(subject, context):
    yield exact("value", subject(), 2.0)
    raise ValueError("out of range")


@pytest.fixture
def register():
    """Registers claims X1, X2, … for one test: pairs of what decides and what is expected."""
    registry = claims.catalogue()

    def of(*cases):
        for number, (decide, expected) in enumerate(cases, 1):
            claim(
                f"X{number}",
                "Two is a number.",
                reason="",
                subject=two,
                mutants=[three],
                expected=Verdict(expected),
            )(decide)
        return [f"X{number}" for number in range(1, len(cases) + 1)]

    yield of
    for id in set(claims.REGISTRY) - set(registry):
        del claims.REGISTRY[id]


EXITS = {
    "as expected": (
        [(value_is_two, "HOLDS"), (value_is_three, "REFUTED"), (undecided, "INCONCLUSIVE")],
        0,
    ),
    "refuted": ([(value_is_two, "HOLDS"), (value_is_three, "HOLDS")], 1),
    "holds after all": ([(value_is_two, "REFUTED")], 1),
    "decided after all": ([(value_is_two, "INCONCLUSIVE")], 1),
    "refuted, and one undecided": ([(undecided, "HOLDS"), (value_is_three, "HOLDS")], 1),
    "undecided": ([(value_is_two, "HOLDS"), (undecided, "HOLDS")], 3),
    "broken": ([(breaking, "HOLDS")], 3),
    "broken where nothing is expected": ([(breaking, "INCONCLUSIVE")], 3),
}


@pytest.mark.parametrize(("cases", "code"), EXITS.values(), ids=EXITS.keys())
def test_exit_code(register, tmp_path, cases, code):
    """And whatever it is, the summary and the page are written and say the same."""
    ids = register(*cases)
    result = smoke(*ids, "--out", tmp_path, "--json", tmp_path / "summary.json")
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit) == (code != 0)

    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    surprises = [entry for entry in summary["claims"] if entry["verdict"] != entry["expected"]]
    assert bool(surprises) == (code != 0)
    assert f"{len(ids)} claims, {len(surprises)} not as expected" in result.stdout
    for entry in surprises:
        found = f"expected {entry['expected']}, found {entry['verdict']}"
        line = f"{entry['id']}: {found}: {entry['detail']}"
        assert line in result.stdout
        assert f"hesstheory validate {entry['id']} --profile smoke --seed 0" in result.stdout
    page = Page((tmp_path / "reports" / "index.html").read_text(encoding="utf-8"))
    assert page.state() == ("red" if surprises else "green")
    assert summary["records_run"] == summary["records_shown"]


# --- misuse ---------------------------------------------------------------------------------------


def blocked(tmp_path):
    """A folder in which every name that the command may want is taken by what it cannot use."""
    for name in ("file", "figures taken/figures", "summary taken/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "page taken" / "reports" / "index.html").mkdir(parents=True)
    (tmp_path / "ledger taken" / "reports" / "ledger.jsonl").mkdir(parents=True)
    return tmp_path


MISUSE = {
    "unknown claim": (["T99"], r"no claim 'T99': choose one of E1, .*T2, "),
    "one unknown claim": (["T14.b", "T1.zz"], r"no claim 'T1.zz'"),
    "unknown profile": (["--profile", "huge"], r"profile is 'huge': choose from smoke, ci, full"),
    "claim beyond the profile": (
        ["T1.b"],
        r"the smoke profile cannot decide T1.b: pass a larger --profile",
    ),
    "out is a file": (
        ["T14.b", "--out", "{}/file"],
        r"--out .*/file/reports/.*Not a directory; name another folder",
    ),
    "out in a file": (
        ["T14.b", "--out", "{}/file/out"],
        r"--out .*/file/out.*Not a directory; name another folder",
    ),
    "out cannot be written": (
        ["T14.b", "--out", "/proc/out"],
        r"--out /proc/out.*; name another folder",
    ),
    "the ledger is a folder": (
        ["T14.b", "--out", "{}/ledger taken"],
        r"ledger.jsonl: that is a folder; .*move the fol",
    ),
    "the page is a folder": (
        ["T14.b", "--out", "{}/page taken"],
        r"index.html: that is a folder; .*move the folder",
    ),
    "figures is a file": (
        ["T14.b", "--out", "{}/figures taken"],
        r"--out .*/figures.*Not a directory",
    ),
    "json is a folder": (
        ["T14.b", "--json", "{}/summary taken"],
        r"summary taken: that is a folder; name a file",
    ),
    "json is the root": (["T14.b", "--json", "/"], r"--json /: that is a folder; name a file"),
    "json cannot be written": (
        ["T14.b", "--json", "/proc/x"],
        r"--json /proc/x: .*; name another folder",
    ),
    "no folder for json": (
        ["T14.b", "--json", "{}/none/x.json"],
        r"none/x.json: the folder does not exist; create it",
    ),
    "json in a file": (
        ["T14.b", "--json", "{}/file/x.json"],
        r"file/x.json: the folder does not exist",
    ),
    "no workers": (["T14.b", "--workers", "-1"], r"Invalid value for '--workers'"),
    "no number": (["T14.b", "--seed", "x"], r"Invalid value for '--seed'"),
    "unknown option": (["T14.b", "--quick"], r"No such option.*--quick"),
}


@pytest.mark.parametrize(("arguments", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse(arguments, message, tmp_path, monkeypatch):
    """Exit code 2, and one message on stderr that says what is wrong.

    Nothing on stdout, no traceback, no new file.
    """
    monkeypatch.chdir(tmp_path)
    folder = blocked(tmp_path)
    before = set(folder.rglob("*"))
    result = smoke(*[argument.format(folder) for argument in arguments])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert re.search(message, result.stderr, re.DOTALL)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert set(folder.rglob("*")) == before


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_seed_is_used(seed, tmp_path):
    assert smoke("T14.b", "--seed", seed, "--out", tmp_path).exit_code == 0
    assert header(tmp_path)["seed"] == seed


def test_vary_seed_draws_a_fresh_seed(tmp_path):
    for name in "abc":
        assert smoke("T14.b", "--vary-seed", "--out", tmp_path / name).exit_code == 0
    seeds = {header(tmp_path / name)["seed"] for name in "abc"}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_vary_seed_prints_the_seed(tmp_path):
    result = smoke("T14.b", "--vary-seed", "--out", tmp_path)
    assert f"seed {header(tmp_path)['seed']}" in result.output
