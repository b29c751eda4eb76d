"""Folders of images become data, and wrong ones are named."""

from __future__ import annotations

import pytest
import torch
from builders import stream

from hesstheory import zoo


def paint(file, colour, size=(32, 32), mode="RGB"):
    """An image file of one colour."""
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


@pytest.fixture
def pictures(tmp_path):
    """Three cats and one dog of one colour each, of several sizes and modes."""
    root = tmp_path / "pictures"
    paint(root / "cat" / "a.png", (10, 20, 30))
    paint(root / "cat" / "b.PNG", 40, size=(8, 50), mode="L")
    paint(root / "cat" / "more" / "c.bmp", (70, 80, 90), size=(64, 64))
    paint(root / "dog" / "d.png", (110, 120, 130))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    return root


def test_folders_of_images_take_turns(pictures):
    inputs, targets = zoo.images(pictures, dtype=torch.float64)
    assert targets.tolist() == [0, 1, 0, 0]
    plain = torch.tensor(
        [[10, 20, 30], [110, 120, 130], [40, 40, 40], [70, 80, 90]], dtype=torch.float64
    )
    expected = (plain - plain.mean(0)) / plain.std(0, correction=0)
    torch.testing.assert_close(inputs, expected[:, :, None, None].expand(-1, -1, 32, 32))
    assert zoo.images(pictures, num_samples=2).targets.tolist() == [0, 1]
    wrong = zoo.images(pictures, label_noise=1.0, generator=stream())
    assert wrong.targets.tolist() == [1, 0, 1, 1]


def test_a_channel_that_is_the_same_everywhere_is_zero(tmp_path):
    paint(tmp_path / "cat" / "a.png", (10, 0, 5))
    paint(tmp_path / "dog" / "b.png", (30, 0, 5))
    inputs, _ = zoo.images(tmp_path)
    assert inputs[:, :, 0, 0].tolist() == [[-1, 0, 0], [1, 0, 0]]


def test_wrong_folders_are_named(pictures):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder"):
        zoo.images(pictures / "nowhere")
    with pytest.raises(ValueError, match=r"cat has 1 subfolders"):
        zoo.images(pictures / "cat")
    (pictures / "bird").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in bird"):
        zoo.images(pictures)
    (pictures / "bird" / "e.png").write_bytes((pictures / "dog" / "d.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"e\.png is damaged or no image"):
        zoo.images(pictures)
    with pytest.raises(ValueError, match="has no test part"):
        zoo.images(pictures, train=False)
