"""What does not fit together is refused before a row is read or a file written, with the way out in the sentence."""

import pytest

from client.config import load_site
from simulations.config import ConfigError
from simulations.experiment import run_experiment
from simulations.preparation import prepare
from strategies.aggregators import build_aggregator

DELTA = "quantised:1+delta+entropy"

# (sections, what is said, the way out taken)
MISFITS = {
    "class tables are asked whole": (
        {"strategy": {"aggregator": "per-class", "cache_rounds": 5}},
        "strategy.aggregator 'per-class' asks every class in every round, and strategy.cache_rounds=5 .*: set it to 0",
        {"strategy": {"aggregator": "per-class", "cache_rounds": 0}},
    ),
    "a cache is one table for all": (
        {"strategy": {"aggregator": "clustered", "cache_rounds": 5}},
        "strategy.aggregator 'clustered' gives clients teachers of their own, and strategy.cache_rounds=5 and "
        "strategy.downlink='float32' keep one table for all: set cache_rounds=0 and a downlink without .delta",
        {"strategy": {"aggregator": "clustered", "cache_rounds": 0}},
    ),
    "a difference is to one table for all": (
        {"strategy": {"aggregator": "per-class", "downlink": DELTA}},
        "strategy.aggregator 'per-class' gives clients .* of their own, and .* strategy.downlink='quantised:1.delta",
        {"strategy": {"aggregator": "per-class", "downlink": "quantised:1+entropy"}},
    ),
    "also behind a sharpening": (
        {"strategy": {"aggregator": {"name": "clustered", "then": "era"}, "downlink": DELTA}},
        "strategy.aggregator 'clustered' gives clients teachers of their own",
        {"strategy": {"aggregator": {"name": "clustered", "then": "era"}}},
    ),
    "a student that nobody hears": (
        {"strategy": {"aggregator": "clustered"}, "student": {"speaks": True}},
        "strategy.aggregator 'clustered' gives clients .* of their own, and student.speaks=true .*: set it to false",
        {"strategy": {"aggregator": "clustered"}, "student": {"speaks": False}},
    ),
    "a student that there is not": (
        {"strategy": {"aggregator": "per-class"}, "student": {"speaks": True}},
        "strategy.aggregator 'per-class' .* student.speaks=true .*: set it to false",
        {"strategy": {"aggregator": "per-class"}, "student": {"speaks": False}},
    ),
    "scores without a selector": (
        {"strategy": {"aggregator": "sample-weighted"}},
        "strategy.aggregator 'sample-weighted' needs the clients' scores, and without client.selector there are none: "
        'set it, for example to "certainty"',
        {"strategy": {"aggregator": "sample-weighted"}, "client": {"selector": "certainty"}},
    ),
    "scores as a weight": (
        {"strategy": {"aggregator": {"name": "median", "weight": "sample-weighted"}}},
        "strategy.aggregator 'median' needs the clients' scores",
        {
            "strategy": {"aggregator": {"name": "median", "weight": "sample-weighted"}},
            "client": {"selector": "certainty"},
        },
    ),
    "an attack on real sites": (
        {"attack": {"name": "random"}, "federation": {"engine": "deployment"}},
        "attack.name='random' goes with the in-process engine only, and federation.engine='deployment'",
        {"attack": {"name": "random"}, "federation": {"engine": "in-process"}},
    ),
    "an attack by differences": (
        {"attack": {"name": "random"}, "strategy": {"uplink": DELTA}},
        "attack.name='random' needs votes that stand alone, and strategy.uplink='quantised:1.delta.entropy' sends "
        "differences: set an uplink without .delta",
        {"attack": {"name": "random"}, "strategy": {"uplink": "quantised:1+entropy"}},
    ),
    "a replay of what nobody holds": (
        {"attack": {"name": "replay"}, "strategy": {"cache_rounds": 5}},
        "attack.name='replay' sends the last teacher back, and strategy.cache_rounds=5 and .* send only what changed",
        {"attack": {"name": "replay"}},
    ),
    "a replay on some rows": (
        {"attack": {"name": "partial", "attack": "replay"}, "strategy": {"downlink": "float16+delta+entropy"}},
        "attack.name='partial' sends the last teacher back, and .* a downlink without .delta",
        {"attack": {"name": "partial", "attack": "replay"}, "strategy": {"downlink": "float16+entropy"}},
    ),
    "a replay in an attack in an attack": (
        {
            "attack": {"name": "partial", "attack": {"name": "partial", "attack": "replay"}},
            "strategy": {"cache_rounds": 5},
        },
        "attack.name='partial' sends the last teacher back, and strategy.cache_rounds=5 and .* send only what changed",
        {
            "attack": {"name": "partial", "attack": {"name": "partial", "attack": "uniform"}},
            "strategy": {"cache_rounds": 5},
        },
    ),
    "stragglers that nobody waits for": (
        {"stragglers": {"share": 0.5, "rounds": 3}, "federation": {"mode": "async", "patience": 2}},
        "stragglers.rounds=3 must be at most federation.patience=2: an answer that comes later is never counted",
        {"stragglers": {"share": 0.5, "rounds": 2}, "federation": {"mode": "async", "patience": 2}},
    ),
    "newcomers among real sites": (
        {"newcomers": {"share": 0.5}, "federation": {"engine": "flower-simulation"}},
        "newcomers.share=0.5 goes with the in-process engine only, and federation.engine='flower-simulation'",
        {"newcomers": {"share": 0.5}},
    ),
    "newcomers that never come": (
        {"newcomers": {"share": 0.5, "round": 11}, "federation": {"rounds": 10}},
        "newcomers.round=11 must be at most federation.rounds=10: nobody would join",
        {"newcomers": {"share": 0.5, "round": 10}, "federation": {"rounds": 10}},
    ),
    "kept votes of classes": (
        {"strategy": {"preset": "feddistill"}, "federation": {"keep_votes": True}},
        "federation.keep_votes=true keeps votes for `consilium forget`, and .*per-class.* has class tables",
        {"strategy": {"preset": "feddistill"}},
    ),
    "stragglers among real sites": (
        {"stragglers": {"share": 0.5}, "federation": {"engine": "flower-simulation"}},
        "stragglers.share=0.5 goes with the in-process engine only, and federation.engine='flower-simulation'",
        {"stragglers": {"share": 0.5}},
    ),
    "a deadline that Flower cannot keep": (
        {"federation": {"engine": "deployment", "timeout_s": 10.0}},
        "federation.timeout_s = 10 must be at least 70 with the deployment engine",
        {"federation": {"timeout_s": 10.0}},
    ),
    # known only with the data
    "more classes kept than there are": (
        {"strategy": {"uplink": "top-k:10"}},
        "strategy.uplink='top-k:10': k=10 must be below the 10 classes: use float16",
        {"strategy": {"uplink": "top-k:9"}},
    ),
    "also downwards": (
        {"strategy": {"downlink": "top-k:12+entropy"}},
        "strategy.downlink='top-k:12.entropy': k=12 must be below the 10 classes",
        {"strategy": {"downlink": "top-k:4+entropy"}},
    ),
    "an attack on another class than there is": (
        {"attack": {"name": "colluding", "target": 10}},
        "attack.name='colluding': target=10 must be below 10",
        {"attack": {"name": "colluding", "target": 9}},
    ),
    "raw numbers in a link for distributions": (
        {"attack": {"name": "nan"}, "strategy": {"uplink": "quantised:2"}},
        "attack.name='nan': it sends what is no distribution, and strategy.uplink='quantised:2' can carry nothing else",
        {"attack": {"name": "nan"}, "strategy": {"uplink": "float16"}},
    ),
    "more attackers than clients": (
        {"attack": {"name": "random", "clients": 5}},
        "attack.name='random': clients=5 must be at most 4",
        {"attack": {"name": "random", "clients": 4}},
    ),
    "attackers that nobody knows": (
        {"attack": {"name": "random", "clients": ["site-009"]}},
        "attack.name='random': clients names 'site-009', and there are site-000 to site-003",
        {"attack": {"name": "random", "clients": ["site-003"]}},
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_and_leaves_nothing(case, tiny, inline, tmp_path):
    sections, says, _ = MISFITS[case]
    with pytest.raises(ConfigError, match=says) as refused:
        run_experiment(tiny(**sections), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", MISFITS)
def test_the_way_out_is_one(case, tiny, tmp_path):
    from simulations.preparation import check_config

    config = tiny(**MISFITS[case][2])
    check_config(config)
    prepare(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"strategy": {"aggregator": {"name": "era", "temprature": 0.5}}},
            "aggregator 'era' has no setting 'temprature'",
        ),
        ({"strategy": {"aggregator": {"name": "mean", "then": "median"}}}, "then='median' has no sharpen; then can be"),
        ({"client": {"selector": "nearest"}}, "unknown selector 'nearest'; known: certainty, kmeans-ratio, kulsif"),
        ({"client": {"selector": {"name": "kulsif", "quantil": 0.1}}}, "selector 'kulsif' has no setting 'quantil'"),
        (
            {"client": {"selector": {"name": "kulsif", "on": "paper"}}},
            "client.selector: on='paper' must be \"inputs\" or",
        ),
        ({"attack": {"name": "backdoor"}}, "unknown attack 'backdoor'; known: class-covariance"),
        ({"attack": {"name": "lie", "z": -1.0}}, "z=-1.0 must be at least 0"),
    ],
)
def test_a_part_that_there_is_not_is_refused(sections, says, tiny, tmp_path):
    with pytest.raises(ConfigError, match=says):
        run_experiment(tiny(**sections), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "released"),
    [
        ({}, []),
        ({"strategy": {"aggregator": "class-count"}}, ["counts"]),
        ({"strategy": {"aggregator": "per-class"}}, ["class-tables"]),
        ({"strategy": {"aggregator": {"name": "per-class", "by_count": True}}}, ["counts", "class-tables"]),
        (
            {"strategy": {"aggregator": "sample-weighted"}, "client": {"selector": "certainty"}},
            ["scores", "abstentions"],
        ),
    ],
)
def test_a_simulated_site_releases_what_the_rule_needs_and_no_more(sections, released, tiny, tmp_path):
    setup = prepare(tiny(**sections), tmp_path / "out")
    for path in setup.site_files.values():
        policy = load_site(path).policy
        assert policy is not None
        assert policy.release == released
        assert (policy.max_answers, policy.max_rows_per_round) == (2, 40)


def test_a_site_that_several_rules_ask_releases_what_any_of_them_needs(tiny, tmp_path):
    rules = [build_aggregator(name, {}) for name in ("sample-weighted", "mean", "class-count")]
    around = build_aggregator("median", {"weight": "sample-weighted"})
    setup = prepare(tiny(client={"selector": "certainty"}), tmp_path / "out", [*rules, around])
    policies = [load_site(path).policy for path in setup.site_files.values()]
    assert [set(policy.release) for policy in policies] == [{"scores", "counts", "abstentions"}] * 4
