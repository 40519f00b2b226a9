"""A run's page shows what was found, what that refutes, and that a file it cannot read is one."""

import json

import pytest

from simulations.reporting.audits_part import audits_part

ATTACK = {
    "seen": "model",
    "attack": "lira",
    "auc": 0.81,
    "auc_low": 0.8,
    "auc_high": 0.82,
    "tpr_1": 0.3,
    "tpr_1_low": 0.25,
    "tpr_1_high": 0.35,
    "tpr_01": 0.1,
    "tpr_01_low": 0.05,
    "tpr_01_high": 0.15,
    "epsilon_low": 3.217,
    "epsilon": 1.0,
}
MEMBERSHIP = {
    "site": "a",
    "mechanism": "dp-sgd",
    "records": 400,
    "shadows": 16,
    "accuracy_in": 0.9,
    "accuracy_out": 0.7,
    "delta": 1.2341e-6,
    "epsilon": 1.00001,
    "refuted": True,
    "strangers": 3200,
    "most_tpr_1": 0.0272,
    "most_tpr_01": 0.0027,
    "wanted": None,
    "found": [ATTACK],
}
WORDS = {"can_show": "some", "cannot_show": "more", "about_private_rows": True}


@pytest.fixture
def audited(tmp_path):
    """A function: audits that find this in a run's folder; returns the parts of its page."""

    def audits(kind, told):
        home = tmp_path / "audits" / f"{kind}-1"
        home.mkdir(parents=True)
        (home / f"{kind}.json").write_text(told if isinstance(told, str) else json.dumps({**told, **WORDS}))
        return audits_part(tmp_path)

    return audits


def test_attacks_stand_above_the_most_that_the_promise_allows(audited):
    (part,) = audited("membership", MEMBERSHIP)
    assert part.found.refuted
    attack, most = part.found.rows
    assert attack[:5] == [
        "the model itself",
        "lira",
        "0.810 (0.800 to 0.820)",
        "30.0 % (25.0 % to 35.0 %)",
        "10.0 % (5.0 % to 15.0 %)",
    ]
    assert attack[5] == "3.22"
    assert most == ["most that epsilon 1.0001 at delta 1.235e-06 allows", "any", "", "2.7 %", "0.3 %", ""]
    assert part.found.sentences[-1].endswith("Some attack found more: the promise is refuted.")
    assert (part.can, part.cannot, part.where) == ("some", "more", "audits/membership-1/membership.json")


def test_without_a_promise_nothing_bounds_an_attack(audited):
    none = {"epsilon": None, "most_tpr_1": None, "most_tpr_01": None, "refuted": False, "strangers": 90}
    (part,) = audited("membership", {**MEMBERSHIP, **none})
    assert len(part.found.rows) == 1
    assert part.found.sentences[1].startswith("Of 90 strangers 0.1 % is less than one")
    assert part.found.sentences[-1] == "Nothing is promised, so that nothing bounds an attack."


def test_what_the_audit_trained_with_instead_of_the_runs_promise_is_said(audited):
    (part,) = audited("membership", {**MEMBERSHIP, "wanted": {"epsilon": 1.0}})
    assert "Its models trained by DP-SGD with epsilon 1, whatever this run promises." in part.found.sentences


def test_noise_that_is_refuted_is_shown_as_such(audited):
    one = {"mechanism": "pate", "refuted": False, "claimed": 1.5, "epsilon_low": 0.25}
    (part,) = audited("mechanism", {"mechanisms": [one, {**one, "mechanism": "k-rr", "refuted": True}]})
    assert part.found.refuted
    assert part.found.rows == [["pate", "stands", "1.5", "0.2500"], ["k-rr", "refuted", "1.5", "0.2500"]]


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"found": 3}', '{"epsilon": null', "\x00"])
def test_a_file_that_is_no_audit_is_said_to_be_none(audited, told):
    (part,) = audited("membership", told)
    assert part.found.sentences == ["This file is no audit of this version: run the audit again."]
    assert part.found.rows == ()


def test_other_files_are_left_alone(audited, tmp_path):
    assert audits_part(tmp_path) == []
    assert audited("notes", {}) == []
