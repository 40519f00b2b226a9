"""The grid of attacks and rules: the same numbers in the table, in the picture, and readable there."""

import csv
import re

import numpy as np
import pytest

from simulations.benchmarks.heatmap import luminance, readable_ink, write_heatmap

ATTACKS, RULES = ("none", "least-likely", "$nan$"), ("mean", "median")
LOST = [[0.0, -1.5], [41.268, 2.04], [None, -0.004]]


def written(folder, lost=LOST, attacks=ATTACKS, rules=RULES):
    write_heatmap(folder / "grid", attacks, rules, lost)
    return (folder / "grid.csv").read_text(), (folder / "grid.svg").read_text()


def shown(svg):
    """The texts of an SVG: matplotlib writes each as a comment before its outlines."""
    return re.findall(r"<!-- (.*?) -->", svg)


def test_table_and_picture_hold_the_same_numbers(tmp_path):
    table, svg = written(tmp_path)
    rows = list(csv.reader(table.splitlines()))
    assert rows == [
        ["attack", "mean", "median"],
        ["none", "0.00", "-1.50"],
        ["least-likely", "41.27", "2.04"],
        ["$nan$", "", "0.00"],
    ]
    texts = shown(svg)
    cells = texts.index("0.0")
    assert texts[cells : cells + 6] == ["0.0", "-1.5", "41.3", "2.0", "–", "0.0"]
    assert {*ATTACKS, *RULES} <= set(texts)


def test_the_same_numbers_are_the_same_bytes_without_a_date(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert first == second
    assert "dc:date" not in first[1]


def test_a_grid_without_loss_is_drawn(tmp_path):
    assert "0.0" in shown(written(tmp_path, [[0.0, 0.0]] * 3)[1])


def test_a_grid_without_any_measurement_is_drawn(tmp_path):
    assert shown(written(tmp_path, [[None, float("nan")]] * 3)[1]).count("–") == 6


def test_every_shade_carries_a_readable_number():
    from matplotlib import colormaps

    for colour in [*colormaps["PuOr_r"](np.linspace(0, 1, 256)), *np.random.default_rng(0).random((500, 3))]:
        background, ink = luminance(colour), 1.0 if readable_ink(colour) == "white" else 0.0
        light, dark = max(background, ink), min(background, ink)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


def test_luminance_is_that_of_the_standard():
    # ((.5 + .055) / 1.055)^2.4 = .2140 for each channel
    assert luminance(np.array([0.5, 0.5, 0.5])) == pytest.approx(0.2140, abs=1e-4)
    assert luminance(np.array([0.0, 1.0, 0.0])) == pytest.approx(0.7152)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lost": LOST[:2]}, "lost must be 3 rows of 2 cells"),
        ({"lost": [[1.0, 2.0], [3.0], [4.0, 5.0]]}, "lost must be 3 rows of 2 cells"),
        ({"lost": [], "attacks": ()}, "lost must be 0 rows of 2 cells"),
        ({"lost": [[], [], []], "rules": ()}, "lost must be 3 rows of 0 cells"),
        ({"lost": [[float("inf"), 0.0]] * 3}, "lost has an infinite value"),
        ({"rules": ("mean", "mean")}, "rules mean, mean name one twice"),
        ({"attacks": ("a", "b", "a")}, "attacks a, b, a name one twice"),
    ],
)
def test_a_grid_that_is_none_is_refused_and_nothing_written(tmp_path, changed, says):
    with pytest.raises(ValueError, match=says):
        written(tmp_path, **changed)
    assert not list(tmp_path.iterdir())
