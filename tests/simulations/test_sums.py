"""Experiments whose coordinator sees sums only, and experiments that protect whole clients."""

import json

import numpy as np
import pytest

from client.config import load_site
from client.identity import peers_of
from privacy.ledger import Ledger
from privacy.mechanisms.distributed_sum import DistributedClientSum
from server.checkpoint import load_progress
from simulations.config import ConfigError
from simulations.experiment import run_experiment
from simulations.preparation import check_config, prepare

SUMS = {"secure_sum": True}
CENTRAL = {"mechanism": {"name": "client-sum", "clip": 2.0}, "epsilon": 8.0}
SPLIT = {"mechanism": {"name": "client-sum-distributed", "clip": 2.0}, "epsilon": 50.0}


def standing(config, out, scratch):
    return load_progress(out / "checkpoint" / "server.safetensors", prepare(config, scratch).federation).standing


@pytest.fixture(scope="module")
def plain(tiny, inline_module, tmp_path_factory):
    """A run whose votes are plain: what its teacher says."""
    out = tmp_path_factory.mktemp("plain") / "out"
    told = run_experiment(tiny(), out)
    return told, standing(tiny(), out, out.parent / "scratch").teacher


def test_a_run_with_secure_sums_differs_from_a_plain_one_by_the_grid_and_no_more(plain, tiny, inline, tmp_path):
    told = run_experiment(tiny(strategy=SUMS), tmp_path / "out")
    assert (told["verdict"], told["failures"], told["rounds_done"]) == ("ok", [], 2)
    teacher = standing(tiny(strategy=SUMS), tmp_path / "out", tmp_path / "scratch").teacher
    np.testing.assert_array_equal(teacher.rows, plain[1].rows)
    # ERA at T = 0.1: half a step of 1/4096 moves log-odds by .0012 at most, in round 2 through the models as well.
    assert np.abs(teacher.probabilities() - plain[1].probabilities()).max() < 0.02
    assert told["teacher"]["accuracy"] == plain[0]["teacher"]["accuracy"] > 0.5


def test_its_sites_let_their_votes_leave_in_no_other_way(tiny, tmp_path):
    setup = prepare(tiny(strategy=SUMS), tmp_path)
    assert all('secure_sum = "require"' in path.read_text() for path in setup.site_files.values())
    assert setup.federation.exchange.secure_sum


def test_its_sites_know_each_other_by_keys_that_a_resumed_run_still_has(tiny, tmp_path):
    def peers():
        setup = prepare(tiny(strategy=SUMS), tmp_path)
        return [peers_of(load_site(path), path.parent) for path in setup.site_files.values()]

    first = peers()
    assert peers() == first
    assert {tuple(one.registry) for one in first} == {tuple(prepare(tiny(strategy=SUMS), tmp_path).study.names)}
    assert len({one.identity for one in first}) == 4
    plain = prepare(tiny(), tmp_path / "plain")
    assert [peers_of(load_site(path), path.parent) for path in plain.site_files.values()] == [None] * 4


def test_teachers_metrics_and_bytes_do_not_depend_on_the_keys(tiny, inline, tmp_path):
    told = [run_experiment(tiny(strategy=SUMS), tmp_path / name) for name in ("one", "other")]
    keys = [next((tmp_path / name).rglob("identity.key")).read_bytes() for name in ("one", "other")]
    assert keys[0] != keys[1]
    teachers = [
        standing(tiny(strategy=SUMS), tmp_path / name, tmp_path / "scratch").teacher for name in ("one", "other")
    ]
    assert teachers[0].log_probs.tobytes() == teachers[1].log_probs.tobytes()
    for what in ("upload_bytes", "download_bytes", "student", "clients"):
        assert told[0][what] == told[1][what]


def test_its_sites_open_a_sum_only_after_they_have_signed_who_is_in_it(tiny, inline, tmp_path, monkeypatch):
    from privacy.secure_sum import client

    agree, signed = client.agree, []
    monkeypatch.setattr(client, "agree", lambda site, *told: signed.append(site.name) or agree(site, *told))
    assert run_experiment(tiny(strategy=SUMS), tmp_path / "out")["verdict"] == "ok"
    assert len(signed) == 2 * 4  # every site in every round


def test_a_run_with_secure_sums_is_resumed_as_if_nothing_had_been(tiny, inline, tmp_path, monkeypatch):
    whole = run_experiment(tiny(strategy=SUMS), tmp_path / "whole")
    ask, exchanges = inline.ask, []

    def dies(pool, plans):
        exchanges.append(len(plans))
        if len(exchanges) == 6:  # the inputs of round 2: stages 1 and 2 travelled with round 1
            raise RuntimeError("power cut")
        yield from ask(pool, plans)

    monkeypatch.setattr(inline, "ask", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        run_experiment(tiny(strategy=SUMS), tmp_path / "cut")
    monkeypatch.setattr(inline, "ask", ask)
    told = run_experiment(tiny(strategy=SUMS), tmp_path / "cut", resume=True)
    assert told["teacher"] == whole["teacher"]
    assert told["student"]["accuracy"] == whole["student"]["accuracy"]


def test_a_private_run_with_secure_sums_has_its_statement(tiny, inline, tmp_path):
    told = run_experiment(tiny(strategy=SUMS, privacy={"epsilon": 8.0}), tmp_path / "out")
    assert told["verdict"] == "ok"
    assert [one["unit"] for one in told["privacy"]["each"]] == ["record"] * 4
    assert [one["rounds"] for one in told["privacy"]["each"]] == [(1, 2)] * 4


REFUSED = [
    ({"strategy": {"aggregator": "median"}}, "'median' needs single votes or weights: take mean, era or enhanced-era"),
    ({"strategy": {"aggregator": {"name": "mean", "weight": "entropy"}}}, "'mean' needs single votes or weights"),
    ({"strategy": {"aggregator": "logit-mean"}}, "'logit-mean' needs single votes"),
    ({"federation": {"mode": "async"}}, "mode='async' counts late votes one by one"),
    ({"federation": {"keep_votes": True}}, "keep_votes=true keeps single votes"),
    ({"strategy": {"uplink": "quantised:1+delta+entropy"}}, "sends differences to single votes"),
    ({"strategy": {"choice": "disagreement"}}, "choice='disagreement' compares single votes"),
    ({"federation": {"clients": 2}}, "a secure sum takes 3 clients or more, .* are 2"),
    ({"federation": {"participation": 0.5}}, "federation.participation=0.5 of federation.clients=4 are 2"),
    ({"client": {"selector": "kmeans-ratio"}}, "with client.selector a row may have few voters"),
    ({"attack": {"name": "uniform"}}, "attack.name='uniform' replaces single votes"),
    ({"stragglers": {"share": 0.5}}, "stragglers and newcomers are counted in exchanges"),
    ({"newcomers": {"share": 0.5}}, "stragglers and newcomers are counted in exchanges"),
    (
        {"privacy": {"epsilon": 8, "mechanism": {"name": "pate", "teachers": 5, "gate_std": 2.0, "threshold": 1.0}}},
        "with privacy.mechanism.gate_std a row may have few voters",
    ),
    ({"privacy": CENTRAL}, "client-sum adds its noise at the coordinator, which sees all votes: take client-sum-distr"),
]


@pytest.mark.parametrize(("changed", "said"), REFUSED)
def test_what_needs_single_votes_is_refused_beside_a_secure_sum_with_a_sentence(tiny, changed, said):
    merged = {**changed, "strategy": {**SUMS, **changed.get("strategy", {})}}
    with pytest.raises(ConfigError, match=said):
        check_config(tiny(**merged))


def test_client_sum_ends_with_one_statement_by_the_coordinator(tiny, inline, tmp_path):
    told = run_experiment(tiny(privacy=CENTRAL), tmp_path / "out")
    privacy = told["privacy"]
    assert privacy["each"] == [privacy["max"]]
    statement = privacy["max"]
    assert (statement["client"], statement["unit"], statement["adjacency"]) == ("coordinator", "client", "zero_out")
    assert 7.9 < statement["epsilon"] <= 8.0
    assert (statement["rounds"], statement["delta"]) == ((1, 2), 1e-5)
    assert statement["statement"].startswith("SIMULATION, NOT PRIVATE")
    caveat = "holds against everybody but the coordinator, which sees all votes"
    assert caveat in statement["statement"]
    assert caveat in json.loads((tmp_path / "out" / "student.json").read_text())["privacy"]
    assert caveat in (tmp_path / "out" / "report.html").read_text()
    assert "with 50 or fewer it does not work" in privacy["worth"]
    assert "whoever adds the noise sees all votes" in privacy["worth"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["privacy"]["max"]["epsilon"] == statement["epsilon"]
    assert not list((tmp_path / "out" / "checkpoint" / "sites").rglob("ledger.sqlite"))


@pytest.mark.parametrize("entropy", [False, True])
def test_a_resumed_client_sum_is_charged_once_a_round_and_never_noised_again(
    tiny, inline, tmp_path, monkeypatch, entropy
):
    """The coordinator dies after round 1 was let out, before its checkpoint."""
    import server.coordinator as coordinator

    config = tiny(privacy={**CENTRAL, "os_entropy": entropy})
    save, teachers = coordinator.save_progress, []

    def dies(path, told, progress):
        teachers.append(progress.standing.state["told"].tobytes())
        if len(teachers) == 1:
            raise RuntimeError("power cut")
        save(path, told, progress)

    monkeypatch.setattr(coordinator, "save_progress", dies)
    with pytest.raises(RuntimeError, match="power cut"):
        run_experiment(config, tmp_path / "out")
    told = run_experiment(config, tmp_path / "out", resume=True)
    assert told["verdict"] == "ok"
    assert teachers[1] == teachers[0]
    with Ledger.open(tmp_path / "out" / "checkpoint" / "ledger.sqlite", durable=False) as ledger:
        assert [row.kind for row in ledger.rows()] == ["OPEN", "PLAN", *["SPENT", "SEALED"] * 2]


def test_a_ledger_that_outlives_the_run_stops_the_next_one(tiny, inline, tmp_path):
    config = tiny(privacy={**CENTRAL, "ledgers": str(tmp_path / "kept")})
    assert run_experiment(config, tmp_path / "one")["verdict"] == "ok"
    told = run_experiment(
        config.model_copy(update={"student": config.student.model_copy(update={"distil_epochs": 2})}), tmp_path / "two"
    )
    assert (told["verdict"], told["rounds_done"], told["refused"]) == ("failed", 0, True)
    charged = told["privacy"]["max"]["epsilon"]  # 7.99..., rounded up
    assert f"the budget of coordinator is out: epsilon {charged - 5e-5:.3f}"[:-1] in told["reason"]
    assert "of 8.0000 at delta 1e-05 is charged, for 2 rounds so far; `consilium budget` shows" in told["reason"]
    assert "plan" not in told["reason"]


def test_a_secure_sum_whose_sites_are_out_of_budget_is_refused_for_good(tiny, inline, tmp_path):
    promise = {"noise_multiplier": 2.0, "epsilon": 3.0, "ledgers": str(tmp_path / "kept")}
    assert not run_experiment(tiny(privacy=promise, strategy=SUMS), tmp_path / "one")["refused"]
    other = tiny(privacy=promise, strategy=SUMS, client={"distil_epochs": 2})
    told = run_experiment(other, tmp_path / "two")
    assert {failure["reason"] for failure in told["failures"]} == {"refused_budget_out"}
    assert (told["verdict"], told["refused"]) == ("failed", True)


CENTRAL_REFUSED = [
    ({"strategy": {"aggregator": "median"}}, {}, "which no noise pays for: take mean, era or enhanced-era"),
    ({"federation": {"mode": "async"}}, {}, "counts a vote in more than one round"),
    ({"federation": {"keep_votes": True}}, {}, "would teach students anew without noise"),
    ({"strategy": {"choice": "disagreement"}}, {}, "chooses rows by single votes"),
    ({}, {"composition": "filter"}, "client-sum takes \"plan\""),
    ({}, {"group_size": 3}, "client-sum covers all rows"),
    ({}, {"mechanism": {"name": "client-sum"}}, "client-sum has one setting, clip, a number, and {} is given"),
    ({}, {"mechanism": {"name": "client-sum", "clip": -1.0}}, "clip=-1.0 must be a finite number above 0"),
    ({}, {"epsilon": 1.0, "noise_multiplier": 0.5}, "noise_multiplier=0.5 costs"),
    ({}, {"delta": 0.5}, "delta=0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "privacy", "said"), CENTRAL_REFUSED)
def test_what_noise_on_the_sum_does_not_pay_for_is_refused_with_a_sentence(tiny, changed, privacy, said):
    with pytest.raises(ConfigError, match=said):
        check_config(tiny(privacy={**CENTRAL, **privacy}, **changed))


def test_split_noise_is_paid_by_each_site_and_stated_for_it(tiny, inline, tmp_path):
    told = run_experiment(tiny(privacy=SPLIT, strategy=SUMS), tmp_path / "out")
    each = told["privacy"]["each"]
    assert (told["verdict"], len(each)) == ("ok", 4)
    assert {(one["unit"], one["mechanism"], one["rounds"]) for one in each} == {
        ("client", "client-sum-distributed", (1, 2))
    }
    assert all(49.9 < one["epsilon"] <= 50.0 for one in each)
    # least = ceil(8/3)
    caveat = "holds if the coordinator follows the protocol, at least 3 of 4 sites add noise and none of these collude"
    card = json.loads((tmp_path / "out" / "student.json").read_text())["privacy"]
    assert all(caveat in sentence for sentence in (*(one["statement"] for one in each), card))
    assert {one["noise"].partition(",")[0] for one in each} == {"discrete Gaussian integers"}


def test_split_noise_is_that_of_all_sites_together_around_the_plain_mean(tiny, inline, tmp_path, monkeypatch):
    """4 sites, all there, least = ceil(8/3) = 3 honest: the noise of four shares is sD sqrt(4/3)."""
    totals, release = [], DistributedClientSum.release

    def spied(split, steps, base):
        totals.append((split, steps))
        return release(split, steps, base)

    monkeypatch.setattr(DistributedClientSum, "release", spied)
    config = tiny(privacy={**SPLIT, "epsilon": 2.0}, strategy=SUMS, federation={"rounds": 1})
    assert run_experiment(config, tmp_path / "out")["verdict"] == "ok"
    ((split, steps),) = totals
    std = split.sensitivity(40) * split.noise_multiplier * np.sqrt(4 / 3) / split.grid
    # The clipped differences together are at most 4 B; the noise on 400 entries is far above that.
    assert split.honest == 3
    assert 4 * split.clip / split.grid < 0.2 * std * np.sqrt(steps.size)
    # chi-square, 400 degrees of freedom: 4 standard deviations and the differences' share
    assert abs((steps / std).ravel() @ (steps / std).ravel() - 400) < 4 * np.sqrt(800) + 400 * 0.05


SPLIT_REFUSED = [
    ({}, {}, "strategy.secure_sum=false shows its votes alone"),
    ({"strategy": {**SUMS, "cache_rounds": 3}}, {}, "set cache_rounds=0"),
    ({"strategy": SUMS}, {"mechanism": {"name": "client-sum-distributed"}}, "has the settings clip, least and"),
    ({"strategy": SUMS}, {"composition": "filter"}, "client-sum-distributed takes \"plan\""),
    (
        {"strategy": SUMS},
        {"mechanism": {"name": "client-sum-distributed", "clip": 1.0, "least": 9}},
        "least=9 must be at most clients=4",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "privacy", "said"), SPLIT_REFUSED)
def test_what_split_noise_does_not_go_with_is_refused_with_a_sentence(tiny, changed, privacy, said):
    with pytest.raises(ConfigError, match=said):
        check_config(tiny(privacy={**SPLIT, **privacy}, **changed))
