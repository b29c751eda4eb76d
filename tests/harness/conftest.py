"""The pretended CUDA device, and a finished run."""

import pytest
import torch
from full_scale_runs import TINY, quiet
from pretend_cuda import device

from hesstheory.harness import show
from hesstheory.harness.course import run

__all__ = ["device", "finished"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Folder and report of a tiny run; tests copy the folder before they change it."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    with torch.random.fork_rng(devices=[]):
        report = run(TINY, folder, say=quiet, command="as the tests do")
    show.write(report, folder)
    return folder, report
