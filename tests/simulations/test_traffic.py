"""Bytes until an accuracy is reached, on tables made by hand."""

import csv
import io

import pytest

from simulations.reporting.traffic import bytes_to

METRICS = """round,student_accuracy,client_accuracy_mean,upload_bytes,download_bytes
1,0.400000,,100,10
2,0.700000,0.500000,200,20
3,0.600000,,400,40
4,0.900000,0.700000,800,80
"""


def rows():
    return list(csv.DictReader(io.StringIO(METRICS)))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.3, (100, 10)),  # round 1 is paid for before its accuracy is known
        (0.4, (100, 10)),
        (0.5, (300, 30)),
        (0.7, (300, 30)),  # first reached in round 2; that round 3 falls below again does not count
        (0.8, (1500, 150)),
        (0.9, (1500, 150)),
        (0.91, None),
    ],
)
def test_bytes_are_summed_up_to_the_first_round_that_reaches_it(threshold, expected):
    assert bytes_to(rows(), "student_accuracy", threshold) == expected


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, (300, 30)), (0.6, (1500, 150)), (0.8, None)])
def test_a_round_that_was_not_measured_costs_and_reaches_nothing(threshold, expected):
    assert bytes_to(rows(), "client_accuracy_mean", threshold) == expected


def test_numbers_are_read_as_text_is():
    numbers = [{key: float(cell) if cell else None for key, cell in row.items()} for row in rows()]
    for column in ("student_accuracy", "client_accuracy_mean"):
        assert bytes_to(numbers, column, 0.65) == bytes_to(rows(), column, 0.65)


def test_nan_and_no_rows_reach_nothing():
    assert bytes_to([], "accuracy", 0.5) is None
    assert bytes_to([{"accuracy": "nan", "upload_bytes": "1", "download_bytes": "1"}], "accuracy", 0.5) is None


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, 90, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        bytes_to(rows(), "student_accuracy", threshold)


def test_an_unknown_column_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="no column 'accuracy'; known: round, student_accuracy"):
        bytes_to(rows(), "accuracy", 0.5)
