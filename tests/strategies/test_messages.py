"""A message that breaks its own rules is never made."""

import numpy as np
import pytest

from strategies.messages import MOST_TEACHERS, ClientReport, Refusal, RoundPlan, Sync
from strategies.soft_labels import SoftLabels
from strategies.wire import encode_report

RUN, PROXY, CLASSES = "0123456789abcdef" * 2, "a1" * 32, "b2" * 32
ROWS = np.array([0, 5, 300])


def soft(rows, classes=3, seed=0):
    rows = np.array(rows, np.int64)
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), classes)))


def plan():
    return RoundPlan(RUN, 2, PROXY, CLASSES, 3, ROWS)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"round": 0}, "round"),
        ({"round": 2**32}, "round"),
        ({"classes": 1}, "classes"),
        ({"run": "xyz"}, "run"),
        ({"proxy_sha256": "A1" * 32}, "proxy_sha256"),
        ({"classes_sha256": ""}, "classes_sha256"),
        ({"have": 1}, "have"),
        ({"have": -1}, "have"),
        ({"wants": ("names",)}, "wants"),
        ({"teachers": (soft([1]), soft([2]))}, "same rows"),
        ({"teachers": (soft([1]),) * (MOST_TEACHERS + 1)}, "17 teachers"),
        ({"sync": Sync(1, ROWS, bytes(8), ROWS, np.zeros((3, 1), np.uint8))}, "earlier round"),
        (
            {"teachers": (soft([1]),), "sync": Sync(0, ROWS, bytes(8), ROWS, np.zeros((3, 1), np.uint8))},
            "not both",
        ),
    ],
)
def test_a_plan_out_of_bounds_is_never_made(changed, says):
    told = {
        "run": RUN,
        "round": 1,
        "proxy_sha256": PROXY,
        "classes_sha256": CLASSES,
        "classes": 3,
        "ask_rows": np.array([1]),
    }
    with pytest.raises(ValueError, match=says):
        RoundPlan(**{**told, **changed})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"digest": bytes(7)}, "digest"),
        ({"symbols": np.zeros((2, 1), np.uint8)}, "2 rows of symbols for 3"),
    ],
)
def test_a_difference_out_of_bounds_is_never_made(changed, says):
    told = {"base": 0, "rows": ROWS, "digest": bytes(8), "changed": ROWS, "symbols": np.zeros((3, 1), np.uint8)}
    with pytest.raises(ValueError, match=says):
        Sync(**{**told, **changed})


@pytest.mark.parametrize("weight", [0.0, 0.0009, 1.1, -1.0, float("nan"), np.array([0.5, 2.0]), np.array([0.5])])
def test_weights_out_of_bounds_are_never_made(weight):
    with pytest.raises(ValueError, match="weight"):
        ClientReport("site", 1, soft([1, 2]), weight)


@pytest.mark.parametrize("scores", [[0.5], [0.5, 1.1], [0.5, float("nan")], [-0.1, 0.0]])
def test_scores_out_of_bounds_are_never_made(scores):
    with pytest.raises(ValueError, match="scores must be 2 numbers in"):
        ClientReport("site", 1, soft([1, 2]), scores=np.array(scores))


@pytest.mark.parametrize("counts", [[1.0], [1.0, 2.0, -1.0], [1.0, 2.0, float("inf")]])
def test_counts_out_of_bounds_are_never_made(counts):
    with pytest.raises(ValueError, match="counts must be 3 finite numbers"):
        ClientReport("site", 1, soft([1, 2]), counts=np.array(counts))


def test_an_unknown_refusal_is_never_made():
    with pytest.raises(ValueError, match="unknown refusal"):
        Refusal("site", 1, "patient 4711 was missing")


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_names_that_cannot_be_coded_are_refused(name):
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        encode_report(ClientReport(name, 2, soft(ROWS)), plan())


def test_a_vote_that_was_not_asked_is_never_sent():
    with pytest.raises(ValueError, match="1 rows that the plan does not ask"):
        encode_report(ClientReport("a", 2, soft([0, 6])), plan())
