"""One row a selector; the numbers of the reference; then the laws that every selector obeys."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.data import Proxy, Samples
from distillation.inputs import Column, ImageInputs, TableInputs
from distillation.learner import TorchLearner, Training
from distillation.models import MODELS, build_model
from distillation.selectors import SELECTORS, build_selector, selector_features
from distillation.selectors.certainty import Certainty, direction, fit_weights
from distillation.selectors.features import penultimate, reduced
from distillation.selectors.kmeans_ratio import centroids, distance_ratios
from distillation.selectors.selector import above_quantile, hold_out, relative_scores

# selector: the published defaults that a test pins, settings that refuse rows, does features -> features + 5 matter
ROWS = {
    "kulsif": ({"quantile": 0.25, "known": 0.05, "auxiliary": 250, "ridge": 0.0}, {"known": 0.5}, False),
    "kmeans-ratio": ({"quantile": 0.25, "clusters": 10}, {"clusters": 3}, False),
    "certainty": ({"ridge": 0.01, "quantile": 0.0}, {"quantile": 0.25, "ridge": 0.0001}, True),
}
ALL = sorted(ROWS)
# Beside the rows: the ratio to the proxy's own density.
VARIANTS = [*((name, ROWS[name][1]) for name in ALL), ("kulsif", {"auxiliary_from": "proxy", "known": 0.8})]


def rng(seed=0):
    return np.random.default_rng(seed)


def world(seed, own=60, others=140):
    """Private rows around (6, 0, 0); proxy rows: the first 40 there, too, the others around (0, 6, 0) and (0, 0, 6)."""
    draw = rng(seed)
    near = draw.normal([6, 0, 0], 0.7, (own + 40, 3))
    far = np.where(draw.random(others)[:, None] < 0.5, [0, 6, 0], [0, 0, 6]) + draw.normal(0, 0.7, (others, 3))
    private, proxy = near[:own].astype(np.float32), np.concatenate([near[own:], far]).astype(np.float32)
    return private, np.zeros(own, np.int64), proxy


def select(name, values, private, labels, proxy, seed=0):
    return build_selector(name, values).select(private, labels, proxy, rng(seed))


def test_every_selector_has_a_row():
    assert set(ROWS) == set(SELECTORS)


@pytest.mark.parametrize("name", ALL)
def test_defaults_are_the_published_ones(name):
    for key, value in ROWS[name][0].items():
        assert getattr(build_selector(name, {}), key) == value


def test_the_kmeans_ratio_is_the_worked_example():
    # r(.1) = .4/.1, r(2.8) = .2/1.8
    found = distance_ratios(np.array([[0.1], [2.8]]), np.array([[0.0], [1.0]]), np.array([[0.5], [3.0]]))
    np.testing.assert_allclose(found, [4.0, 1 / 9], atol=1e-6)
    rows = np.array([[0.0], [0.2], [9.0], [9.4]])
    np.testing.assert_allclose(np.sort(centroids(rows, 2, rng()), axis=0), [[0.1], [9.2]])


@pytest.mark.parametrize("ridge", [0.01, 1e-4, 1e-6])
def test_certainty_is_at_the_minimum_of_its_objective(ridge):
    private, _, proxy = world(1)
    local, foreign = direction(private.astype(float)), direction(proxy.astype(float))
    weights = fit_weights(local, foreign, ridge)
    rows, labels = np.concatenate([local, foreign]), np.r_[np.ones(60), np.zeros(180)]
    gradient = rows.T @ (1 / (1 + np.exp(-rows @ weights)) - labels) / 240 + ridge * weights
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([0.01, 0.1, 1.0]))
@settings(max_examples=20)
def test_one_row_moves_certainty_by_no_more_than_its_sensitivity(seed, ridge):
    draw = rng(seed)
    local, foreign = direction(draw.normal(size=(8, 3))), direction(draw.normal(size=(12, 3)))
    other = local.copy()
    other[0] = direction(-draw.normal(size=(1, 3)) * 100)[0]
    moved = np.linalg.norm(fit_weights(local, foreign, ridge) - fit_weights(other, foreign, ridge))
    assert moved <= Certainty(ridge=ridge).sensitivity(20) == 2 / (20 * ridge)
    assert (np.linalg.norm(local, axis=1) <= 1 + 1e-12).all()


def test_certainty_by_default_keeps_all_and_its_score_is_the_sigmoid():
    private, labels, proxy = world(2)
    kept, scores = select("certainty", {}, private, labels, proxy)
    local, foreign = direction(private.astype(float)), direction(proxy.astype(float))
    expected = 1 / (1 + np.exp(-foreign @ fit_weights(local, foreign, 0.01))) + 1e-8
    assert kept.all()
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@given(
    held=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=30),
    quantile=st.sampled_from([0.0, 0.05, 0.125, 0.25, 0.5, 0.9]),
)
def test_no_more_than_the_quantile_of_held_out_rows_is_refused(held, quantile):
    ratios_ = np.array(held)
    kept = above_quantile(ratios_, ratios_, quantile)
    assert (~kept).mean() <= quantile
    # Of different ratios also no fewer, to within one row and the one that is the quantile.
    if quantile and len(set(np.round(held, 3))) == len(held):
        assert (~kept).sum() >= quantile * len(held) - 2


def test_a_row_that_looks_like_nothing_at_home_is_refused_even_where_own_rows_do_too():
    assert above_quantile(np.array([0.0, 1.0]), np.zeros(3), 0.25).tolist() == [False, True]
    np.testing.assert_allclose(relative_scores(np.array([0.0, 1.0]), np.zeros(3)), [1e-8, 1.0])


@given(rows=st.integers(2, 50), known=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_every_row_is_known_or_held_out(rows, known, seed):
    first, second = hold_out(np.arange(rows, dtype=float)[:, None], known, rng(seed))
    assert 0 < len(first) < rows
    assert sorted(np.concatenate([first, second])[:, 0]) == list(range(rows))


@pytest.mark.parametrize(("name", "values"), VARIANTS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_own_rows_are_kept_and_trusted_and_far_ones_are_neither(name, values, seed):
    private, labels, proxy = world(seed)
    kept, scores = select(name, values, private, labels, proxy, seed)
    assert kept[:40].mean() > 0.2
    assert kept[40:].mean() < 0.1
    # Regularised probabilities are less extreme than ratios.
    assert scores[:40].mean() > (1.5 if name == "certainty" else 5) * scores[40:].mean()
    assert ((scores > 0) & (scores <= 1)).all()


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_a_row_on_top_of_private_rows_is_kept_and_one_far_away_is_not(name, values):
    private, labels, proxy = world(5)
    # The own row nearest to the middle of them all, the only one of its kind, and one in the opposite direction.
    middle = private[np.linalg.norm(private - private.mean(axis=0), axis=1).argmin()]
    proxy = np.concatenate([proxy[40:], middle[None], np.float32([[-30, -30, -30]])])
    kept, scores = select(name, values | ({"clusters": 2} if name == "kmeans-ratio" else {}), private, labels, proxy)
    assert kept[-2]
    assert not kept[-1]
    assert scores[-1] < scores[-2]


@pytest.mark.parametrize(("name", "values"), VARIANTS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_the_generator_decides_and_global_randomness_is_left_alone(name, values, seed):
    private, labels, proxy = world(seed)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    one, same = (select(name, values, private, labels, proxy, seed) for _ in range(2))
    assert np.random.random() == expected
    assert one.kept.tobytes() == same.kept.tobytes()
    assert one.scores.tobytes() == same.scores.tobytes()


@pytest.mark.parametrize(("name", "values"), VARIANTS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_the_order_of_private_rows_changes_little(name, values, seed):
    # Other rows are held out and the clusters start elsewhere: the verdict on clear rows must not turn.
    private, labels, proxy = world(seed)
    order = rng(seed).permutation(len(private))
    one, other = (select(name, values, rows, labels, proxy, seed) for rows in (private, private[order]))
    assert (one.kept == other.kept).mean() > 0.85


# A given width and one cluster: the median's 500 rows and the first centroids are drawn by row number.
@pytest.mark.parametrize(
    ("name", "values"),
    [("kulsif", {"known": 0.5, "width": 2.0}), ("kmeans-ratio", {"clusters": 1}), ("certainty", {"quantile": 0.25})],
)
def test_the_order_of_proxy_rows_only_permutes_the_answer(name, values):
    private, labels, proxy = world(9)
    order = rng(4).permutation(len(proxy))
    one, other = (select(name, values, private, labels, rows) for rows in (proxy, proxy[order]))
    assert (one.kept[order] == other.kept).all()
    np.testing.assert_allclose(one.scores[order], other.scores, rtol=1e-6)


@pytest.mark.parametrize(("name", "values"), VARIANTS)
@pytest.mark.parametrize("scale", [7.0, 0.01])
def test_the_unit_of_features_does_not_matter(name, values, scale):
    private, labels, proxy = world(11)
    one = select(name, values, private, labels, proxy)
    other = select(name, values, (private * scale).astype(np.float32), labels, (proxy * scale).astype(np.float32))
    assert (one.kept == other.kept).mean() > 0.98
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_the_origin_of_features_matters_only_to_directions(name, values):
    private, labels, proxy = world(12)
    one = select(name, values, private, labels, proxy)
    other = select(name, values, private + np.float32(64), labels, proxy + np.float32(64))
    same = np.allclose(one.scores, other.scores, rtol=1e-2, atol=1e-3)
    assert same is not ROWS[name][2]


@pytest.mark.parametrize(("name", "values"), VARIANTS)
@pytest.mark.parametrize("own", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_few_rows_are_enough(name, values, own, rows):
    private, labels, proxy = world(own, own)
    kept, scores = select(name, values, private, labels, proxy[:rows])
    assert kept.shape == scores.shape == (rows,)
    assert np.isfinite(scores).all()
    assert ((scores > 0) & (scores <= 1)).all()


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_duplicates_and_constants_are_no_trouble(name, values):
    same = np.tile(np.float32([1.5, -2.0]), (9, 1))
    others = np.concatenate([same[:4], same[:4] * -3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, _ = select(name, values, same, np.zeros(9, np.int64), others)
        _, alike = select(name, values, same, np.zeros(9, np.int64), same)
    assert kept.tolist() == [True] * 4 + [False] * 4
    assert np.ptp(alike) < 1e-6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["private", "proxy"])
def test_a_value_that_is_not_finite_is_refused(name, bad, where):
    private, labels, proxy = world(1)
    (private if where == "private" else proxy)[3, 1] = bad
    with pytest.raises(ValueError, match=f"{where} features have a value that is not finite"):
        select(name, {}, private, labels, proxy)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("own", "labelled", "public", "says"),
    [
        ((0, 3), 0, (5, 3), r"private features are \[0, 3\]"),
        ((4, 3), 4, (0, 3), r"proxy features are \[0, 3\]"),
        ((4, 3, 1), 4, (5, 3), "expected"),
        ((4, 3), 4, (5, 2), "private rows have 3 features and proxy rows 2"),
        ((4, 3), 3, (5, 3), r"labels are \[3\]: one for each of 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, own, labelled, public, says):
    with pytest.raises(ValueError, match=says):
        select(name, {}, np.ones(own, np.float32), np.zeros(labelled, np.int64), np.ones(public, np.float32))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        *((name, {"quantile": 1.0}, r"quantile=1.0 must be in \[0, 1\)") for name in ALL),
        *((name, {"quantile": float("nan")}, "quantile=nan") for name in ALL),
        *((name, {"known": 0.0}, r"known=0.0 must be in \(0, 1\)") for name in ALL),
        *((name, {"depth": 3}, "has no setting 'depth'") for name in ALL),
        ("kulsif", {"auxiliary": 0}, "auxiliary=0 must be at least 1"),
        ("kulsif", {"auxiliary": 2.5}, "must be a whole number"),
        ("kulsif", {"auxiliary_from": "moon"}, "auxiliary_from='moon' must be one of box, proxy"),
        ("kulsif", {"width": -1.0}, "width=-1.0 must be at least 1e-6"),
        ("kulsif", {"ridge": 1e-9}, "ridge=1e-09 must be at least 1e-6"),
        ("kmeans-ratio", {"clusters": 0}, "clusters=0 must be at least 1"),
        ("kmeans-ratio", {"power": float("inf")}, "power=inf must be above 0"),
        ("certainty", {"ridge": 0.0}, "ridge=0.0 must be at least 1e-8"),
        ("certainty", {"ridge": "soft"}, "must be a number"),
    ],
)
def test_settings_out_of_bounds_are_refused(name, values, says):
    with pytest.raises(ValueError, match=says):
        build_selector(name, values)


def test_an_unknown_selector_lists_the_known_ones():
    with pytest.raises(KeyError, match="certainty, kmeans-ratio, kulsif"):
        build_selector("oracle", {})


IMAGES = ImageInputs((1, 8, 8), scale=1 / 255, mean=(0.5,), std=(0.25,))


def images(rows, seed, side=8):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, 1, side, side), dtype=torch.uint8, generator=draw)
    return Samples(pixels, torch.zeros(rows, dtype=torch.int64))


def learner(model, inputs, private, proxy):
    device = torch.device("cpu")
    return TorchLearner(build_model(model, inputs.shape, 3, 0), Training(), inputs, proxy, private, device)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_last_linear_layer_makes_logits_of_the_features_and_no_hook_stays(model):
    side = 14 if model in ("cnn-opacus", "cnn-tanh") else 8  # the smallest that they take
    own = images(503, 1, side)
    site = learner(model, replace(IMAGES, shape=(1, side, side)), own, images(5, 2, side))
    features = penultimate(site, own.features)
    last = [module for module in site.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.inference_mode():
        np.testing.assert_allclose(last(torch.from_numpy(features)).numpy(), site.logits(own.features), atol=1e-5)
    assert not last._forward_pre_hooks


def test_inputs_are_what_the_model_gets():
    table = TableInputs((Column("x"), Column("y")))
    own, public = (Samples(torch.randn(rows, 4), torch.zeros(rows, dtype=torch.int64)) for rows in (3, 6))
    proxy = Proxy(public, ("a", "b", "c"), table, "", "")
    found = selector_features("inputs", learner("linear", table, own, public), own, proxy)
    np.testing.assert_array_equal(found[0], own.features.numpy())
    np.testing.assert_array_equal(found[1], public.features.numpy())


@pytest.mark.parametrize("on", ["inputs", "model"])
def test_wide_features_become_64_and_selectors_take_them(on):
    wide = ImageInputs((1, 12, 12), scale=1 / 255, mean=(0.5,), std=(0.25,))
    own, public = (Samples(torch.randint(0, 256, (rows, 1, 12, 12), dtype=torch.uint8), None) for rows in (9, 90))
    site = learner("cnn-small", wide, own, public)
    found = selector_features(on, site, own, Proxy(public, ("a", "b", "c"), wide, "", ""))
    assert [part.shape for part in found] == [(9, 64), (90, 64)]
    assert select("kmeans-ratio", {}, found[0], np.zeros(9, np.int64), found[1]).kept.shape == (90,)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_axes_are_the_proxys_whatever_the_private_rows(seed):
    draw = rng(seed)
    proxy, one, other = (draw.normal(size=(rows, 80)).astype(np.float32) for rows in (200, 5, 7))
    alone = reduced(one, proxy, 4)
    np.testing.assert_array_equal(alone[1], reduced(other, proxy, 4)[1])
    # Distances only shrink, and variance falls from axis to axis.
    assert np.linalg.norm(alone[0][0] - alone[0][1]) <= np.linalg.norm(one[0] - one[1]) + 1e-4
    assert (np.diff(alone[1].var(axis=0)) <= 1e-3).all()


def test_axes_are_those_of_a_plain_decomposition():
    draw = rng(1)
    proxy = (draw.normal(size=(300, 70)) * np.r_[9, 5, np.full(68, 0.1)]).astype(np.float32)
    centred = proxy - proxy.mean(axis=0)
    plain = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    np.testing.assert_allclose(np.abs(reduced(proxy, proxy, 2)[0]), np.abs(plain), atol=1e-2)


def test_fewer_rows_than_dimensions_give_fewer_axes():
    own, public = reduced(np.ones((2, 100), np.float32), rng().normal(size=(5, 100)).astype(np.float32))
    assert (own.shape, public.shape) == ((2, 5), (5, 5))


def test_unknown_features_and_models_without_a_linear_layer_are_refused():
    own, public = images(3, 1), images(4, 2)
    site, proxy = learner("linear", IMAGES, own, public), Proxy(public, ("a", "b", "c"), IMAGES, "", "")
    with pytest.raises(ValueError, match="on='dreams' must be one of inputs, model"):
        selector_features("dreams", site, own, proxy)
    site.model = torch.nn.Flatten()
    with pytest.raises(ValueError, match='set on="inputs"'):
        selector_features("model", site, own, proxy)
