"""Inputs: scaling by public rows only, JSON there and back, every missing thing has its place."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from distillation.inputs import ImageInputs, TableInputs, fit_table, inputs_from_json, inputs_to_json

FRAME = pd.DataFrame(
    {
        "age": [10.0, 20.0, np.nan, 30.0],
        "ward": ["b", "a", None, "b"],
        "code": [1.0, 2.0, 2.0, np.nan],
        "flat": [5, 5, 5, 5],
    }
)
FITTED = fit_table(FRAME, {"ward", "code"})


def test_a_table_is_scaled_and_encoded_as_computed_by_hand():
    # age: median and mean 20, deviation sqrt(200/3) = 8.165; ward: a, b; code: 1, 2; flat: deviation 0 counts as 1
    s = (200 / 3) ** 0.5
    expected = [
        [-10 / s, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, 1, 0, 0],
        [10 / s, 0, 0, 1, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(FITTED.encode(FRAME), expected, atol=1e-6)
    assert FITTED.shape == (8,)


def test_columns_are_found_by_name_and_unknown_categories_are_all_zero():
    other = pd.DataFrame({"extra": [1], "code": ["2"], "flat": [7], "ward": ["z"], "age": [20]})
    assert FITTED.encode(other).tolist() == [[0, 0, 0, 0, 0, 1, 2, 0]]


def test_absurd_values_are_capped():
    absurd = pd.DataFrame({"age": [1e30, np.inf], "ward": ["a", "a"], "code": [1, 1], "flat": [5, 5]})
    assert FITTED.encode(absurd)[:, :2].tolist() == [[100.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(("column", "says"), [("age", "'age' is missing"), ("ward", "'ward' is missing")])
def test_a_missing_column_is_named(column, says):
    with pytest.raises(ValueError, match=says):
        FITTED.encode(FRAME.drop(columns=column))


def test_text_among_numbers_is_counted_and_not_shown():
    with pytest.raises(ValueError, match="1 of 1 values are text") as caught:
        FITTED.encode(pd.DataFrame({"age": ["4711"[:2] + "x"], "ward": ["a"], "code": [1], "flat": [5]}))
    assert "47x" not in str(caught.value)


@pytest.mark.parametrize("inputs", [FITTED, ImageInputs((3, 4, 4), 1 / 255, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))])
def test_json_there_and_back_is_exact(inputs):
    assert inputs_from_json(json.loads(json.dumps(inputs_to_json(inputs)))) == inputs


@pytest.mark.parametrize("data", [{}, {"kind": "sound"}, {"kind": "table", "columns": [{"nme": "x"}]}])
def test_other_json_is_refused(data):
    with pytest.raises((KeyError, TypeError, ValueError)):
        inputs_from_json(data)


def test_images_are_scaled_per_channel_and_the_stored_ones_stay():
    features = torch.tensor([[[[255]], [[0]]]], dtype=torch.uint8)
    inputs = ImageInputs((2, 1, 1), 1 / 255, (0.5, 0.25), (0.5, 0.25))
    torch.testing.assert_close(inputs.tensor(features).flatten(), torch.tensor([1.0, -1.0]))
    assert features.flatten().tolist() == [255, 0]


def test_a_float_tensor_of_images_is_not_changed_in_place():
    features = torch.ones(1, 1, 1, 1)
    ImageInputs((1, 1, 1), 0.5, (0.0,), (1.0,)).tensor(features)
    assert float(features) == 1.0


def test_a_column_of_missing_values_only_is_constant():
    fitted = fit_table(pd.DataFrame({"x": [np.nan, np.nan], "c": [None, None]}), {"c"})
    assert isinstance(fitted, TableInputs)
    assert np.isfinite(fitted.encode(pd.DataFrame({"x": [1.0], "c": ["new"]}))).all()
