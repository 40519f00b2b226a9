"""Whether a proxy set suits the sites: numbers by hand, and proxies that anybody would know to be good or useless."""

import csv
import json

import numpy as np
import pytest
import torch

from distillation.data import Samples, load_proxy, save_proxy
from simulations.config import ConfigError
from simulations.engines.in_process import WorkerError
from simulations.probes import commands as studies
from simulations.probes.commands import fit_of
from simulations.probes.proxy_fit import VERDICTS, judge

ALL = np.ones((2, 4), bool)


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
    # 7/8 of 1 is doubtful (below .9); .675/.9 = .75 is doubtful; .81/1 is doubtful; half covered is enough
    assert verdicts(fit) == ["doubtful", "doubtful", "doubtful", "suitable"]
    assert fit.verdict == "doubtful"


GOOD = votes([0.9, 0.9, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1])


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
    assert verdicts(fit) == expected
    assert fit.verdict == max(expected, key=VERDICTS.index)
    assert fit.accuracy is None


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
        "suitable: the ensemble gives its likeliest class 0.90 on proxy rows and 0.90 on the sites' own kind",
        "unsuitable: the hard vote has 0% of an even spread over the classes, on the sites' own kind of rows 100%; "
        "never voted for: y",
        "doubtful: 25% of the proxy rows are like those of some site, by its selector; half of the sites keep at most "
        "25%",
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


def test_sites_that_see_two_classes_each_can_still_have_a_good_proxy(tiny, inline, tmp_path):
    # each keeps about 2 of 10 classes, so hardly any row has two voters; together they know most rows
    config = tiny(
        federation={"clients": 5},
        data={"partition": "shards", "proxy": 300, "private": 800, "test": 200},
        client={"models": ["linear"], "local_epochs": 8, "batch_size": 20},
    )
    fit = fit_of(config, tmp_path / "out")
    assert fit.verdict == "suitable", fit.reasons
    assert max(site.kept for site in fit.sites) < 0.3
    assert fit.covered > 0.5


def test_the_files_say_what_is_returned_and_nothing_else_is_left(tiny, inline, tmp_path):
    fit = fit_of(tiny(), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["proxy-fit.csv", "proxy-fit.json"]
    told = json.loads((tmp_path / "out" / "proxy-fit.json").read_text())
    assert told == json.loads(json.dumps(fit.as_json()))
    assert set(told["class_shares"]) == set("0123456789")
    with (tmp_path / "out" / "proxy-fit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["site"] for row in rows] == ["site-000", "site-001", "site-002", "site-003"]
    assert [float(row["kept"]) for row in rows] == [site.kept for site in fit.sites]


@pytest.mark.slow
def test_the_same_study_gets_the_same_verdict_from_worker_processes(tiny, tmp_path, request):
    direct = fit_of(tiny(federation={"workers": 2}), tmp_path / "workers")
    request.getfixturevalue("inline")
    assert fit_of(tiny(), tmp_path / "inline") == direct


def test_the_sites_own_selector_is_asked_where_there_is_one(tiny, inline, tmp_path):
    everything = fit_of(tiny(client={"selector": {"name": "kmeans-ratio", "quantile": 0.0}}), tmp_path / "a")
    assert [site.kept for site in everything.sites] == [1.0] * 4
    default = fit_of(tiny(), tmp_path / "b")
    assert default == fit_of(tiny(client={"selector": "kmeans-ratio"}), tmp_path / "c")
    assert max(site.kept for site in default.sites) < 1.0


@pytest.mark.parametrize(
    ("sections", "error", "says"),
    [
        ({"strategy": {"aggregator": "nothing"}}, ConfigError, "unknown aggregator"),
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
