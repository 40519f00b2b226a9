"""A private run says what it cost, from its ledgers; what does not go with a promise is refused beforehand."""

import json
import math

import dp_accounting
import markupsafe
import pytest
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

import consilium
from client.promise import SITE_MECHANISMS
from privacy.ledger import Ledger
from privacy.mechanisms import MECHANISMS
from server.client_sum import NAME as CLIENT_SUM
from simulations.config import ConfigError
from simulations.experiment import run_experiment
from simulations.preparation import check_config
from simulations.prepared import run_id

KEYS = {
    *("mechanism", "unit", "adjacency", "epsilon", "delta", "accountant", "composition", "noise_multiplier"),
    *("sample_rate", "steps", "ledger_head", "secure_rng", "seeded"),
}
# 200 rows for 4 clients, 10 a step, 2 epochs in each of 2 rounds.
RATE, STEPS = 10 / 50, 20
PRIVATE = {"privacy": {"noise_multiplier": 2.0}}


def pld(rate, noise, steps, delta):
    """What dp-accounting says, asked anew."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4)
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    return accountant.compose(event, steps).get_epsilon(delta)


@pytest.fixture(scope="module")
def run(tiny, inline_module, tmp_path_factory):
    """A small private run, and its folder."""
    out = tmp_path_factory.mktemp("private") / "run"
    return run_experiment(tiny(**PRIVATE), out), out


def test_every_client_has_a_statement_that_a_fresh_accountant_agrees_with(run):
    told = run[0]["privacy"]
    assert [one["client"] for one in told["each"]] == ["site-000", "site-001", "site-002", "site-003"]
    for one in [*told["each"], told["max"]]:
        assert set(one) >= KEYS
        assert (one["unit"], one["adjacency"], one["mechanism"]) == ("record", "zero_out", "dp-sgd")
        assert (one["sample_rate"], one["noise_multiplier"], one["steps"]) == (RATE, 2.0, STEPS)
        # min(1e-5, 1/(10 * 50))
        assert one["delta"] == 1e-5
        exact = pld(RATE, 2.0, STEPS, 1e-5)
        assert exact <= one["epsilon"] < exact + 1e-4  # rounded up
        assert one["rounds"] == (1, 2)
    assert told["max"]["epsilon"] == max(one["epsilon"] for one in told["each"])
    assert told["max"]["tuning"] == "unpaid"


def test_what_covers_the_student_is_the_largest_delta_beside_the_largest_epsilon(tiny, inline, tmp_path):
    """Deltas of sites of different sizes differ, min(1e-5, 1/(10 n)): here the one that pays most has the smaller."""
    from simulations.promises import calibrated

    def smaller(site, records, classes):
        noise, delta = (2.0, 5e-6) if site.site == "site-001" else (3.0, 0.0)
        told = site.privacy.model_copy(update={"noise_multiplier": noise, "delta": delta})
        return calibrated(site.model_copy(update={"privacy": told}), records, classes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("simulations.preparation.calibrated", smaller)
        told = run_experiment(tiny(privacy={**PRIVATE["privacy"], "tuning": "public"}), tmp_path / "out")["privacy"]
    one = told["each"][1]
    assert (one["delta"], one["tuning"]) == (5e-6, "public")
    assert all(one["epsilon"] > other["epsilon"] for other in (told["each"][0], *told["each"][2:]))
    assert (told["max"]["epsilon"], told["max"]["delta"]) == (one["epsilon"], 1e-5)
    assert (told["max"]["client"], len(told["max"]["covers"])) == ("site-001", 4)
    for stem in ("student", "student-best"):
        card = consilium.load_student(tmp_path / "out" / f"{stem}.json").card
        assert f"(eps={one['epsilon']:g}, delta=1e-05), record, zero-out, each of 4 clients, " in card.privacy
    page = (tmp_path / "out" / "report.html").read_text()
    assert "delta=1e-05), record, zero-out, each of 4 clients" in page
    assert "chosen on public data, or on none" in page
    assert "delta=5e-06), record, zero-out, rounds" in page  # that client's own


def test_the_ledgers_epsilon_is_that_of_a_fresh_accountant_to_nine_digits(run):
    for path in sorted(run[1].glob("checkpoint/sites/*/ledger.sqlite")):
        with Ledger.open(path) as ledger:
            assert ledger.charged()[0] == pytest.approx(pld(RATE, 2.0, STEPS, 1e-5), abs=1e-9)


def test_a_seeded_private_run_is_stamped_not_private_everywhere(run):
    result, out = run
    for one in result["privacy"]["each"]:
        assert one["seeded"]
        assert not one["secure_rng"]
        assert one["statement"].startswith("SIMULATION, NOT PRIVATE: (eps=")
    for stem in ("student", "student-best"):
        assert consilium.load_student(out / f"{stem}.json").card.privacy == result["privacy"]["max"]["statement"]
    page = (out / "report.html").read_text()
    assert "SIMULATION, NOT PRIVATE" in page
    assert "Rounding, temperature and top-1 answers are no privacy." in page


def test_the_statement_holds_what_an_epsilon_needs_beside_it(run):
    told = run[0]["privacy"]["max"]
    for part in ("delta=1e-05", "record", "zero-out", "rounds 1-2", "under plan", "PLD", "Poisson q=0.2 s=2 T=20"):
        assert part in told["statement"]
    assert told["statement"].endswith(f"ledger {told['ledger_seq']}:{told['ledger_head'][:8]}")
    assert "label" in " ".join(told["not_covered"])
    page = (run[1] / "report.html").read_text()
    for part in (*told["not_covered"], "unpaid: nobody says how these settings were chosen", told["noise"]):
        assert str(markupsafe.escape(part)) in page


def test_what_is_measured_on_test_rows_is_said_to_be_unpaid_wherever_it_stands(run):
    """With real data they are rows of people, too: beside an epsilon their numbers look covered, and are not."""
    result, out = run
    said = "with real data these are rows of people, too, to whom nothing is promised"
    assert said in result["privacy"]["on_the_side"]
    for measured in ("Accuracy, macro F1 and the confusion matrix of a student", "student-best is chosen by its score"):
        assert measured in result["privacy"]["on_the_side"]
    for stem in ("student", "student-best"):
        assert said in consilium.load_student(out / f"{stem}.json").card.on_the_side
    page = (out / "report.html").read_text()
    assert said in page
    assert "With real data the test rows are rows of people, too." in page


def test_without_a_promise_nothing_is_said_of_privacy(tiny, inline, tmp_path):
    for name, told in (
        ("plain", {}),
        ("inf", {"privacy": {"epsilon": "inf"}}),
        ("none", {"privacy": {"mechanism": "none"}}),
    ):
        run = run_experiment(tiny(**told), tmp_path / name)
        assert run["privacy"] is None
        assert not list((tmp_path / name).rglob("*.sqlite"))
    teachers = {
        json.loads((tmp_path / name / "run.json").read_text())["teacher"]["sha256"] for name in ("plain", "inf")
    }
    assert len(teachers) == 1


def test_the_same_seed_gives_the_same_noise_and_the_same_run(run, tiny, inline, tmp_path):
    again = run_experiment(tiny(**PRIVATE), tmp_path / "again")
    assert again["teacher"] == run[0]["teacher"]
    other = run_experiment(tiny(**PRIVATE, federation={"seed": 2}), tmp_path / "other")
    assert other["teacher"]["sha256"] != again["teacher"]["sha256"]


def test_noise_of_the_operating_system_is_private_and_never_repeats(run, tiny, inline, tmp_path):
    told = {"privacy": {**PRIVATE["privacy"], "os_entropy": True}}
    runs = [run_experiment(tiny(**told), tmp_path / name) for name in "ab"]
    assert runs[0]["teacher"]["sha256"] != runs[1]["teacher"]["sha256"]
    for one in runs:
        assert one["privacy"]["max"]["secure_rng"]
        assert one["privacy"]["max"]["statement"].startswith("(eps=")
        assert one["privacy"]["max"]["epsilon"] == run[0]["privacy"]["max"]["epsilon"]


def test_a_resumed_run_pays_once_and_ends_as_the_one_that_never_stopped(run, tiny, inline, monkeypatch, tmp_path):
    from server import coordinator

    class Stopped(Exception):
        pass

    def stop(path, config, progress):
        keep(path, config, progress)
        raise Stopped

    keep = coordinator.save_progress
    with monkeypatch.context() as patched:
        patched.setattr(coordinator, "save_progress", stop)
        with pytest.raises(Stopped):
            run_experiment(tiny(**PRIVATE), tmp_path / "out")
    resumed = run_experiment(tiny(**PRIVATE), tmp_path / "out", resume=True)
    assert resumed["teacher"] == run[0]["teacher"]
    assert resumed["privacy"]["max"]["epsilon"] == run[0]["privacy"]["max"]["epsilon"]
    assert resumed["failures"] == []


def test_how_settings_were_chosen_may_be_said_later_and_changes_nothing_else(run, tiny, inline, tmp_path):
    import shutil

    shutil.copytree(run[1], tmp_path / "out")
    told = tiny(privacy={**PRIVATE["privacy"], "tuning": "public"})
    again = run_experiment(told, tmp_path / "out", resume=True)
    assert (again["privacy"]["max"]["tuning"], run[0]["privacy"]["max"]["tuning"]) == ("public", "unpaid")
    assert again["teacher"] == run[0]["teacher"]
    assert run_id(told, "p") == run_id(tiny(**PRIVATE), "p")


def test_a_budget_is_for_so_many_rounds_and_no_resumed_run_changes_that(run, tiny, inline):
    with pytest.raises(ConfigError, match=r"was begun with another federation\.rounds"):
        run_experiment(tiny(**PRIVATE, federation={"rounds": 3}), run[1], resume=True)


def test_runs_that_share_their_ledgers_share_one_budget(tiny, inline, tmp_path):
    told = {"privacy": {"noise_multiplier": 2.0, "epsilon": 3.0, "ledgers": str(tmp_path / "kept")}}
    first = run_experiment(tiny(**told), tmp_path / "a")
    assert first["verdict"] == "ok"
    # the very same run again is the same releases again, and free
    assert run_experiment(tiny(**told), tmp_path / "same")["teacher"] == first["teacher"]
    second = run_experiment(tiny(**told, client={"distil_epochs": 2}), tmp_path / "b")
    assert (second["verdict"], second["refused"]) == ("failed", True)
    assert {failure["reason"] for failure in second["failures"]} == {"refused_budget_out"}
    assert second["privacy"]["max"]["epsilon"] == first["privacy"]["max"]["epsilon"]


def test_noise_that_does_not_keep_epsilon_is_refused_before_anything_is_written(tiny, inline, tmp_path):
    cost = math.ceil(pld(RATE, 2.0, STEPS, 1e-5) * 1e4) / 1e4
    with pytest.raises(ConfigError, match=rf"noise_multiplier=2 costs epsilon={cost:g} in 2 rounds, above epsilon=1"):
        run_experiment(tiny(privacy={"noise_multiplier": 2.0, "epsilon": 1.0}), tmp_path / "out")
    assert not list(tmp_path.rglob("ledger.sqlite"))


def test_a_client_whose_budget_is_out_is_missing_and_the_run_goes_on(tiny, inline, tmp_path):
    from simulations.promises import calibrated

    def stingy(site, records, classes):
        site = calibrated(site, records, classes)
        if site.site != "site-002":
            return site
        return site.model_copy(update={"privacy": site.privacy.model_copy(update={"rounds": 1})})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("simulations.preparation.calibrated", stingy)
        run = run_experiment(tiny(**PRIVATE), tmp_path / "out")
    assert run["verdict"] == "degraded"
    assert [(one["round"], one["client"], one["reason"]) for one in run["failures"]] == [
        (2, "site-002", "refused_budget_out")
    ]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"client": {"selector": "certainty"}}, "client.selector chooses proxy rows by private ones"),
        ({"strategy": {"aggregator": "class-count"}}, "needs counts, statistics of private rows"),
        ({"strategy": {"preset": "feddistill"}}, "exchanges class tables"),
        (
            {"strategy": {"preset": "comet"}, "privacy": {"mechanism": {"name": "pate", "teachers": 5}}},
            "several teachers",
        ),
    ],
)
def test_what_a_promise_does_not_pay_for_is_refused(tiny, changed, sentence):
    privacy = {"epsilon": 3.0, **changed.pop("privacy", {})}
    with pytest.raises(ConfigError, match=sentence):
        check_config(tiny(**changed, privacy=privacy))


def test_every_mechanism_that_is_offered_can_be_run_by_somebody():
    assert set(MECHANISMS) == {*SITE_MECHANISMS, CLIENT_SUM}


@pytest.mark.parametrize(
    ("mechanism", "sentence"),
    [
        ("gauss", "privacy: unknown mechanism 'gauss'; known: "),
        ("k-rr", "allow_baseline=False must be True to run k-rr"),
        ("pate", "pate needs a setting 'teachers'"),
        ({"name": "dp-sgd", "clip_norm": "a"}, "dp-sgd: clip_norm='a' must be a number"),
        ({"name": "dp-sgd", "clip_norm": [1.0]}, r"dp-sgd: clip_norm=\[1.0\] must be a number"),
        ({"name": "dp-sgd", "batch_size": True}, "dp-sgd: batch_size=True must be a whole number"),
        ({"name": "pate", "teachers": 2.5}, "pate: teachers=2.5 must be a whole number"),
        ({"name": "pate", "teachers": 5, "gate_std": "x", "threshold": 1.0}, "pate: gate_std='x' must be a number"),
        ({"name": "pate", "teachers": 5, "hard": 1}, "pate: hard=1 must be true or false"),
        ({"name": "client-sum", "clip": "a"}, "client-sum has one setting, clip, a number"),
        ({"name": "client-sum-distributed", "clip": "a"}, "privacy: client-sum-distributed: clip='a' must be a number"),
        ({"name": "client-sum-distributed", "clip": [1]}, r"client-sum-distributed: clip=\[1\] must be a number"),
        (
            {"name": "client-sum-distributed", "clip": 1.0, "least": "x"},
            "client-sum-distributed: least='x' must be a whole number$",
        ),
        ({"name": "client-sum-distributed"}, "of which clip must be given; none is given$"),
    ],
)
def test_a_mechanism_that_cannot_be_is_refused_before_any_data_is_read(tiny, mechanism, sentence):
    config = tiny(privacy={"epsilon": 3.0, "mechanism": mechanism}, strategy={"secure_sum": "sum-d" in str(mechanism)})
    with pytest.raises(ConfigError, match=sentence):
        check_config(config)


@pytest.mark.parametrize(
    ("privacy", "sentence"),
    [
        ({"epsilon": 3.0, "mechanism": "magic"}, "unknown mechanism 'magic'; known: "),
        ({"epsilon": 3.0, "mechanism": {"name": "dp-sgd", "clip": 1.0}}, "dp-sgd has no setting 'clip'"),
        ({"epsilon": 3.0, "mechanism": "k-rr"}, "allow_baseline"),
        ({"epsilon": 3.0, "delta": 0.5}, "delta=0.5"),
        ({"epsilon": 70.0}, "epsilon=70.0"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused_before_the_run(tiny, inline, tmp_path, privacy, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run_experiment(tiny(privacy=privacy), tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("mechanism", [{"name": "pate", "teachers": 5}, "k-rr", "gaussian-output"])
def test_other_mechanisms_run_end_to_end_and_say_what_they_are_worth(tiny, inline, tmp_path, mechanism):
    told = {"mechanism": mechanism, "noise_multiplier": 30.0, "allow_baseline": True}
    run = run_experiment(tiny(privacy=told), tmp_path / "out")
    name = mechanism if isinstance(mechanism, str) else mechanism["name"]
    assert run["privacy"]["max"]["mechanism"] == name
    assert run["privacy"]["max"]["steps"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("baseline" in run["privacy"]["worth"]) is (name != "pate")
    assert run["privacy"]["worth"][:30] in page
