"""Processes of one run: which device is whose, and who does what."""

from __future__ import annotations

import pytest
import torch

from hesstheory.run.ranks import Ranks, device_named


def test_the_device_is_the_process_own(device, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert device_named("auto") == device_named("cuda") == device
    assert taken == [0, 0]
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="process 1 has no CUDA device of its own, there are 1"):
        device_named("cuda")


def test_devices_are_named():
    assert device_named("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device is 'tpu': pass auto, cpu or cuda"):
        device_named("tpu")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("number", [1, 5, 16])
def test_shares_cover_everything_once(count, number):
    shares = [Ranks(rank, count).share(number) for rank in range(count)]
    assert [i for share in shares for i in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
