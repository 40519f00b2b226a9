"""Whether a proxy set suits the sites: numbers by hand, and proxies that anybody would know to be good or useless."""

import csv
import json

import numpy as np
import pytest
import torch

from distillation.data import Samples, load_proxy, save_proxy
from simulations.config import ConfigError
from simulations.engines.in_process import WorkerError
from simulations.experiment import run_experiment
from simulations.probes import commands as studies
from simulations.probes.commands import fit_of
from simulations.probes.proxy_fit import VERDICTS, judge

ALL = np.ones((2, 4), bool)


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)


def votes(*sites):
    """[sites, n, 2] from the probability of the first class."""
    first = np.array(sites, float)
    return np.stack([first, 1 - first], axis=2)


def verdicts(fit):
    return [reason.partition(":")[0] for reason in fit.reasons]


def test_the_numbers_are_those_computed_by_hand():
    proxy = votes([0.9, 0.8, 0.1, 0.6], [0.7, 0.2, 0.3, 0.6])
    test = votes([0.9, 0.1], [0.9, 0.1])
    kept = np.array([[True, False, False, False], [True, True, False, False]])
    fit = judge(["a", "b"], proxy, test, kept, ["x", "y"], np.array([0, 0, 1, 1]))
    # means .8, .5, .2, .6: the ensemble says x, x (a tie goes to the first), y, x
    assert fit.agreement == 7 / 8  # b says y in row 2
    assert fit.confidence == pytest.approx((0.8 + 0.5 + 0.8 + 0.6) / 4)
    assert (fit.test_agreement, fit.test_confidence) == (1.0, pytest.approx(0.9))
    assert fit.class_shares == {"x": 0.75, "y": 0.25}
    # (.75 ln(4/3) + .25 ln 4) / ln 2
    assert fit.balance == pytest.approx(0.811278, abs=1e-6)
    assert fit.test_balance == 1.0
    assert fit.covered == 0.5
    assert fit.accuracy == 0.75
    a, b = fit.sites
    assert (a.site, a.kept, a.agreement) == ("a", 0.25, 1.0)
    assert (b.site, b.kept, b.agreement) == ("b", 0.5, 0.75)
    # of (.9, .1): .325083; (.8, .2): .500402; (.6, .4): .673012
    assert a.entropy_nats == pytest.approx((0.325083 + 0.500402 + 0.325083 + 0.673012) / 4, abs=1e-6)
    # of the means: (.5, .5): .693147; the others as above
    assert fit.entropy_nats == pytest.approx((0.500402 + 0.693147 + 0.500402 + 0.673012) / 4, abs=1e-6)
    assert fit.test_entropy_nats == a.test_entropy_nats == pytest.approx(0.325083, abs=1e-6)
    # 7/8 of 1 is doubtful (below .9); .675/.9 = .75 is doubtful; .81/1 is doubtful; half covered is enough
    assert verdicts(fit) == ["doubtful", "doubtful", "doubtful", "suitable", "suitable"]
    assert fit.verdict == "doubtful"


def test_where_sites_abstain_only_votes_that_are_cast_on_rows_with_enough_of_them_count():
    # c abstains everywhere and would have spoilt the agreement, a alone votes on row 3, nobody on row 4
    proxy = votes([0.9, 0.8, 0.3, 0.6, 0.2], [0.7, 0.1, 0.3, 0.6, 0.2], [0.0, 0.0, 1.0, 0.1, 1.0])
    test = votes([0.9, 0.1], [0.9, 0.1], [0.9, 0.1])
    kept = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    told = (["a", "b", "c"], proxy, test, kept, ["x", "y"], np.array([0, 1, 1, 0, 0]))
    fit = judge(*told, needed=2)
    # means .8, .45, .3 on rows 0 to 2: the ensemble says x, y, y; a says x in row 1
    assert fit.covered == 3 / 5
    assert fit.agreement == 5 / 6
    assert fit.confidence == pytest.approx((0.8 + 0.55 + 0.7) / 3)
    assert fit.class_shares == {"x": pytest.approx(1 / 3), "y": pytest.approx(2 / 3)}
    assert fit.accuracy == 1.0
    # of (.8, .2): .500402; (.45, .55): .688139; (.3, .7): .610864
    assert fit.entropy_nats == pytest.approx((0.500402 + 0.688139 + 0.610864) / 3, abs=1e-6)
    a, b, c = fit.sites
    assert (a.agreement, b.agreement, c.agreement) == (pytest.approx(2 / 3), 1.0, None)
    assert (a.kept, c.kept, c.entropy_nats) == (0.8, 0.0, None)
    assert b.entropy_nats == pytest.approx((0.610864 + 0.325083 + 0.610864) / 3, abs=1e-6)
    assert c.test_entropy_nats == pytest.approx(0.325083, abs=1e-6)
    # row 3, too, where one voter is enough: a's .6
    alone = judge(*told, needed=1)
    assert alone.covered == 4 / 5
    assert alone.confidence == pytest.approx((0.8 + 0.55 + 0.7 + 0.6) / 4)
    # what nobody votes on cannot change the verdict
    proxy[2], proxy[:, 4] = 0.5, 0.5
    assert judge(*told, needed=2) == fit


def test_one_voter_a_row_agrees_with_itself_and_that_says_nothing_of_the_proxy():
    rng = np.random.default_rng(0)
    sure, test = np.eye(3)[rng.integers(3, size=(4, 40))], np.eye(3)[np.tile(np.arange(40) % 3, (4, 1))]
    own = np.arange(40) % 4 == np.arange(4)[:, None]  # certain, at random, on rows of its own
    fit = judge(list("abcd"), sure, test, own, ["x", "y", "z"], needed=1)
    assert (fit.agreement, fit.test_agreement, fit.verdict) == (1.0, 1.0, "doubtful")
    assert (
        "doubtful: 100% of these rows have one voter: whether others would say the same cannot be seen" in fit.reasons
    )
    # two voters a row, and the disagreement shows
    two = own | (np.arange(40) % 4 == (np.arange(4)[:, None] + 1) % 4)
    fit = judge(list("abcd"), sure, test, two, ["x", "y", "z"], needed=1)
    assert (fit.agreement < 0.75, fit.test_agreement, fit.verdict) == (True, 1.0, "unsuitable")


def test_where_no_row_has_voters_enough_there_is_no_ensemble():
    fit = judge(["a", "b"], GOOD, GOOD, np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool), ["x", "y"], np.zeros(4), needed=2)
    assert (fit.verdict, fit.covered) == ("unsuitable", 0.0)
    assert (fit.agreement, fit.confidence, fit.entropy_nats, fit.balance, fit.accuracy) == (None,) * 5
    assert fit.class_shares == {"x": 0.0, "y": 0.0}
    assert {site.agreement for site in fit.sites} == {None}
    assert fit.reasons[0] == (
        "unsuitable: 0% of the proxy rows have the 2 voters that a row needs (strategy.row_quorum); half of the sites "
        "keep at most 50%"
    )
    assert len(fit.reasons) == 2


GOOD = votes([0.9, 0.9, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1])
ALMOST_EVEN = votes([0.51, 0.51, 0.49, 0.49], [0.51, 0.51, 0.49, 0.49])


@pytest.mark.parametrize(
    ("proxy", "kept", "expected"),
    [
        (GOOD, ALL, ["suitable"] * 4),
        # nobody agrees: one of two is right by chance; .55 / .9 = .61
        (votes([0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.8, 0.8]), ALL, ["unsuitable", "doubtful", "suitable", "suitable"]),
        # all agree and know nothing: .51 / .9 = .57
        (votes(*[[0.51, 0.51, 0.49, 0.49]] * 2), ALL, ["suitable", "unsuitable", "suitable", "suitable"]),
        # all rows are of one class
        (votes(*[[0.9, 0.9, 0.9, 0.9]] * 2), ALL, ["suitable", "suitable", "unsuitable", "suitable"]),
        # nobody knows three of four rows
        (GOOD, np.array([[True, False, False, False]] * 2), ["suitable", "suitable", "suitable", "doubtful"]),
        (GOOD, np.zeros((2, 4), bool), ["suitable", "suitable", "suitable", "unsuitable"]),
        # each keeps a half, and together they have all
        (GOOD, np.array([[True, True, False, False], [False, False, True, True]]), ["suitable"] * 4),
    ],
)
def test_each_reason_has_its_own_verdict_and_the_worst_one_counts(proxy, kept, expected):
    fit = judge(["a", "b"], proxy, GOOD, kept, ["x", "y"])
    assert verdicts(fit) == [*expected, "suitable"]  # what the sites have learnt: see below
    assert fit.verdict == max(expected, key=VERDICTS.index)
    assert fit.accuracy is None


@pytest.mark.parametrize(
    ("confidence", "hits", "expected"),
    [
        # of two classes .05 of the way from chance is .525, .2 of it .6
        (0.53, 10, "suitable"),
        (0.52, 10, "doubtful"),
        (0.9, 7, "suitable"),
        (0.9, 5, "doubtful"),
        (0.9, 0, "doubtful"),
    ],
)
def test_sites_that_have_learnt_too_little_can_judge_no_proxy(confidence, hits, expected):
    # ten rows of each class; of the first one `hits` are found, of the second as many
    right, wrong = [confidence] * hits, [1 - confidence] * (10 - hits)
    rows = votes(*[[*right, *wrong, *(1 - np.array([*right, *wrong]))]] * 2)
    labels, kept = np.repeat([0, 1], 10), np.ones((2, 20), bool)
    fit = judge(["a", "b"], rows, rows, kept, ["x", "y"], test_labels=labels)
    assert fit.test_recall == hits / 10
    assert verdicts(fit) == ["suitable"] * 4 + [expected]
    assert fit.verdict == expected
    assert ("teaches too little to tell" in fit.reasons[-1]) == (expected == "doubtful")
    # what is unsuitable for another reason stays so
    assert judge(["a", "b"], rows, rows, ~kept, ["x", "y"], test_labels=labels).verdict == "unsuitable"


def test_a_vote_for_the_largest_class_alone_has_taught_nothing():
    # nine in ten rows are x, and x is always said: right nine times in ten
    rows, labels = votes(*[[0.9] * 10] * 2), np.array([0] * 9 + [1])
    fit = judge(["a", "b"], rows, rows, np.ones((2, 10), bool), ["x", "y"], test_labels=labels)
    assert fit.test_recall == 0.5
    assert fit.verdict == "doubtful"


def test_what_the_sites_rows_are_like_is_the_yardstick():
    # a rare class is as rare in the proxy set: (.75, .25) on both sides
    rare = votes(*[[0.9, 0.9, 0.9, 0.1]] * 2)
    assert judge(["a", "b"], rare, rare, ALL, ["x", "y"]).verdict == "suitable"
    # sites that agree on nothing at home need not agree on the proxy rows
    apart = votes([0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.8, 0.8])
    assert judge(["a", "b"], apart, apart, ALL, ["x", "y"]).verdict == "suitable"


def test_the_sentences_name_their_numbers_and_the_classes_that_are_missing():
    fit = judge(["a", "b"], votes(*[[0.9] * 4] * 2), GOOD, np.array([[True, False, False, False]] * 2), ["x", "y"])
    assert fit.reasons == (
        "suitable: on proxy rows 100% of the voters say what the ensemble says, on the sites' own kind of rows 100%",
        "suitable: the ensemble gives its likeliest class 0.90 on proxy rows and 0.90 on the sites' own kind; its "
        "entropy is 0.33 and 0.33 nats",
        "unsuitable: the hard vote has 0% of an even spread over the classes, on the sites' own kind of rows 100%; "
        "never voted for: y",
        "doubtful: 25% of the proxy rows are like those of some site, by its selector; half of the sites keep at most "
        "25%",
        "suitable: on the sites' own kind of rows the ensemble gives its likeliest class 0.90, where chance is 0.50",
    )
    told = (["a", "b"], ALMOST_EVEN, ALMOST_EVEN, ALL, ["x", "y"])
    assert judge(*told, test_labels=np.array([0, 0, 1, 0]), needed=1).reasons[-2:] == (
        "suitable: 100% of the proxy rows have the 1 voter that a row needs (strategy.row_quorum); half of the sites "
        "keep at most 100%",
        "doubtful: on the sites' own kind of rows the ensemble gives its likeliest class 0.51 and finds 83% of a "
        "class, where chance is 0.50: one local training teaches too little to tell; raise client.local_epochs or "
        "client.lr",
    )


# ---- real votes ----------------------------------------------------------------------------------------------------
def noise(images, rng):
    return rng.integers(0, 17, images.shape)


def photographs(images, rng):
    """Patches of scikit-learn's two pictures, grey, in the digits' range: another domain."""
    from sklearn.datasets import load_sample_images

    pictures = [picture.mean(axis=2) / 255 * 16 for picture in load_sample_images().images]
    patches = []
    for _ in images:
        picture = pictures[rng.integers(2)]
        top, left = rng.integers(picture.shape[0] - 8), rng.integers(picture.shape[1] - 8)
        patches.append(picture[top : top + 8, left : left + 8])
    return np.array(patches).round().reshape(images.shape)


def turned(images, rng):
    return np.swapaxes(images, -1, -2)


def one_class(images, rng):
    return None  # see below: which rows these are depends on the labels


def with_proxy(monkeypatch, change):
    """Studies whose proxy rows are put in place of those that were drawn."""
    original = studies.prepare

    def prepare(config, out):
        setup = original(config, out)
        proxy, rng = load_proxy(setup.study.proxy), np.random.default_rng(0)
        images, labels = proxy.samples.features.numpy(), proxy.samples.labels
        if change is one_class:
            threes = np.resize(np.flatnonzero(labels.numpy() == 3), len(images))
            images, labels = images[threes], labels[threes]
        elif change is not None:
            images = np.ascontiguousarray(change(images, rng).astype(np.uint8))
        for path in setup.study.proxy.iterdir():
            path.unlink()
        save_proxy(setup.study.proxy, Samples(torch.from_numpy(images), labels), proxy.classes, proxy.inputs)
        return setup

    monkeypatch.setattr(studies, "prepare", prepare)


@pytest.mark.parametrize("split", [{"partition": "iid"}, {"partition": "dirichlet", "alpha": 0.5, "min_rows": 20}])
@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (None, "suitable"),
        (noise, "unsuitable"),
        (photographs, "unsuitable"),
        (turned, "unsuitable"),
        (one_class, "unsuitable"),
    ],
)
def test_good_and_useless_proxies_are_told_apart(change, verdict, model, split, tiny, inline, tmp_path, monkeypatch):
    with_proxy(monkeypatch, change)
    config = tiny(
        federation={"clients": 5},
        data={"proxy": 300, "private": 800, "test": 200, **split},
        client={"models": [model], "local_epochs": 8, "batch_size": 20},
    )
    fit = fit_of(config, tmp_path / "out")
    assert fit.verdict == verdict, fit.reasons


@pytest.mark.parametrize(
    ("selector", "row_quorum", "covered", "verdict"),
    [
        # everybody votes on everything, and together they know most rows
        ("none", 0.3, (0.5, 1.0), "suitable"),
        # each keeps about 2 of 10 classes: hardly any row has the two voters that a share needs
        ("kmeans-ratio", 0.3, (0.0, 0.1), "unsuitable"),
        # one voter is enough, and hardly anybody is there to contradict it
        ("kmeans-ratio", 1, (0.5, 1.0), "doubtful"),
    ],
)
def test_sites_that_see_two_classes_each_have_a_good_proxy_where_a_row_needs_no_more_of_them(
    selector, row_quorum, covered, verdict, tiny, inline, no_report, tmp_path
):
    config = tiny(
        federation={"clients": 5, "rounds": 1, "rows_per_round": 300},
        data={"partition": "shards", "proxy": 300, "private": 800, "test": 200},
        client={"models": ["linear"], "local_epochs": 8, "batch_size": 20, "selector": selector},
        strategy={"row_quorum": row_quorum},
    )
    fit = fit_of(config, tmp_path / "out")
    assert fit.verdict == verdict, fit.reasons
    assert max(site.kept for site in fit.sites) < 0.3
    assert covered[0] < fit.covered < covered[1]
    if selector != "none":
        # the run's first round teaches what was said, with the votes that were looked at
        run_experiment(config, tmp_path / "run")
        with (tmp_path / "run" / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert int(row["rows"]) == round(300 * fit.covered)


@pytest.mark.parametrize("preset", ["ds-fl", "experts"])
@pytest.mark.parametrize("split", [{"partition": "iid"}, {"partition": "dirichlet", "alpha": 0.5, "min_rows": 20}])
def test_sites_that_barely_train_get_no_good_word(preset, split, tiny, inline, tmp_path):
    config = tiny(
        federation={"clients": 5},
        data={"proxy": 300, "private": 800, "test": 200, **split},
        client={"local_epochs": 1, "lr": 0.001},
        strategy={"preset": preset},
    )
    fit = fit_of(config, tmp_path / "out")
    assert VERDICTS.index(fit.verdict) >= 1
    assert "teaches too little to tell" in fit.reasons[-1]


def test_the_files_say_what_is_returned_and_nothing_else_is_left(tiny, inline, tmp_path):
    fit = fit_of(tiny(), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["proxy-fit.csv", "proxy-fit.json"]
    told = json.loads((tmp_path / "out" / "proxy-fit.json").read_text())
    assert told == json.loads(json.dumps(fit.as_json()))
    assert set(told["class_shares"]) == set("0123456789")
    with (tmp_path / "out" / "proxy-fit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["site"] for row in rows] == ["site-000", "site-001", "site-002", "site-003", "ensemble"]
    assert [float(row["kept"]) for row in rows] == [*(site.kept for site in fit.sites), fit.covered]
    last = {key: float(value) for key, value in rows[-1].items() if key != "site"}
    assert (last["agreement"], last["entropy_nats"]) == (fit.agreement, fit.entropy_nats)
    assert last["test_entropy_nats"] == told["test_entropy_nats"]


@pytest.mark.slow
def test_the_same_study_gets_the_same_verdict_from_worker_processes(tiny, tmp_path, request):
    direct = fit_of(tiny(federation={"workers": 2}), tmp_path / "workers")
    request.getfixturevalue("inline")
    assert fit_of(tiny(), tmp_path / "inline") == direct


def test_the_sites_own_selector_is_asked_where_there_is_one(tiny, inline, tmp_path):
    everything = fit_of(tiny(client={"selector": {"name": "kmeans-ratio", "quantile": 0.0}}), tmp_path / "a")
    assert [site.kept for site in everything.sites] == [1.0] * 4
    default = fit_of(tiny(), tmp_path / "b")
    same = fit_of(tiny(client={"selector": "kmeans-ratio"}), tmp_path / "c")
    assert [site.kept for site in default.sites] == [site.kept for site in same.sites]
    assert max(site.kept for site in default.sites) < 1.0
    # without a selector everybody votes on all: what one would keep is only told
    assert (default.agreement, default.confidence) == (everything.agreement, everything.confidence)
    assert default.agreement != same.agreement


@pytest.mark.parametrize(
    ("sections", "error", "says"),
    [
        ({"strategy": {"aggregator": "nothing"}}, ConfigError, "unknown aggregator"),
        (
            {"strategy": {"preset": "feddistill"}},
            ConfigError,
            "strategy.aggregator 'per-class' needs no proxy rows, .*: set another preset or rule, or run it",
        ),
        ({"client": {"models": ["mlp"], "lr": 1e30}}, WorkerError, "proxy_fit of site-000: Diverged"),
    ],
)
def test_a_study_that_cannot_be_judged_leaves_nothing(sections, error, says, tiny, inline, tmp_path):
    with pytest.raises(error, match=says):
        fit_of(tiny(**sections), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=says):
        fit_of(tiny(**sections), tmp_path / "empty")
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_in_use_and_one_that_cannot_be_are_refused(tiny, inline, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="mine is no empty folder: name another --out"):
        fit_of(tiny(), tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"out cannot be written \(Not a directory\): name another --out"):
        fit_of(tiny(), tmp_path / "mine" / "thesis.txt" / "out")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
