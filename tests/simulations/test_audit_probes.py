"""Audits on sites: attacks reach what they are known to reach, promises bound them, and nothing else is promised."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification

from client.config import PartSection, PolicySection, PrivacySection, SiteConfig, SiteConfigError, TrainingSection
from distillation.data import DataError, Proxy, Samples
from distillation.inputs import Column, TableInputs
from distillation.runtime import single_thread
from privacy.accounting import analytic_gaussian_epsilon, round_up
from simulations.config import ConfigError
from simulations.probes.audits import labels_of, membership_of, one_run_of, site_in, subjects_in
from simulations.probes.membership import Student, audit_membership, treatment_named
from simulations.probes.one_run import audit_one_run
from simulations.probes.shadows import SiteTraining, Subject, Wanted, trained
from strategies.soft_labels import SoftLabels

FEATURES, CLASSES = 20, 4


def table_site(rows=500, proxy=1000, privacy=None, **training):
    """The set-up of reference 8.3 in which labels leak: 20 columns, 4 classes, a tenth of the labels wrong, an MLP.

    make_classification(n_informative=10, n_redundant=0, n_classes=4, flip_y=0.1, random_state=0); 250 rows a shadow, 60
    epochs of SGD at 0.1.
    """
    single_thread()
    points, labels = make_classification(
        rows + proxy,
        FEATURES,
        n_informative=10,
        n_redundant=0,
        n_classes=CLASSES,
        flip_y=0.1,
        random_state=0,
    )
    points = ((points - points[rows:].mean(axis=0)) / points[rows:].std(axis=0)).astype(np.float32)
    features, classes = torch.from_numpy(points), torch.from_numpy(labels.astype(np.int64))
    inputs = TableInputs((Column("x", categories=tuple(map(str, range(FEATURES)))),))
    public = Proxy(Samples(features[rows:], classes[rows:]), tuple("abcd"), inputs, "0" * 64, "1" * 64)
    told = {"lr": 0.1, "batch_size": 50, "local_epochs": 10, **training}
    config = SiteConfig(
        site="hospital",
        private="private.safetensors",
        proxy="proxy",
        seed=1,
        device="cpu",
        model="mlp",
        training=TrainingSection(**told),
        policy=PolicySection(proxy_sha256=["0" * 64], max_rows_per_round=proxy, max_answers=6),
        privacy=privacy,
    )
    return Subject(config, public, Samples(features[:rows], classes[:rows]), rounds=6)


def training_of(subject):
    return SiteTraining(subject.config.training, subject.rounds, seed=1)


def by_opening(found):
    return {(each.seen, each.attack): each for each in found.found}


# ---- what leaks without privacy --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def leaking():
    """Shadows of the set-up above, and what is made of their soft labels."""
    subject, steps = table_site(), []
    found = audit_membership(
        subject,
        training_of(subject),
        shadows=10,
        treatments=("float32", "temperature:5", "quantised:1"),
        student=Student(epochs=20),
        on_model=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(number, 40) for number in range(1, 41)]
    return found


def test_lira_finds_members_from_the_model_and_from_nothing_but_its_soft_labels(leaking):
    found = by_opening(leaking)
    assert (leaking.records, leaking.shadows, leaking.strangers) == (500, 10, 2500)
    assert leaking.accuracy_in > 0.9 > leaking.accuracy_out
    assert found["model", "lira"].auc_low > 0.8
    assert found["model", "rmia"].auc_low > 0.8
    assert found["float32", "lira"].auc_low > 0.7
    assert found["model", "lira"].tpr_1_low > 0.05
    # references see more than the threshold does, and the model says more than its labels
    assert found["model", "loss"].auc_high < found["model", "lira"].auc_low
    assert found["float32", "lira"].auc_high < found["model", "lira"].auc_low


def test_neither_temperature_nor_the_top_class_alone_is_privacy(leaking):
    found = by_opening(leaking)
    assert found["temperature:5", "lira"].auc > found["float32", "lira"].auc - 0.05
    assert found["temperature:5", "lira"].auc_low > 0.7
    assert found["quantised:1", "lira"].auc_low > 0.6
    assert found["quantised:1", "rmia"].epsilon_low > 0.5


def test_without_a_promise_nothing_is_bounded_and_any_small_one_would_be_refuted(leaking):
    assert (leaking.mechanism, leaking.epsilon, leaking.most, leaking.refuted) == ("", None, None, False)
    assert by_opening(leaking)["model", "lira"].epsilon_low > 1.0
    assert leaking.delta == 1e-5  # min(1e-5, 1/5000)


def test_models_that_have_seen_no_row_tell_nothing_of_any():
    quick = {"shadows": 8, "treatments": ("float32",), "student": Student(epochs=5)}
    found = audit_membership(table_site(200, 50), lambda learner, name: None, **quick)
    assert found.accuracy_in == pytest.approx(found.accuracy_out, abs=0.1)
    for each in found.found:
        # 1,600 guesses: a standard deviation is .0145, and 200 records make it a little more
        assert abs(each.auc - 0.5) < 0.075
        assert each.epsilon_low < 0.5


def test_the_same_seed_finds_the_same_and_another_one_other_halves():
    subject = table_site(60, 40, local_epochs=1)
    quick = {"shadows": 6, "treatments": ("float16",), "student": Student(epochs=2)}
    told = [audit_membership(subject, training_of(subject), **quick, seed=seed).as_json() for seed in (3, 3, 4)]
    assert told[0] == told[1] != told[2]


def test_every_shadow_trains_on_its_own_half_and_no_two_alike():
    seen = {}

    def train(learner, name):
        seen[name] = (learner.records, learner.state()["model.1.weight"])

    audit_membership(table_site(61, 20), train, shadows=6, treatments=("float32",), student=Student(epochs=1))
    assert [seen[f"shadow-{index}"][0] for index in range(6)] == [30, 31] * 3
    weights = [weight for _, weight in seen.values()]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


# ---- what a promise bounds -------------------------------------------------------------------------------------------
def promise(name="dp-sgd", **settings):
    section = {key: settings.pop(key) for key in ("epsilon", "noise_multiplier", "allow_baseline") if key in settings}
    mechanism = PartSection.model_validate({"name": name, **settings})
    return PrivacySection(mechanism=mechanism, delta=1e-5, rounds=6, seeded=True, **section)


@pytest.fixture(scope="module")
def private():
    """The same site with DP-SGD at epsilon 3: 250 rows a shadow, q = .1, 60 steps."""
    subject = table_site(privacy=promise(epsilon=3.0, batch_size=25), local_epochs=1)
    return audit_membership(
        subject, training_of(subject), shadows=6, treatments=("float32",), student=Student(epochs=20)
    )


def test_dp_sgd_closes_what_leaked_and_no_threshold_of_any_attack_is_above_its_bound(private, leaking):
    assert (private.mechanism, private.epsilon, private.delta) == ("dp-sgd", 3.0, 1e-5)
    assert {each.epsilon for each in private.found} == {3.0}
    assert not private.refuted
    for each in private.found:
        assert each.epsilon_low <= 3.0
        assert each.auc_low < 0.6
    assert private.most == pytest.approx((0.2009, 0.0201), abs=1e-4)  # e^3 .01 + 1e-5, e^3 .001 + 1e-5
    assert by_opening(private)["float32", "lira"].auc < 0.6 < by_opening(leaking)["float32", "lira"].auc


def test_a_training_that_ignores_its_promise_is_refuted():
    subject = table_site(privacy=promise(epsilon=1.0, batch_size=25))

    def careless(learner, name):
        learner._dp = None
        training_of(subject)(learner, name)

    found = audit_membership(subject, careless, shadows=6, treatments=("float32",), student=Student(epochs=2))
    assert found.epsilon == 1.0
    assert found.refuted


def test_noise_on_votes_promises_nothing_of_the_model():
    subject = table_site(
        100, 30, privacy=promise("gaussian-output", noise_multiplier=4.0, allow_baseline=True), local_epochs=2
    )
    found = audit_membership(
        subject, training_of(subject), shadows=6, treatments=("float32",), student=Student(epochs=5)
    )
    openings = by_opening(found)
    assert openings["model", "lira"].epsilon is None
    # one matrix with noise 4 times its sensitivity, whatever its size: analytic epsilon .9255 at delta 1e-5
    assert openings["float32", "lira"].epsilon == pytest.approx(analytic_gaussian_epsilon(4.0, 1e-5), rel=1e-3)
    assert not found.refuted
    assert found.epsilon == openings["float32", "lira"].epsilon


# ---- the training of a site ------------------------------------------------------------------------------------------
def test_an_audit_trains_as_a_site_does_phase_by_phase():
    subject, calls = table_site(40, 20, public_epochs=2, warmup_epochs=3), []

    class Written:
        def fit_public(self, epochs, rng):
            calls.append(("public", epochs, rng.initial_seed()))

        def fit(self, epochs, rng):
            calls.append(("private", epochs, rng.initial_seed()))

    training_of(subject)(Written(), "shadow-0")
    assert [call[:2] for call in calls] == [("public", 2), ("private", 3), *[("private", 10)] * 6]
    assert len({seed for _, _, seed in calls}) == 8
    calls.clear()
    once = subject.config.training.model_copy(update={"restart": True})
    SiteTraining(once, 6, seed=1)(Written(), "shadow-0")
    assert [call[:2] for call in calls] == [("public", 2), ("private", 3), ("private", 10)]


def test_wanted_privacy_takes_the_place_of_the_sites_own(make_sites):
    path = make_sites(1)["site-0"]
    plain, asked_for = Subject.open(path), Subject.open(path, 5, Wanted(epsilon=2.0, batch_size=7, clip_norm=0.5))
    assert plain.promise(30) is None
    assert (plain.rounds, asked_for.rounds) == (20, 5)
    made = asked_for.config.privacy
    assert (made.epsilon, made.delta, made.rounds, made.seeded) == (2.0, 0.0, 5, True)
    assert made.mechanism.model_dump() == {"name": "dp-sgd", "clip_norm": 0.5, "batch_size": 7}
    # a site's own promise is simulated, and not for more rounds than it has a budget for
    own = make_sites(1, path.parent / "other", privacy=PrivacySection(noise_multiplier=4.0, rounds=3))["site-0"]
    assert Subject.open(own).rounds == 3
    assert Subject.open(own).promise(30).seeded
    with pytest.raises(SiteConfigError, match="rounds=4 must be at most 3"):
        Subject.open(own, 4).promise(30)


# ---- one run ---------------------------------------------------------------------------------------------------------
def test_training_without_privacy_remembers_every_canary():
    subject = table_site(100, 20, local_epochs=4)
    found = audit_one_run(subject, training_of(subject), count=200, guesses=100)
    assert (found.model, found.records, found.epsilon, found.refuted) == ("mlp", 100, None, False)
    assert found.audit.epsilon == found.audit.ceiling > 3.4
    assert found.row()["epsilon_low"] == found.audit.epsilon


def test_dp_sgd_keeps_its_promise_about_canaries_and_plain_training_under_its_name_does_not():
    subject = table_site(100, 20, privacy=promise(epsilon=1.0, batch_size=25), local_epochs=1)
    kept = audit_one_run(subject, training_of(subject), count=200, guesses=100)
    assert (kept.epsilon, kept.refuted) == (1.0, False)

    def careless(learner, name):
        learner._dp = None
        training_of(table_site(100, 20, local_epochs=4))(learner, name)

    broken = audit_one_run(subject, careless, count=200, guesses=100)
    assert broken.refuted
    assert broken.audit.epsilon > 3.0


def test_canaries_stand_in_columns_that_no_row_has(make_sites):
    subject = table_site(50, 20)
    seen = []

    def train(learner, name):
        seen.append(learner._private)
        learner.fit(1, torch.Generator())

    audit_one_run(subject, train, count=20, guesses=10)
    features, labels = seen[0].features, seen[0].labels
    assert torch.equal(features[:50, :FEATURES], subject.private.features)
    assert not features[:50, FEATURES:].any()
    assert not features[50:, :FEATURES].any()
    assert features[50:].count_nonzero(dim=1).tolist() == [1] * (len(features) - 50)
    assert torch.equal(labels[:50], subject.labels)
    assert 0 < len(features) - 50 < 20


# ---- label distribution ----------------------------------------------------------------------------------------------
def test_labels_are_read_off_by_the_mean_vote_on_a_balanced_proxy(tmp_path):
    subject = table_site(200, 120, local_epochs=2)
    few = torch.cat([torch.where(subject.labels == 0)[0][:40], torch.where(subject.labels == 1)[0][:10]])
    lopsided = replace(subject, private=subject.rows(few))
    found = labels_of([lopsided], tmp_path)["hospital"]
    learner = trained(lopsided, lopsided.private, training_of(lopsided), 1, "hospital")
    probabilities = learner.predict(np.arange(120)).probabilities()
    public = subject.proxy.samples.labels.numpy()
    guess = sum(probabilities[public == label].mean(axis=0) for label in range(4)) / 4
    assert found.truth == (0.8, 0.2, 0.0, 0.0)
    assert found.guess == pytest.approx(guess)
    assert found.uniform_kl_nats == pytest.approx(np.log(4) + 0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    assert found.kl_nats < found.uniform_kl_nats / 3
    with (tmp_path / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["site"], row["class"], float(row["truth"])) for row in rows] == [
        ("hospital", name, share) for name, share in zip("abcd", found.truth, strict=True)
    ]
    assert "cannot_show" in json.loads((tmp_path / "labels.json").read_text())


# ---- files and folders -----------------------------------------------------------------------------------------------
def test_an_audit_of_a_site_leaves_its_files_in_the_folder_and_the_site_as_it_was(make_sites, tmp_path):
    path = make_sites(1, privacy=PrivacySection(noise_multiplier=4.0, rounds=2))["site-0"]
    before = {file: file.read_bytes() for file in sorted(path.parent.parent.parent.rglob("*")) if file.is_file()}
    out = tmp_path / "out"
    with site_in(path, out) as (subject,):
        found = membership_of(subject, out, shadows=6, treatments=("float32",), student=Student(epochs=5))
        one_run_of(subject, out, count=20, guesses=10)
    after = {file: file.read_bytes() for file in sorted(path.parent.parent.parent.rglob("*")) if file.is_file()}
    assert before == after
    names = {"membership.csv", "membership.json", "membership.svg", "one-run.csv", "one-run.json"}
    assert {file.name for file in out.iterdir()} == names
    with (out / "membership.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seen"], row["attack"], float(row["auc"])) for row in rows] == [
        (each.seen, each.attack, each.auc) for each in found.found
    ]
    told = json.loads((out / "membership.json").read_text())
    assert told["epsilon"] == found.epsilon > 0.0
    assert told["about_private_rows"] is True
    assert "A passed audit proves nothing" in told["cannot_show"]
    svg = (out / "membership.svg").read_text()
    # guessing, the bound, four attacks on the model, LiRA on the labels
    assert svg.count('<g id="line2d_') >= 7
    assert f"bound of ({round_up(found.epsilon):g}, 1e-05)" in svg


def test_a_studys_largest_site_is_audited_first_and_unknown_ones_are_refused(tiny, tmp_path):
    config = tiny(data={"partition": "dirichlet", "alpha": 0.5})
    with subjects_in(config, tmp_path / "all") as subjects:
        sizes = [len(subject.private) for subject in subjects]
        assert sizes == sorted(sizes, reverse=True)
        assert {subject.rounds for subject in subjects} == {2}
    with subjects_in(config, tmp_path / "some", ("site-002", "site-000")) as subjects:
        assert [subject.config.site for subject in subjects] == ["site-002", "site-000"]
    refused = pytest.raises(ConfigError, match="no client is called 'site-9': the names are site-000, site-001")
    with refused, subjects_in(config, tmp_path / "none", ("site-9",)):
        pass
    assert not (tmp_path / "none").exists()


# ---- treatments and refusals -----------------------------------------------------------------------------------------
def test_treatments_are_what_their_names_say():
    votes = SoftLabels.from_logits(np.array([0, 1]), np.log([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]))
    softer = treatment_named("temperature:2", 3)(votes).probabilities()
    # .7 .2 .1 -> sqrt: .83666 .44721 .31623, of 1.60010
    assert softer[0] == pytest.approx([0.522879, 0.279491, 0.197630], abs=1e-5)
    assert treatment_named("float32", 3)(votes).probabilities() == pytest.approx(votes.probabilities(), abs=1e-6)
    top = treatment_named("quantised:1", 3)(votes).probabilities()
    assert top == pytest.approx(np.eye(3)[[0, 2]], abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"shadows": 7}, ConfigError, "shadows=7 must be even and at least 6"),
        ({"treatments": ("zip",)}, ConfigError, "labels 'zip': unknown codec 'zip'"),
        ({"treatments": ("temperature:0",)}, ConfigError, "labels 'temperature:0': temperature 0 must be"),
        ({"treatments": ("temperature:x",)}, ConfigError, "labels 'temperature:x'"),
        ({"student": Student(lr=1e30)}, ConfigError, "the attacker's student has diverged"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_a_sentence(changed, error, says):
    subject = table_site(40, 20, local_epochs=1)
    with pytest.raises(error, match=says):
        audit_membership(subject, training_of(subject), **{"shadows": 6, "treatments": ("float32",), **changed})


def test_sites_that_cannot_be_audited_say_why():
    alone = replace(table_site(40, 20), private=table_site(40, 20).rows(torch.arange(1)))
    with pytest.raises(DataError, match="the pool has 1 rows"):
        audit_membership(alone, training_of(alone))
    wild = table_site(40, 20, lr=1e30)
    with pytest.raises(ConfigError, match="a model of the audit has diverged"):
        audit_membership(wild, training_of(wild), shadows=6)
    subject = table_site(40, 20)
    equal = replace(subject, private=Samples(torch.zeros(40, FEATURES), torch.zeros(40, dtype=torch.int64)))
    with pytest.raises(DataError, match="rmia on model: all 240 scores are equal"):
        audit_membership(equal, lambda learner, name: learner.fit(200, torch.Generator()), shadows=6, treatments=())
    with pytest.raises(ConfigError, match="guesses=3 must be even, from 2 to 10"):
        audit_one_run(subject, training_of(subject), count=10, guesses=3)
    noisy = table_site(40, 20, privacy=promise("pate", noise_multiplier=4.0, teachers=2))
    with pytest.raises(ConfigError, match="pate adds its noise to votes"):
        audit_one_run(noisy, training_of(noisy), count=10, guesses=4)
