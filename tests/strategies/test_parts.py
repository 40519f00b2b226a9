"""Parts by name, rules with what stands around them, rules from outside the tree; every sentence of an error."""

import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

from strategies.aggregator import Ballot
from strategies.aggregators import build_aggregator
from strategies.aggregators.confidence import Confidence
from strategies.aggregators.cronus import Cronus
from strategies.aggregators.enhanced_era import EnhancedEra
from strategies.aggregators.entropy import Entropy
from strategies.aggregators.era import Era
from strategies.aggregators.expguard import ExpGuard
from strategies.aggregators.mean import Mean
from strategies.aggregators.median import Median
from strategies.aggregators.pipeline import Pipeline
from strategies.aggregators.trimmed_mean import TrimmedMean
from strategies.contract import check_aggregator
from strategies.messages import ClientReport
from strategies.parts import PARTS_FOLDER, build_part
from strategies.soft_labels import SoftLabels

PLUG_IN = '''
"""A rule from outside of the tree. No `from __future__ import annotations`: types are types here."""
from dataclasses import dataclass

import numpy as np

from strategies.aggregator import Outcome
from strategies.aggregators.pooling import log_of, mean_probabilities
from strategies.soft_labels import SoftLabels


@dataclass(frozen=True)
class Sharper:
    power: float
    twice: bool = False

    def aggregate(self, state, ballot, reports):
        pooled = mean_probabilities(ballot, reports)
        return Outcome(SoftLabels.from_logits(pooled.rows, self.sharpen(log_of(pooled.mean))), state)

    def sharpen(self, log_probs):
        return (2 if self.twice else 1) * self.power * log_probs

    def weights(self, report):
        return np.full(len(report.soft_labels.rows), 0.5)


@dataclass(frozen=True)
class Failing:
    how: str

    def __post_init__(self):
        raise {"runtime": RuntimeError("no\\nlicence"), "value": ValueError("how is wrong"), "bare": ValueError(),
               "key": KeyError("how"), "type": TypeError("no len()")}[self.how]

    def aggregate(self, state, ballot, reports):
        raise NotImplementedError


class Silent:
    pass


class Demanding:
    def __init__(self, power):
        self.power = power

    def aggregate(self, state, ballot, reports):
        raise NotImplementedError


rule = Sharper(2.0)
'''


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    (tmp_path / "their_rules.py").write_text(PLUG_IN)
    (tmp_path / "their_broken_rules.py").write_text("class Sharper(")
    monkeypatch.syspath_prepend(tmp_path)


@dataclass(frozen=True)
class Inner:
    size: int = 1

    def run(self):
        return self.size


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    share: float = 0.5
    on: bool = True
    count: int = 3
    inner: Inner = Inner()
    made: Inner = field(default_factory=Inner)
    hidden: int = field(default=7, init=False)

    def run(self):
        return self.inner.run()


def built(settings, name="outer"):
    return build_part("thing", {"outer": Outer, "inner": Inner}, name, settings, "run")


def test_defaults_and_settings():
    assert built({}) == Outer()
    assert built({"name": "y", "share": 1, "on": False, "count": 4}) == Outer("y", 1, False, 4)


@pytest.mark.parametrize("key", ["inner", "made"])
def test_a_part_of_a_part_is_a_name_or_a_table(key):
    assert getattr(built({key: "inner"}), key) == Inner()
    assert getattr(built({key: {"name": "inner", "size": 5}}), key) == Inner(5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"colour": 1}, "thing 'outer' has no setting 'colour'; known: name, share, on, count, inner, made"),
        ({"hidden": 1}, "thing 'outer' has no setting 'hidden'"),
        ({"name": 3}, "thing 'outer': name=3 must be text"),
        ({"share": "half"}, "thing 'outer': share='half' must be a number"),
        ({"share": True}, "thing 'outer': share=True must be a number"),
        ({"on": 1}, "thing 'outer': on=1 must be true or false"),
        ({"count": 1.5}, "thing 'outer': count=1.5 must be a whole number"),
        ({"count": True}, "thing 'outer': count=True must be a whole number"),
        ({"inner": 3}, "thing 'outer': inner=3 must be a name, or a table with a name"),
        ({"inner": {"size": 3}}, "must be a name, or a table with a name"),
        ({"inner": {"name": "inner", "size": "big"}}, "thing 'inner': size='big' must be a whole number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        built(settings)


def test_a_part_without_the_method_and_an_unknown_part():
    with pytest.raises(ValueError, match="thing 'outer' has no method 'fly'"):
        build_part("thing", {"outer": Outer}, "outer", {}, "fly")
    with pytest.raises(KeyError, match="unknown thing 'other'; known: inner, outer; your own: module:Name"):
        built({}, "other")


def test_a_class_that_is_no_dataclass_has_no_settings():
    class Plain:
        def run(self):
            return 1

    assert build_part("thing", {"plain": Plain}, "plain", {}, "run").run() == 1
    with pytest.raises(ValueError, match="has no setting 'size'; known: none"):
        build_part("thing", {"plain": Plain}, "plain", {"size": 1}, "run")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("mean", {}, Mean()),
        ("median", {"weight": "entropy"}, Pipeline(Median(), weight=Entropy())),
        ("median", {"weight": {"name": "confidence", "exponent": 2}}, Pipeline(Median(), weight=Confidence(2))),
        ("trimmed-mean", {"trim": 0.1, "then": "era"}, Pipeline(TrimmedMean(0.1), then=Era())),
        ("mean", {"then": {"name": "enhanced-era", "exponent": 3.0}}, Pipeline(Mean(), then=EnhancedEra(3.0))),
        ("mean", {"ambiguity": 1.0}, Pipeline(Mean(), ambiguity=1.0)),
        ("expguard", {"base": "cronus"}, ExpGuard(base=Cronus())),
        (
            "expguard",
            {
                "step": 0.5,
                "base": {"name": "cronus", "attackers": 2},
                "weight": "entropy",
                "then": "era",
                "ambiguity": 1.5,
            },
            Pipeline(ExpGuard(step=0.5, base=Cronus(2)), Entropy(), 1.5, Era()),
        ),
    ],
)
def test_a_rule_and_what_stands_around_it(name, settings, expected):
    assert build_aggregator(name, settings) == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"weight": "median"},
            "weight='median' has no weights; weight can be confidence, entropy, sample-weighted, variance",
        ),
        ({"then": "mean"}, "then='mean' has no sharpen; then can be enhanced-era, era"),
        ({"weight": 3}, "weight=3 must be a rule's name, or a table with a name"),
        ({"then": {"exponent": 2}}, "must be a rule's name, or a table with a name"),
        ({"weight": {"name": "confidence", "power": 2}}, "'confidence' has no setting 'power'; known: exponent"),
        ({"then": {"name": "era", "temperature": 2.0}}, r"temperature=2.0 must be in \[0.001, 1\)"),
        ({"ambiguity": 0.0}, r"ambiguity=0.0 must be in \(0, 2\]: 2 keeps every row"),
        ({"ambiguity": "high"}, "aggregator 'mean': ambiguity='high' must be a number"),
        ({"ambiguity": True}, "aggregator 'mean': ambiguity=True must be a number"),
        ({"ambiguity": None}, "aggregator 'mean': ambiguity=None must be a number"),
        ({"base": "median"}, "'mean' has no setting 'base'; known: none"),
    ],
)
def test_what_cannot_stand_around_a_rule_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        build_aggregator("mean", settings)


@pytest.mark.parametrize("key", ["weight", "then"])
def test_an_unknown_companion_is_a_key_error(key):
    with pytest.raises(KeyError, match=f"unknown {key} 'trust'; known: "):
        build_aggregator("mean", {key: "trust"})


def test_a_rule_from_outside_the_tree(plug_in):
    rule = build_aggregator("their_rules:Sharper", {"power": 2.0, "then": "era", "weight": "entropy"})
    assert (rule.rule.power, rule.rule.twice) == (2.0, False)
    assert check_aggregator(build_aggregator("their_rules:Sharper", {"power": 2})) == []
    around = {
        "weight": {"name": "their_rules:Sharper", "power": 1},
        "then": {"name": "their_rules:Sharper", "power": 3},
    }
    assert check_aggregator(build_aggregator("median", around)) == []
    assert build_aggregator("expguard", {"base": {"name": "their_rules:Sharper", "power": 1.0}}).base.power == 1.0


@pytest.mark.parametrize("told", [False, True])
def test_a_module_in_the_working_directory_or_the_told_folder_is_found(tmp_path, monkeypatch, told):
    module = f"their_own_rules_{told}".lower()  # what was imported once stays imported
    (tmp_path / f"{module}.py").write_text(PLUG_IN)
    monkeypatch.setattr("sys.path", list(sys.path))
    if told:
        monkeypatch.setenv(PARTS_FOLDER, str(tmp_path))
    else:
        monkeypatch.delenv(PARTS_FOLDER, raising=False)
        monkeypatch.chdir(tmp_path)
    assert build_aggregator(f"{module}:Sharper", {"power": 2.0}).power == 2.0


@pytest.mark.parametrize(
    ("name", "settings", "error", "says"),
    [
        ("their_rules:Sharper", {}, ValueError, "aggregator 'their_rules:Sharper' needs the setting 'power'"),
        ("their_rules:Sharper", {"power": "much"}, ValueError, "power='much' must be a number"),
        ("their_rules:Sharper", {"power": 1, "twice": 2}, ValueError, "twice=2 must be true or false"),
        ("their_rules:Silent", {}, ValueError, "aggregator 'their_rules:Silent' has no method 'aggregate'"),
        ("their_rules:Missing", {}, KeyError, "cannot be imported .AttributeError"),
        ("their_broken_rules:Sharper", {}, KeyError, "cannot be imported .SyntaxError"),
        (
            "their_rules:Demanding",
            {},
            ValueError,
            "'their_rules:Demanding' cannot be made .*: make it a frozen dataclass",
        ),
        ("no_such_rules:Sharper", {}, KeyError, "cannot be imported .*the working directory or on PYTHONPATH"),
        ("their_rules:rule", {}, KeyError, "is no class: name the class, its settings are its fields"),
        ("their_rules:", {}, KeyError, "unknown aggregator 'their_rules:'"),
        (":Sharper", {}, KeyError, "unknown aggregator ':Sharper'"),
    ],
)
def test_what_is_wrong_with_a_rule_from_outside_is_said(plug_in, name, settings, error, says):
    with pytest.raises(error, match=says):
        build_aggregator(name, settings)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("runtime", "RuntimeError: no licence"),
        ("value", "ValueError: how is wrong"),
        ("bare", "ValueError:"),
        ("key", "KeyError: 'how'"),
        ("type", "TypeError: no len()"),
    ],
)
def test_a_rule_from_outside_that_fails_when_it_is_made_is_one_sentence(plug_in, how, told):
    said = f"aggregator 'their_rules:Failing' cannot be made ({told}): change its settings or its code"
    alone = ("their_rules:Failing", {"how": how})
    around = ("median", {"weight": {"name": "their_rules:Sharper", "power": 1}, "then": "era"})
    within = ("expguard", {"base": {"name": "their_rules:Failing", "how": how}})
    assert build_aggregator(*around)
    for name, settings in (alone, within):
        with pytest.raises(ValueError, match="cannot be made") as refused:
            build_aggregator(name, settings)
        assert str(refused.value) == said


def reports(*votes):
    return [
        ClientReport(f"c{k}", 1, SoftLabels.from_logits(np.arange(len(vote)), np.log(np.array(vote))))
        for k, vote in enumerate(votes)
    ]


# Rows A and B: both 2 (1 - .4667) = 1.0667; row C an exact tie, 1.2.
ROWS = (
    [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.4, 0.4, 0.2]],
    [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.4, 0.4, 0.2]],
    [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.4, 0.4, 0.2]],
)


@pytest.mark.parametrize(
    ("ambiguity", "kept"), [(2.0, [0, 1, 2]), (1.9, [0, 1]), (1.07, [0, 1]), (1.06, []), (0.1, [])]
)
def test_ambiguous_rows_and_exact_ties_are_dropped(ambiguity, kept):
    rule = build_aggregator("mean", {"ambiguity": ambiguity})
    assert rule.aggregate({}, Ballot(np.arange(3), 3, 3, 2), reports(*ROWS)).teacher.rows.tolist() == kept


@pytest.mark.parametrize("name", ["clustered", "per-class"])
def test_the_filter_and_the_sharpening_reach_choices_and_personal_teachers(name):
    ballot = Ballot(np.arange(3), 3, 3, 2)
    plain = build_aggregator(name, {}).aggregate({}, ballot, reports(*ROWS))
    around = build_aggregator(name, {"ambiguity": 1.9, "then": {"name": "enhanced-era", "exponent": 2.0}})
    outcome = around.aggregate({}, ballot, reports(*ROWS))
    before = [plain.teacher, *plain.choices, *plain.personal.values()]
    after = [outcome.teacher, *outcome.choices, *outcome.personal.values()]
    assert len(before) == len(after) == (3 if name == "clustered" else 4)
    for one, other in zip(before, after, strict=True):
        assert other.rows.tolist() == [0, 1]
        squares = one.probabilities()[:2] ** 2
        np.testing.assert_allclose(other.probabilities(), squares / squares.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_pipeline_needs_what_its_parts_need():
    assert build_aggregator("class-count", {"weight": "sample-weighted"}).needs == ("counts", "scores")
    assert build_aggregator("expguard", {"base": "class-count", "weight": "sample-weighted"}).needs == (
        "counts",
        "scores",
    )
    assert build_aggregator("per-class", {"by_count": True, "then": "era"}).needs == ("counts",)
    assert build_aggregator("median", {"then": "era"}).needs == ()
