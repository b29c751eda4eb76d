"""What PyTorch may round: nothing where numbers are certified, and as before afterwards."""

from __future__ import annotations

import pytest
import warm

from hesstheory.run.precision import full_precision, precision_switches

ALLOWED = {
    "default": "",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "older switch": "b.cudnn.allow_tf32 = False",
    "newer switch": "b.cuda.matmul.fp32_precision = 'tf32'",
    "newer switch off": "b.cudnn.conv.fp32_precision = 'ieee'",
    "on CPU": "b.mkldnn.conv.fp32_precision = 'bf16'",
    "all": "b.fp32_precision = 'tf32'",
}


@pytest.mark.parametrize("allow", ALLOWED.values(), ids=ALLOWED)
def test_full_precision_is_full_whatever_was_allowed(allow):
    """In a process of its own, since a switch that was set never looks untouched again."""
    script = f"""
import torch
from hesstheory.run.precision import full_precision, precision_switches
b = torch.backends
{allow}
before = precision_switches()
with full_precision():
    assert precision_switches()["rounds float32"] == "nothing"
    assert not b.cuda.matmul.allow_tf32 and not b.cudnn.allow_tf32
    with full_precision():
        pass
    assert precision_switches()["rounds float32"] == "nothing"
assert precision_switches() == before
"""
    outcome = warm.run("-c", script)
    assert outcome.returncode == 0, outcome.stderr


def test_precision_switches_come_back():
    before = precision_switches()
    with full_precision():
        assert precision_switches()["rounds float32"] == "nothing"
    assert precision_switches() == before
