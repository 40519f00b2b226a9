"""The grid: how axes are read, that every point is checked first, and that no two points share a folder."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.config import ConfigError, load_config
from simulations.sweeps.grid import Axis, axes_of, points_of, slug

TINY = '[data]\nname = "digits"\n[federation]\nrounds = 7\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(TINY)
    return path


def values_of(grid):
    (axis,) = axes_of([grid])
    return axis.values


@pytest.mark.parametrize(
    ("grid", "key", "values"),
    [
        ("privacy.epsilon=0.5,1,inf", "privacy.epsilon", (0.5, 1, math.inf)),
        ("seed=1,2,3", "federation.seed", (1, 2, 3)),
        ("rounds=5", "federation.rounds", (5,)),
        ("clients=2,4", "federation.clients", (2, 4)),
        ("preset=ds-fl,fedmd", "strategy.preset", ("ds-fl", "fedmd")),
        ("aggregator=era,my_rules:Borda", "strategy.aggregator", ("era", "my_rules:Borda")),
        ("baselines.pooled=true,false", "baselines.pooled", (True, False)),
        # a comma inside brackets or quotes is the value's own
        ('client.models=["mlp", "cnn"],["mlp"]', "client.models", (["mlp", "cnn"], ["mlp"])),
        ('data.drop=["a],b"],[]', "data.drop", (["a],b"], [])),
        (
            'aggregator={name = "era", temperature = 0.1},mean',
            "strategy.aggregator",
            ({"name": "era", "temperature": 0.1}, "mean"),
        ),
        ("strategy.aggregator.temperature = 0.1 , 0.5", "strategy.aggregator.temperature", (0.1, 0.5)),
        ('data.path="a,b","c"', "data.path", ("a,b", "c")),
    ],
)
def test_an_axis_is_any_key_with_values_as_toml(grid, key, values):
    (axis,) = axes_of([grid])
    assert (axis.key, axis.values) == (key, values)
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("grids", "says"),
    [
        ([], "a sweep needs an axis: add for example --grid seed=1,2,3"),
        (
            ["epsilon=1"],
            "--grid 'epsilon=1' must read key=value,value with a key as section.key or one of seed, rounds",
        ),
        (["seed"], "must read key=value,value"),
        ([".seed=1"], "must read key=value,value"),
        (["federation..seed=1"], "must read key=value,value"),
        (["seed=1,,2"], "--grid 'seed=1,,2' has an empty value"),
        (["seed="], "has an empty value"),
        (["seed=1,2,1"], "--grid federation.seed has the value 1 twice"),
        (["privacy.epsilon=1,2,1.0"], "--grid privacy.epsilon has the value 1 twice"),
        (["privacy.epsilon=inf,+inf"], "--grid privacy.epsilon has the value inf twice"),
        (["privacy.epsilon=1,nan"], "--grid privacy.epsilon has the value nan, which is no number"),
        (["seed=1", "federation.seed=2"], "--grid federation.seed stands 2 times"),
    ],
)
def test_an_axis_that_cannot_be_is_refused_in_one_sentence(grids, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        axes_of(grids)


def test_true_and_one_are_two_values():
    assert values_of("data.x=true,1") == (True, 1)


def test_points_are_the_product_with_the_last_axis_fastest(file):
    points = points_of(file, ["federation.clients=3"], axes_of(["privacy.epsilon=1,inf", "seed=5,6"]))
    assert [tuple(point.values.values()) for point in points] == [(1, 5), (1, 6), (math.inf, 5), (math.inf, 6)]
    assert [point.slug for point in points] == [
        "epsilon=1_seed=5",
        "epsilon=1_seed=6",
        "epsilon=inf_seed=5",
        "epsilon=inf_seed=6",
    ]
    assert points[2].label == "epsilon=inf seed=5"


def test_a_point_is_the_run_that_its_settings_name(file):
    grids = ["strategy.aggregator.temperature=0.2,0.4", "aggregator=era", "privacy.epsilon=inf,2"]
    for point in points_of(file, ["federation.clients=3"], axes_of(grids)):
        assert point.config == load_config(file, ["federation.clients=3", *point.sets])
        assert point.config.strategy.aggregator.settings == {
            "temperature": point.values["strategy.aggregator.temperature"]
        }
        assert point.config.privacy.epsilon == point.values["privacy.epsilon"]
        assert point.config.federation.rounds == 7


def test_an_axis_beats_a_setting_for_all_points(file):
    points = points_of(file, ["federation.seed=9"], axes_of(["seed=1,2"]))
    assert [point.config.federation.seed for point in points] == [1, 2]


@pytest.mark.parametrize(
    ("grids", "says"),
    [
        (["federation.sead=1"], "the point federation.sead=1 cannot be run, so nothing was begun: unknown key"),
        (["seed=1", "federation.quorum=0.5,1.5"], "the point federation.seed=1 federation.quorum=1.5 cannot be run"),
        (["aggregator=mean,krum"], "strategy.aggregator=krum cannot be run, so nothing was begun: strategy.aggregator"),
        (["client.models=mlp,vgg"], "client.models=vgg cannot be run, so nothing was begun: unknown model 'vgg'"),
        (
            ["privacy.epsilon=1", "privacy.mechanism=dp-sgd,gauss,k-rr"],
            "privacy.mechanism=gauss cannot be run, so nothing was begun: privacy: unknown mechanism 'gauss'",
        ),
        (["privacy.epsilon=8,100"], "privacy.epsilon=100 cannot be run, so nothing was begun: privacy: epsilon=100.0"),
        (["seed=1,two"], "federation.seed=two cannot be run, so nothing was begun: federation.seed = 'two'"),
        (
            [f"seed={','.join(map(str, range(101)))}", f"rounds={','.join(map(str, range(1, 101)))}"],
            "the grid has 101 * 100 = 10100 points and at most 10000 are run",
        ),
    ],
)
def test_a_point_that_cannot_be_run_is_named_before_anything_runs(file, grids, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        points_of(file, [], axes_of(grids))


def test_one_noise_at_several_epsilons_is_refused_for_they_would_be_one_point(file):
    noise = ["privacy.noise_multiplier=8"]
    with pytest.raises(ConfigError, match=r"--grid privacy.epsilon over privacy.noise_multiplier=8 would be the same"):
        points_of(file, noise, axes_of(["privacy.epsilon=4,8"]))
    with pytest.raises(ConfigError, match=r"epsilon=inf is a run without noise, and noise_multiplier=8 asks for some"):
        points_of(file, noise, axes_of(["privacy.epsilon=inf,4"]))
    assert len(points_of(file, noise, axes_of(["privacy.epsilon=4", "seed=1,2"]))) == 2
    assert len(points_of(file, [], axes_of(["privacy.noise_multiplier=4,8", "privacy.epsilon=30,40"]))) == 4


# ---- folders -------------------------------------------------------------------------------------------------------
def test_keys_that_end_alike_are_written_in_full():
    assert slug({"client.lr": 0.1, "student.lr": 0.2}) == "client.lr=0.1_student.lr=0.2"


values = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(max_size=200),
    st.lists(st.text(max_size=5), max_size=3),
    st.sampled_from(["inf", "1", "true", "1.0", math.inf, 1, True, "a_y=b", "a", "A", "a/b", "a:b", "..", ""]),
)
pairs = st.tuples(values, values)


def same(one, other):
    """1, 1.0 and true are three values here, and so are 0.0 and -0.0: a folder shows how a value was written."""
    return repr(one) == repr(other)


@given(pairs, pairs)
def test_two_points_never_share_a_folder_even_where_capitals_are_not_told_apart(one, other):
    keys = ("data.x", "data.y")
    slugs = [slug(dict(zip(keys, pair, strict=True))) for pair in (one, other)]
    if all(same(a, b) for a, b in zip(one, other, strict=True)):
        assert slugs[0] == slugs[1]
    else:
        assert slugs[0].lower() != slugs[1].lower()


@given(pairs)
def test_a_folder_name_is_short_and_portable(pair):
    name = slug({"data.x": pair[0], "data.y": pair[1]})
    assert re.fullmatch(r"[a-z0-9.+=_~-]{1,140}", name)


def test_a_folder_name_depends_on_its_own_point_alone(file):
    few = points_of(file, [], axes_of(["aggregator=mean", "seed=1,2"]))
    more = points_of(file, [], axes_of(["aggregator=era,mean", "seed=0,1,2,3"]))
    assert {point.slug for point in few} < {point.slug for point in more}


def test_numbers_are_numbers_and_truth_is_not():
    assert Axis("a.b", ("1", "inf"), (1, math.inf)).numeric
    assert not Axis("a.b", ("1", "true"), (1, True)).numeric
    assert not Axis("a.b", ("1", "x"), (1, "x")).numeric
