"""The pytest door: one test of every check."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import warm

from hesstheory.conformance.contract import Misuse
from hesstheory.conformance.subjects.right import RIGHT


def _pytest(folder, test, *options):
    """Runs pytest on a file with this text, in a folder with a user's estimators."""
    (folder / "test_mine.py").write_text(textwrap.dedent(test))
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_mine.py"]
    return warm.run(*words, folder=folder, timeout=300)


FOUR_LINES = """
from hesstheory import parametrize_with_checks
from mine import right, twice

@parametrize_with_checks([right, twice], expected_failed_checks={"check_signs": "not yet"})
def test_estimator(estimator, check):
    check(estimator)
"""


@pytest.mark.usefixtures("mine")
def test_four_lines_of_pytest(tmp_path):
    chosen = "signs or one_probe or stderr_size"
    run = _pytest(tmp_path, FOUR_LINES, "--hesstheory-profile=smoke", "-k", chosen)
    # `right` passes a check that is expected to fail.
    assert "1 failed" in run.stdout, run.stdout + run.stderr
    assert "1 xfailed" in run.stdout
    assert "2 passed" in run.stdout
    assert "remove the entry" in run.stdout


ISOLATED = """
from hesstheory import parametrize_with_checks
from mine import late_exit

@parametrize_with_checks([late_exit], profile="smoke", isolate=True, time_limit=20)
def test_estimator(estimator, check):
    check(estimator)
"""


@pytest.mark.usefixtures("mine")
def test_pytest_can_isolate_and_names_the_test_to_run_again(tmp_path):
    options = ["-W", "error", "--hesstheory-seed=4", "-k", "one_probe or same_state"]
    run = _pytest(tmp_path, ISOLATED, *options)
    assert "1 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    assert "kills its process (exit code 7)" in run.stdout
    test = "'test_mine.py::test_estimator[late_exit-check_one_probe]'"
    assert f"pytest {test} --hesstheory-seed=4" in run.stdout


def test_a_profile_that_there_is_not_is_refused(tmp_path):
    run = _pytest(tmp_path, "", "--hesstheory-profile=huge")
    assert run.returncode == 4
    assert "'huge': choose from smoke, ci, full" in run.stderr


def test_the_plugin_imports_nothing_heavy():
    code = "import sys, hesstheory.pytest_plugin; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_parametrize_refuses_what_is_no_estimator():
    from hesstheory import parametrize_with_checks

    with pytest.raises(Misuse, match="num_probes"):
        parametrize_with_checks([lambda problem: 0.0])
    with pytest.raises(Misuse, match="no check is named"):
        parametrize_with_checks([RIGHT["normals"]], expected_failed_checks={"check_x": "y"})
