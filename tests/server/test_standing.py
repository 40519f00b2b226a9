"""What one round leaves to the next goes through a file and comes back bit for bit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from distillation.learner import Training
from server.checkpoint import Progress, RoundMetrics, load_progress, save_progress
from server.config import FederationConfig, StudentSettings
from server.links import Links, News
from server.rounds import run_rounds
from server.standing import Standing
from strategies.aggregator import Outcome
from strategies.aggregators.mean import Mean
from strategies.cache import LabelCache
from strategies.soft_labels import SoftLabels
from strategies.tables import Table


def config(exchange):
    return FederationConfig(
        exchange=exchange,
        rounds=9,
        clients=2,
        aggregator="mean",
        aggregator_settings={},
        student=StudentSettings(model="mlp", training=Training(), distil_epochs=1, best_metric="accuracy"),
        proxy="p",
        test="t",
        device="cpu",
        timeout_s=1.0,
    )


def through_a_file(standing, exchange, path):
    """Saved and loaded, as a coordinator does that was ended and is resumed."""
    row = RoundMetrics(1, None, None, None, None, 1, 0, 0, 1, 1, 1, 1.0)
    save_progress(path, config(exchange), Progress(rounds=(row,), standing=standing))
    return load_progress(path, config(exchange)).standing


def soft(rows, seed=0):
    rows = np.array(rows, np.int64)
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), 3)))


def equal(one, other):
    """Every array of two standings, bit for bit, with its shape and type."""
    told, again = one.arrays(), other.arrays()
    assert told.keys() == again.keys()
    for key, value in told.items():
        assert (value.dtype, value.shape) == (again[key].dtype, again[key].shape), key
        assert value.tobytes() == again[key].tobytes(), key


def full(exchange):
    table = Table.empty(50, 1).changed(7, np.array([1, 2]), np.array([[3], [4]], np.uint8))
    links = Links.new(50, 3, "quantised:1+delta+entropy").published(7, soft([1, 2]), "quantised:1+delta+entropy")
    # Names that are themselves the endings of our keys.
    rows = np.array([1, 2])
    applied = {"a.rows": (7, rows), "a": (7, rows[:1]), "heard.b": (2, rows[:0])}
    links = links.after(News(applied=applied, heard={"a": table, "a.rows": table}))
    cache = LabelCache.empty(50, 3, exchange.cache_rounds).filed(soft([4, 9]), 7)
    return Standing(
        links,
        soft(range(8)),
        choices=tuple(soft([1, 5], seed) for seed in range(12)),
        personal={"a": soft([0, 1]), "a.rows": soft([2]), "a.log_probs": soft([]), "b": soft([3, 4], 4)},
        state={"log_weights": np.array([0.1, -2.5]), "scalar": np.array(3.0), "none": np.zeros((0, 2))},
        cache=cache,
        disagreement=np.where(np.arange(50) % 2, np.nan, 0.25),
    )


def test_every_field_comes_back(exchange, tmp_path):
    settings = exchange(cache_rounds=5, choice="disagreement")
    standing = full(settings)
    got = through_a_file(standing, settings, tmp_path / "c")
    equal(standing, got)
    lacking = {name: got.links.missing(name, np.array([1, 2])) for name in ("a.rows", "a", "heard.b", "c")}
    assert {name: (base, rows.tolist()) for name, (base, rows) in lacking.items()} == {
        "a.rows": (7, []),
        "a": (7, [2]),
        "heard.b": (2, [1, 2]),
        "c": (0, [1, 2]),
    }
    assert (got.links.have("a"), got.links.have("b")) == (7, 0)
    assert [choice.log_probs.tolist() for choice in got.choices] == [
        choice.log_probs.tolist() for choice in standing.choices
    ]
    assert sorted(got.personal) == ["a", "a.log_probs", "a.rows", "b"]
    assert got.personal["a.log_probs"].rows.tolist() == []
    assert got.state["scalar"].shape == ()
    assert got.cache.duration == 5


def test_a_new_standing_has_what_its_exchange_needs(exchange, tmp_path):
    plain = Standing.new(exchange())
    assert (plain.cache, plain.disagreement, plain.teacher) == (None, None, None)
    settings = exchange(cache_rounds=3, choice="disagreement", subject="classes")
    standing = Standing.new(settings)
    assert standing.cache.made.tolist() == [0, 0, 0]
    assert len(standing.disagreement) == 3
    equal(standing, through_a_file(standing, settings, tmp_path / "c"))


@dataclass(frozen=True)
class Remembers:
    """A rule as ExpGuard is one: a number by client that lasts, and that the teacher depends on."""

    def aggregate(self, state, ballot, reports):
        reports = sorted(reports, key=lambda report: report.client)
        pooled = Mean().aggregate({}, ballot, reports).teacher
        known = dict(state)
        for report in reports:
            mine, at = np.isin(report.soft_labels.rows, pooled.rows), np.isin(pooled.rows, report.soft_labels.rows)
            apart = np.abs(pooled.probabilities()[at] - report.soft_labels.probabilities()[mine])
            far = apart.mean() if apart.size else 0.0
            known[report.client] = known.get(report.client, np.zeros(())) - far
        trusted = [replace(report, weight=float(np.exp(known[report.client]))) for report in reports]
        return Outcome(Mean().aggregate({}, ballot, trusted).teacher, known)


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize(
    "changed",
    [
        {"cache_rounds": 3},
        {"uplink": "quantised:1+delta+entropy", "downlink": "quantised:2+delta+entropy"},
        {"choice": "disagreement", "cache_rounds": 2},
        {"choice": "epoch", "cache_rounds": 4, "downlink": "float16+delta+entropy", "participation": 0.5},
    ],
)
def test_a_resumed_run_equals_the_whole_one_bitwise(changed, stop, exchange, scripted, tmp_path):
    settings = exchange(**changed)

    def keeps(client, rows):
        return rows[(rows + int(client[1:])) % 4 > 0]

    whole = list(run_rounds(scripted(keeps=keeps), Remembers(), settings, 9))
    begun = list(run_rounds(scripted(keeps=keeps), Remembers(), settings, stop))
    standing = through_a_file(begun[-1].standing, settings, tmp_path / "c")
    rest = list(run_rounds(scripted(keeps=keeps), Remembers(), settings, 9, done=stop, standing=standing))
    assert len(rest) == 9 - stop
    for one, other in zip(whole[stop:], rest, strict=True):
        assert one.teacher.rows.tolist() == other.teacher.rows.tolist()
        assert one.teacher.log_probs.tobytes() == other.teacher.log_probs.tobytes()
        assert (one.upload_bytes, one.download_bytes) == (other.upload_bytes, other.download_bytes)
        equal(one.standing, other.standing)
