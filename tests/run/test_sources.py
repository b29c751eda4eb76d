"""What a fingerprint covers: what a module imports, transitively, and nothing that only people
read."""

from __future__ import annotations

import importlib
import sys

import pytest

from hesstheory.run.provenance import fingerprint, fingerprint_of
from hesstheory.run.sources import path_of, sources_reached

PACKAGE = "fingerprinted_package"

FILES = {
    "__init__.py": "from fingerprinted_package.passed_on import shown as renamed\nSTATE = 1\n",
    "study.py": '''
"""A study."""
from __future__ import annotations
from typing import TYPE_CHECKING
import fingerprinted_package.dotted
from . import sibling
from fingerprinted_package import renamed
if TYPE_CHECKING:
    from fingerprinted_package.only_types import Name

def run():
    """Runs."""
    from .late import VALUE  # late
    return VALUE
''',
    "sibling.py": "from .deeper import VALUE\n",
    "deeper.py": "VALUE = 1\n",
    "dotted.py": "VALUE = 1\n",
    "late.py": "from fingerprinted_package import study  # a circle does no harm\nVALUE = 1\n",
    "passed_on.py": "shown = 1\n",
    "only_types.py": "Name = str\n",
    "unrelated.py": "VALUE = 1\n",
    "lazy/__init__.py": "__getattr__, __dir__, __all__ = (1, 2, 3)\n",
    "lazy/__init__.pyi": (
        "from .inside import shown as shown\nfrom .other import hidden as hidden\n"
    ),
    "lazy/inside.py": "shown = 1\n",
    "lazy/other.py": "hidden = 1\n",
    "user.py": "from fingerprinted_package.lazy import shown\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package whose modules import each other in every way."""
    root = tmp_path / PACKAGE
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return root


def reached(module):
    return {
        name.removeprefix(PACKAGE).lstrip(".") for name in sources_reached(f"{PACKAGE}.{module}")
    }


def test_what_is_reached(folder):
    expected = {"", "study", "sibling", "deeper", "dotted", "late", "passed_on"}
    assert reached("study") == expected
    assert PACKAGE not in sys.modules, "it is read, not imported"


def test_a_stub_leads_to_the_file_that_defines_a_name(folder):
    assert reached("user") == {"", "user", "lazy", "lazy.inside"}


SAME = {
    "a comment": ("deeper.py", "# why\nVALUE = 1  # unit\n"),
    "a docstring": ("deeper.py", '"""Deep."""\nVALUE = 1\n'),
    "spacing": ("deeper.py", "\n\nVALUE   =   1\n"),
    "docstrings inside": ("study.py", FILES["study.py"].replace('"Runs."', '"Runs it all."')),
    "types": ("only_types.py", "Name = int\n"),
    "another module": ("unrelated.py", "VALUE = 2\n"),
    "a new module": ("new.py", "VALUE = 2\n"),
    "what a package around lists": ("__init__.py", "__all__ = []\n" + FILES["__init__.py"]),
}

OTHER = {
    "a value": ("deeper.py", "VALUE = 2\n"),
    "a late import": ("late.py", "VALUE = 2\n"),
    "a name passed on": ("passed_on.py", "shown = 2\n"),
    "a package around": ("__init__.py", FILES["__init__.py"].replace("STATE = 1", "STATE = 2")),
    "the module": ("study.py", FILES["study.py"] + "EXTRA = 1\n"),
    "where a name comes from": ("sibling.py", "from .dotted import VALUE\n"),
}


@pytest.mark.parametrize(
    ("file", "text", "is_same"),
    [
        *((*change, True) for change in SAME.values()),
        *((*change, False) for change in OTHER.values()),
    ],
    ids=[*SAME, *OTHER],
)
def test_what_changes_a_fingerprint(folder, file, text, is_same):
    before = fingerprint_of(f"{PACKAGE}.study")
    assert before == fingerprint_of(f"{PACKAGE}.study")
    (folder / file).write_text(text)
    assert (fingerprint_of(f"{PACKAGE}.study") == before) is is_same


def test_data_files_count(folder, tmp_path):
    data = tmp_path / "table.csv"
    data.write_bytes(b"1,2\n")
    module = f"{PACKAGE}.deeper"
    before = fingerprint_of(module, [data])
    assert before != fingerprint_of(module)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "table.csv").write_bytes(b"1,2\n")
    assert fingerprint_of(module, [moved / "table.csv"]) == before
    data.write_bytes(b"1,3\n")
    assert fingerprint_of(module, [data]) != before


def test_a_module_of_one_file_has_a_fingerprint(tmp_path, monkeypatch):
    (tmp_path / "fingerprinted_file.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = fingerprint_of("fingerprinted_file")
    (tmp_path / "fingerprinted_file.py").write_text("VALUE = 12\n")
    assert fingerprint_of("fingerprinted_file") != before


def test_versions_of_libraries_count(folder, monkeypatch):
    before = fingerprint_of(f"{PACKAGE}.deeper")
    monkeypatch.setattr("hesstheory.run.provenance.version", lambda package: "another")
    assert fingerprint_of(f"{PACKAGE}.deeper") != before


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        ("no_such_package.study", [], "no source of 'no_such_package.study'"),
        (f"{PACKAGE}.none", [], "no source of"),
        (f"{PACKAGE}.deeper", ["none.csv"], r"no data file none.csv: fetch it first"),
    ],
)
def test_refused(folder, module, data, message):
    with pytest.raises(ValueError, match=message):
        fingerprint_of(module, data)


def test_modules_of_the_library_are_found():
    """The public lazy name, a wing and a file lead to files of the library; torch is left alone."""
    found = sources_reached("hesstheory_validation.variance.claims")
    assert {"hesstheory.theory.probes", "hesstheory.estimators.products"} <= set(found)
    assert not [name for name in found if name.partition(".")[0] in ("torch", "numpy")]
    assert "hesstheory.harness.course" not in found
    assert path_of("hesstheory.claims.registry").name == "registry.py"


def test_a_whole_package_has_a_fingerprint_of_every_byte(folder):
    importlib.import_module(PACKAGE)
    try:
        before = fingerprint(PACKAGE)
        (folder / "unrelated.py").write_text("VALUE = 1  # a comment\n")
        assert fingerprint(PACKAGE) != before
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
