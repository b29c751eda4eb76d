"""The digits are standardised, and every form of them is the same data."""

from __future__ import annotations

import pytest
import torch

from hesstheory import zoo


def test_digits_are_standardised():
    inputs, targets = zoo.digits()
    assert inputs.shape == (1797, 64)
    assert targets.unique().tolist() == list(range(10))
    torch.testing.assert_close(inputs.mean(0), torch.zeros(64, dtype=torch.float64))
    torch.testing.assert_close(inputs.square().mean(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_principal_components_are_white(num_classes):
    inputs, targets = zoo.digits(5, num_classes)
    assert targets.unique().tolist() == list(range(num_classes))
    torch.testing.assert_close(inputs.T @ inputs / len(inputs), torch.eye(5, dtype=torch.float64))


def test_data_forms_agree():
    flat = zoo.digits(None, 3, 7)
    images = zoo.digit_images(3, 7)
    rows = zoo.digit_rows(3, 7)
    assert images.inputs.shape == (7, 1, 8, 8)
    assert rows.inputs.shape == (7, 8, 8)
    assert torch.equal(flat.inputs, images.inputs.flatten(1))
    assert torch.equal(flat.inputs, rows.inputs.flatten(1))
    assert torch.equal(flat.targets, images.targets)


def test_changing_data_in_place_does_not_change_the_next_copy():
    zoo.digits(4, 3).inputs.zero_()
    zoo.digit_images(3).targets.zero_()
    assert float(zoo.digits(4, 3).inputs.norm()) > 1
    assert zoo.digit_images(3).targets.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_features": 65}, "num_features is 65"), ({"num_classes": 11}, "2 to 10 classes")],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.digits(**options)
