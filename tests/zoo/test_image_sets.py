"""Images are standardised, and as many labels are wrong as was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import stream
from torch.nn import functional as F

from hesstheory import zoo
from hesstheory.zoo.data import stored_digits
from hesstheory.zoo.image_sets import IMAGE_SETS


def test_digits_are_standardised_images():
    inputs, targets = zoo.images("digits", dtype=torch.float64)
    assert inputs.shape == (1797, 3, 32, 32)
    assert torch.equal(targets, zoo.digits().targets)
    assert torch.equal(inputs[:, 0], inputs[:, 1])
    assert torch.equal(inputs[:, 0], inputs[:, 2])
    torch.testing.assert_close(inputs.mean(), torch.tensor(0.0))
    torch.testing.assert_close(inputs.square().mean(), torch.tensor(1.0))
    first = zoo.images("digits", num_samples=7)
    assert first.inputs.dtype == torch.float32
    torch.testing.assert_close(first.inputs, inputs[:7].float())


def test_digits_are_as_many_as_their_entry_says():
    known = IMAGE_SETS["digits"]
    targets = zoo.images("digits").targets
    assert len(targets) == known.num_images
    assert targets.unique().tolist() == list(range(known.num_classes))


def test_enlarged_digits_are_the_digits():
    """Means over 4 × 4 pixels blur with known weights.

    Bilinear interpolation leaves constant images as they are.
    """
    inputs, _ = zoo.images("digits", num_samples=50, dtype=torch.float64)
    small = F.avg_pool2d(inputs[:, :1], 4).flatten(1)
    plain = stored_digits(10)[0][:50]
    for large, digit in zip(small.numpy(), plain, strict=True):
        assert np.corrcoef(large, digit)[0, 1] > 0.95


def test_changing_images_in_place_does_not_change_the_next_copy():
    data = zoo.images("digits", num_samples=3, dtype=torch.float64)
    data.inputs.zero_()
    data.targets.fill_(7)
    again = zoo.images("digits", num_samples=3, dtype=torch.float64)
    assert float(again.inputs.norm()) > 1
    assert again.targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("fraction", "num_samples", "expected"),
    [
        (0.0, 100, 0),
        (0.1, 100, 10),
        (0.333, 100, 33),
        (1.0, 100, 100),
        (1e-9, 100, 0),
        (0.5, 1, 0),
        (0.6, 1, 1),
    ],
)
def test_exactly_the_promised_number_of_labels_is_wrong(fraction, num_samples, expected):
    clean = zoo.images("digits", num_samples=num_samples)
    noisy = zoo.images("digits", num_samples=num_samples, label_noise=fraction, generator=stream())
    assert int((noisy.targets != clean.targets).sum()) == expected
    assert torch.equal(noisy.inputs, clean.inputs)
    assert 0 <= int(noisy.targets.min()) <= int(noisy.targets.max()) <= 9


def test_label_noise_is_uniform_over_the_other_classes_and_drawn_from_the_generator():
    clean = zoo.images("digits").targets
    noisy, again, other = (
        zoo.images("digits", label_noise=1.0, generator=stream(s)).targets for s in (0, 0, 1)
    )
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    shifts = ((noisy - clean) % 10).bincount(minlength=10).tolist()
    assert shifts[0] == 0
    mean = 1797 / 9
    assert all(abs(count - mean) < 6 * math.sqrt(mean) for count in shifts[1:])


def test_without_label_noise_the_generator_is_left_alone():
    generator = stream()
    before = generator.get_state()
    zoo.images("digits", num_samples=2, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "mnist"}, KeyError, "no images 'mnist': pass 'digits', 'cifar10', 'cifar100'"),
        ({"train": False}, ValueError, "digits has no test part"),
        ({"num_samples": 1798}, ValueError, "num_samples is 1798: digits has 1 to 1797"),
        ({"num_samples": 0}, ValueError, "num_samples is 0"),
        ({"label_noise": -0.1}, ValueError, "label_noise is -0.1"),
        ({"label_noise": 1.1}, ValueError, "label_noise is 1.1"),
        ({"label_noise": math.nan}, ValueError, "label_noise is nan"),
        ({"label_noise": 0.1, "generator": None}, ValueError, "label_noise needs a generator"),
    ],
)
def test_wrong_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        zoo.images(**{"source": "digits", "generator": stream(), **options})
