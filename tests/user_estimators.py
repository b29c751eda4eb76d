"""A file of estimators as a user would bring them, and the command line that checks them."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

SOURCE = """
import os
import time
from hesstheory import LayerwiseTrace, Rademacher, hessian

def right(problem, *, num_probes, generator):
    return LayerwiseTrace(num_probes)(problem, generator).value.to_dict()

def raises(problem, *, num_probes, generator):
    number = {}["no such key"]  # line 10
    return number

def twice(problem, *, num_probes, generator):
    return (2 * LayerwiseTrace(num_probes)(problem, generator).value).to_dict()

def old_style(problem, samples=10):
    return 0.0

def late_exit(problem, *, num_probes, generator):
    if num_probes == 1:
        os._exit(7)
    return right(problem, num_probes=num_probes, generator=generator)

def late_success(problem, *, num_probes, generator):
    if num_probes == 1:
        os._exit(0)
    return right(problem, num_probes=num_probes, generator=generator)

def stubborn(problem, *, num_probes, generator):
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass

def sleeps(problem, *, num_probes, generator):
    os.mkdir("started")
    time.sleep(300)

class Method:
    def estimate(self, problem, *, num_probes, generator):
        return right(problem, num_probes=num_probes, generator=generator)

def surplus(problem, *, num_probes, generator, temperature):
    return right(problem, num_probes=num_probes, generator=generator)

HELD = {}

def held(problem):
    # The dense Hessian, once: thousands of runs on a problem whose Hessian stays.
    if id(problem) not in HELD:
        HELD[id(problem)] = problem, hessian(problem).to_dense()
    return HELD[id(problem)][1]

class Declared:
    is_wrong = False

    def variance_law(self, squared_norm, diagonal_squares, cross_squares):
        # Signs have 2 (squared_norm - diagonal_squares) + cross_squares.
        own = squared_norm if self.is_wrong else squared_norm - diagonal_squares
        return 2 * own + cross_squares

    def __call__(self, problem, *, num_probes, generator):
        H = held(problem)
        Z = Rademacher().sample(problem.num_params, num_probes, generator).to(H)
        forms = (Z * (H @ Z)).mean(1)
        return {block: float(forms[index].sum()) for block, index in problem.index.items()}

class DeclaredWrongly(Declared):
    is_wrong = True
"""


def written(folder: Path) -> Path:
    """The file in a folder."""
    path = folder / "mine.py"
    path.write_text(SOURCE)
    return path


def checked(*arguments: object) -> tuple[int, str]:
    """Exit code, and output without line breaks, of `hesstheory check`."""
    from hesstheory.cli import app

    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())
