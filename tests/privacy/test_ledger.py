"""A release is paid for once, before it is made, and is sent again as it was."""

import json
import math
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from privacy import chain
from privacy.events import Gaussian, PoissonGaussian, times
from privacy.ledger import (
    BudgetExceeded,
    KeyConflict,
    Ledger,
    LedgerError,
    LedgerRolledBack,
    LedgerUnavailable,
    ReleaseLost,
    Request,
    Sealed,
    StaleRelease,
    Terms,
    TermsDiffer,
    Token,
    TokenRefused,
    canonical,
)

COUNT = Terms("record", "zero_out", "count", None, None, None, False)
FILTER = Terms("record", "zero_out", "filter", 3.0, 1e-5, 8, False)
PLAN = Terms("record", "zero_out", "plan", 3.0, 1e-5, None, False)
STEPS = PoissonGaussian(0.05, 3.0, 10)


def request(round_=1, attempt=0, **changed):
    plain = Request("run", round_, attempt, "site-a", "dp-sgd", canonical({"noise": 3.0}), "ab" * 32)
    return replace(plain, **changed)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.create(tmp_path / "ledger.sqlite", FILTER, durable=False) as made:
        yield made


# ---- terms


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unit": "hospital"}, "unit='hospital' must be one of record, patient, client"),
        ({"adjacency": "add_remove"}, "adjacency='add_remove' must be one of zero_out, replace_one"),
        ({"mode": "free"}, "mode='free' must be one of plan, filter, count"),
        ({"seeded": 1}, "seeded=1 must be true or false"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be a finite number above 0"),
        ({"epsilon": math.inf}, "epsilon=inf must be a finite number above 0"),
        ({"epsilon": math.nan}, "epsilon=nan must be"),
        ({"epsilon": True}, "epsilon=True must be"),
        ({"epsilon": None}, "epsilon=None must be"),
        ({"delta": 0.0}, r"delta=0.0 must be in \[1e-12, 1\)"),
        ({"delta": 1.0}, "delta=1.0 must be"),
        ({"delta": None}, "delta=None must be a number"),
        ({"order": 1}, "order=1 must be a whole number, 2 or more"),
        ({"order": 2.5}, "order=2.5 must be"),
        ({"order": None}, "order=None must be"),
        ({"mode": "plan"}, "order=8 has no meaning in mode 'plan'"),
        ({"mode": "count"}, "epsilon=3.0 has no meaning in mode 'count'"),
        ({"mode": "count", "epsilon": None}, "delta=1e-05 has no meaning in mode 'count'"),
    ],
)
def test_terms_that_mean_nothing_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(FILTER, **changed)


@pytest.mark.parametrize(
    "terms", [COUNT, FILTER, PLAN, replace(PLAN, seeded=True, unit="patient"), replace(PLAN, epsilon=3)]
)
def test_terms_and_data_set_stay_what_they_were_when_the_ledger_was_made(tmp_path, terms):
    path = tmp_path / "new folder?#%" / "ledger.sqlite"
    with Ledger.create(path, terms, durable=False) as made:
        first = (made.terms, made.data_set)
    with Ledger.open(path, durable=False) as found:
        assert (found.terms, found.data_set) == first == (terms, made.data_set)
    assert uuid.UUID(first[1]).version == 4
    with Ledger.open_or_create(path, terms, durable=False) as same:
        assert same.data_set == first[1]


def test_two_data_sets_never_have_the_same_id_or_the_same_keys(tmp_path):
    ids = set()
    for name in ("a", "b"):
        with Ledger.open_or_create(tmp_path / name, COUNT, durable=False) as made:
            ids |= {made.data_set, made.reserve(request(), ()).key}
    assert len(ids) == 4


def test_a_data_set_whose_releases_were_not_accounted_never_becomes_private(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, COUNT, durable=False) as made:
        made.store(made.reserve(request(), ()), b"votes")
        before = list(made.rows())
    with pytest.raises(
        TermsDiffer, match=r"mode='count', epsilon=None, delta=None and is asked for mode='plan', epsilon=3.0"
    ):
        Ledger.open_or_create(path, PLAN, durable=False)
    with Ledger.open(path, durable=False) as same:
        assert list(same.rows()) == before


def test_a_ledger_that_is_not_there_does_not_begin_by_being_opened(tmp_path):
    with pytest.raises(LedgerUnavailable, match="unable to open"):
        Ledger.open(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_is_never_made_over_another(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, COUNT, durable=False).close()
    before = path.read_bytes()
    with pytest.raises(LedgerUnavailable, match=r"there is a ledger at .*: open it"):
        Ledger.create(path, COUNT, durable=False)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]


# ---- requests


@pytest.mark.parametrize(
    "text", ["", "{", '{"b":1,"a":2}', '{"a": 1}', '{"a":0.5}', '{"a":NaN}', pytest.param("[" * 100_000, id="deep")]
)
def test_parameters_have_one_spelling_or_are_refused(text):
    with pytest.raises(ValueError, match=r"must be JSON as privacy\.chain.canonical"):
        request(parameters=text)


@pytest.mark.parametrize(
    ("field", "bad"), [("round", -1), ("round", 1.0), ("attempt", True), ("run", 3), ("client", None)]
)
def test_requests_of_other_types_are_refused(field, bad):
    with pytest.raises(ValueError, match=f"{field}={bad!r} must be"):
        replace(request(), **{field: bad})


def test_floats_in_parameters_keep_every_bit():
    assert canonical({"b": (0.1, None), "a": True}) == '{"a":true,"b":["0x1.999999999999ap-4",null]}'


# ---- reserve and store


def test_a_token_stands_for_what_was_asked(ledger):
    token = ledger.reserve(request(), (STEPS, STEPS))
    assert token == Token(2, request().key(ledger.data_set), (times(STEPS, 2),))
    row = list(ledger.rows())[-1]
    assert (row.seq, row.kind, row.key) == (2, "SPENT", token.key)
    assert row.body["request"] == {
        "run": "run", "round": 1, "attempt": 0, "client": "site-a", "mechanism": "dp-sgd",
        "parameters": '{"noise":"0x1.8000000000000p+1"}', "plan_sha256": "ab" * 32,
    }  # fmt: skip
    assert row.body["events"] == [
        ["poisson_gaussian", {"sample_rate": (0.05).hex(), "noise_multiplier": (3.0).hex()}, 20]
    ]


def test_a_retry_gets_the_bytes_that_were_sent_and_pays_nothing(ledger):
    head = ledger.store(ledger.reserve(request(), (STEPS,)), b"\x00votes")
    for _ in range(3):
        assert ledger.reserve(request(), (STEPS,)) == Sealed(3, b"\x00votes")
    assert ledger.head() == head
    assert ledger.events() == (STEPS,)


@pytest.mark.parametrize(
    "changed",
    [
        {"client": "site-b"},
        {"mechanism": "pate"},
        {"parameters": canonical({"noise": 3.1})},
        {"plan_sha256": "cd" * 32},
    ],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_other_contents_under_the_same_round_are_a_conflict(ledger, changed, sealed):
    token = ledger.reserve(request(), (STEPS,))
    if sealed:
        ledger.store(token, b"votes")
    before = ledger.head()
    with pytest.raises(KeyConflict, match="round 1 of run 'run', attempt 0 was paid for in row 2 with other contents"):
        ledger.reserve(request(**changed), (STEPS,))
    with pytest.raises(KeyConflict):
        ledger.reserve(request(), (replace(STEPS, count=9),))
    assert ledger.head() == before


@pytest.mark.parametrize("changed", [{"run": "other"}, {"round": 2}, {"attempt": 1}])
def test_another_run_round_or_attempt_is_another_release(ledger, changed):
    first = ledger.reserve(request(), (STEPS,))
    second = ledger.reserve(request(**changed), (STEPS,))
    assert first.key != second.key
    assert ledger.events() == (times(STEPS, 2),)


def test_a_release_whose_process_died_is_lost_and_can_only_be_paid_again(ledger):
    ledger.reserve(request(), (STEPS,))
    for _ in range(2):
        with pytest.raises(ReleaseLost, match="skip the round, or pay again as attempt 1"):
            ledger.reserve(request(), (STEPS,))
    ledger.store(ledger.reserve(request(attempt=1), (STEPS,)), b"votes")
    with pytest.raises(ReleaseLost):
        ledger.reserve(request(), (STEPS,))
    assert ledger.reserve(request(attempt=1), (STEPS,)) == Sealed(4, b"votes")
    assert ledger.events() == (times(STEPS, 2),)
    assert (ledger.count(), ledger.count("run"), ledger.count("other")) == (1, 1, 0)


def test_who_kept_the_bytes_of_a_lost_release_can_still_seal_them_and_nobody_else(ledger):
    token = ledger.reserve(request(), (STEPS,))
    assert ledger.unsealed(token.seq, token.key) == token
    for seq, key in ((token.seq, bytes(32)), (1, token.key), (9, token.key)):
        with pytest.raises(LedgerRolledBack, match=f"has no release at row {seq} that this site paid for"):
            ledger.unsealed(seq, key)
    ledger.store(token, b"votes")
    assert ledger.unsealed(token.seq, token.key) is None


def test_a_seeded_release_is_a_function_of_its_request_and_its_token_is_given_again(tmp_path):
    with Ledger.create(tmp_path / "l", replace(FILTER, seeded=True), durable=False) as ledger:
        token = ledger.reserve(request(), (STEPS,))
        assert ledger.reserve(request(), (STEPS,)) == token
        with pytest.raises(KeyConflict):
            ledger.reserve(request(plan_sha256="cd" * 32), (STEPS,))
        ledger.store(token, b"votes")
        assert ledger.reserve(request(), (STEPS,)) == Sealed(3, b"votes")
        assert ledger.events() == (STEPS,)


def test_a_token_seals_once_and_only_what_it_paid_for(ledger, tmp_path):
    token = ledger.reserve(request(), (STEPS,))
    with Ledger.create(tmp_path / "other", FILTER, durable=False) as other:
        other.reserve(request(), (STEPS,))
        with pytest.raises(TokenRefused, match="is not of this ledger"):
            other.store(token, b"votes")
    for wrong in (
        replace(token, seq=1),
        replace(token, seq=99),
        replace(token, key=bytes(32)),
        replace(token, events=(Gaussian(1.0, 1),)),
    ):
        with pytest.raises(TokenRefused, match=f"token of row {wrong.seq} is not of this ledger"):
            ledger.store(wrong, b"votes")
    ledger.store(token, b"votes")
    with pytest.raises(TokenRefused, match="was used: row 3 seals what it released"):
        ledger.store(token, b"other votes")
    assert ledger.reserve(request(), (STEPS,)).payload == b"votes"
    assert [row.kind for row in ledger.rows()] == ["OPEN", "SPENT", "SEALED"]


def test_only_the_newest_four_answers_are_kept(ledger):
    for round_ in range(1, 7):
        ledger.store(ledger.reserve(request(round_), (STEPS,)), b"%d" % round_)
    for round_ in (1, 2):
        with pytest.raises(StaleRelease, match="only the newest 4 are kept"):
            ledger.reserve(request(round_), (STEPS,))
    assert [ledger.reserve(request(round_), (STEPS,)).payload for round_ in (3, 4, 5, 6)] == [b"3", b"4", b"5", b"6"]
    ledger.verify()


def test_what_was_learned_stays_while_the_file_is_let_go(ledger, tmp_path):
    token = ledger.reserve(request(), (STEPS,))
    ledger.close()
    ledger.close()
    with pytest.raises(ValueError, match="is closed: use it inside `with ledger:`"):
        ledger.head()
    with Ledger.open(tmp_path / "ledger.sqlite", durable=False) as other:
        other.reserve(request(2), (STEPS,))
    with ledger:
        assert ledger.store(token, b"votes").seq == 4
        assert ledger.events() == (times(STEPS, 2),)


def test_a_clock_that_is_set_back_changes_nothing_but_the_times_in_the_rows(ledger, monkeypatch):
    class SetBack(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(1970, 1, 1, tzinfo=tz)

    first = ledger.store(ledger.reserve(request(1), (STEPS,)), b"one")
    monkeypatch.setattr(chain, "datetime", SetBack)
    ledger.store(ledger.reserve(request(2), (STEPS,)), b"two")
    assert ledger.reserve(request(1), (STEPS,)) == Sealed(first.seq, b"one")
    ledger.check(first.seq, first.digest)
    ledger.verify()
    times_told = [row.body["at"] for row in ledger.rows()]
    assert times_told[3:] == ["1970-01-01T00:00:00+00:00"] * 2
    assert all(told > datetime(2024, 1, 1, tzinfo=UTC).isoformat() for told in times_told[:3])


def test_rows_are_json_that_anyone_can_read(ledger):
    ledger.store(ledger.reserve(request(), (STEPS,)), b"votes")
    opened, spent, sealed = ledger.rows()
    assert opened.body["terms"]["epsilon"] == (3.0).hex()
    assert {"python", "sqlite", "dp-accounting"} <= set(opened.body["made_with"])
    assert (sealed.key, sealed.body["spent"], sealed.body["bytes"]) == (spent.key, 2, 5)
    assert json.loads(canonical(spent.body)) == spent.body


def test_every_refusal_has_a_public_code_and_is_one_kind_of_error():
    from strategies.messages import REFUSALS

    kinds = LedgerError.__subclasses__()
    assert len(kinds) == 9
    assert {kind.code for kind in kinds} <= set(REFUSALS)
    assert {kind: kind.code for kind in (BudgetExceeded, KeyConflict, ReleaseLost, StaleRelease)} == {
        BudgetExceeded: "budget_out",
        KeyConflict: "conflicting_plan",
        ReleaseLost: "release_lost",
        StaleRelease: "stale_round",
    }
    assert issubclass(LedgerUnavailable, OSError)
