"""An epsilon's sentence is read off the ledger, has all its parts, and never rounds in its own favour."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import accountant, epsilon_of
from privacy.caveats import caveats_of, noise_of
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse
from privacy.ledger import Ledger, Request, Terms, canonical
from privacy.mechanisms import MECHANISMS
from privacy.mechanisms.distributed_sum import DistributedClientSum
from privacy.statement import covering, shown, shown_delta, statement_of


def request(round_, mechanism="dp-sgd", run="ab", parameters="{}"):
    return Request(run, round_, 0, "site-1", mechanism, parameters, f"{round_:064x}")


@pytest.fixture
def ledger(tmp_path):
    """A function: a new ledger of these terms, closed at the end."""
    opened = []

    def make(
        mode="plan",
        epsilon=3.0,
        order=None,
        seeded=False,
        adjacency="zero_out",
        delta=1e-5,
        unit="record",
        group_size=1,
        unpaid_before=0,
    ):
        delta = None if mode == "count" else delta
        terms = Terms(unit, adjacency, mode, epsilon, delta, order, seeded, group_size)
        path = tmp_path / f"{len(opened)}.sqlite"
        opened.append(Ledger.create(path, terms, unpaid_before=unpaid_before, durable=False))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@given(st.floats(min_value=1e-6, max_value=1e4))
def test_what_is_shown_is_never_less_than_what_is_true(epsilon):
    assert epsilon <= float(shown(epsilon)) < epsilon + 2e-4


def test_a_plan_states_what_is_charged_from_the_first_answer_on(ledger):
    book = ledger()
    plan = PoissonGaussian(0.1, 2.0, 100)
    book.plan("p", [plan])
    for round_ in (1, 2, 4):
        book.store(book.reserve(request(round_), [PoissonGaussian(0.1, 2.0, 10)]), b"labels")
    told = statement_of(book, "site-1")
    exact = epsilon_of([plan], 1e-5)
    assert exact <= told.epsilon < exact + 1e-4
    assert (told.noise_multiplier, told.sample_rate, told.steps) == (2.0, 0.1, 100)
    assert (told.delta, told.budget, told.rounds, told.runs) == (1e-5, 3.0, (1, 2, 4), ("ab",))
    assert told.sentence() == (
        f"(eps={shown(exact)}, delta=1e-05), record, zero-out, rounds 1-2, 4, dp-sgd under plan, {told.accountant}, "
        f"Poisson q=0.1 s=2 T=100, OS entropy, ledger {told.ledger_seq}:{told.ledger_head[:8]}"
    )
    assert (told.ledger_seq, told.ledger_head) == (book.head().seq, book.head().digest.hex())


def test_a_filter_states_its_order_and_the_whole_budget(ledger):
    book = ledger("filter", order=8)
    book.store(book.reserve(request(1, "pate"), [Gaussian(50.0, 30)]), b"labels")
    told = statement_of(book, "site-1")
    # 4.7: B at epsilon 3 and order 8 is 1.7859
    assert told.composition == "filter(alpha=8, B=1.7859)"
    assert told.epsilon == 3.0
    assert "30 Gaussian s=50" in told.sentence()
    assert (told.sample_rate, told.steps, told.noise_multiplier) == (None, None, 50.0)


def test_seeded_noise_is_stamped_before_anything_else(ledger):
    told = statement_of(ledger(seeded=True), "site-1")
    assert told.sentence().startswith("SIMULATION, NOT PRIVATE: (eps=0, delta=1e-05), record, zero-out, no round yet")
    assert (told.seeded, told.secure_rng) == (True, False)


def test_labels_by_randomised_response_name_their_neighbours(ledger):
    book = ledger(epsilon=20.0, adjacency="replace_one")
    book.plan("p", [RandomizedResponse(0.5, 10, 20)])
    told = statement_of(book, "site-1")
    assert "replace-one" in told.sentence()
    assert "20 labels e0=0.5 k=10" in told.sentence()
    # Its law is replace-one's, which the library calls by another name.
    assert "PLD, REPLACE_ONE, interval" in told.accountant
    assert "REPLACE_SPECIAL" not in told.sentence()
    both = accountant([Gaussian(1.0, 1), RandomizedResponse(0.5, 10, 20)])
    assert "PLD, REPLACE_ONE and REPLACE_SPECIAL, interval" in both


def test_a_ledger_that_only_counts_has_no_epsilon_to_state(ledger):
    with pytest.raises(ValueError, match="accounts for none"):
        statement_of(ledger("count", epsilon=None), "site-1")


def test_all_that_a_report_needs_is_in_the_plain_form(ledger):
    plain = statement_of(ledger(), "site-1").plain()
    needed = {"mechanism", "unit", "adjacency", "epsilon", "delta", "accountant", "composition", "noise_multiplier"}
    needed |= {"sample_rate", "steps", "ledger_head", "secure_rng", "seeded", "statement"}
    assert needed | {"tuning", "unpaid", "caveats", "not_covered", "noise", "covers"} <= set(plain)
    assert plain["statement"].startswith("(eps=0, delta=1e-05), record, zero-out")


@given(st.floats(min_value=1e-12, max_value=0.999))
def test_a_delta_that_is_shown_is_never_less_than_what_is_true(delta):
    assert delta <= float(shown_delta(delta)) <= delta * 1.0011


def test_a_statement_never_shows_a_smaller_delta_than_its_own(ledger):
    assert "delta=1.235e-06)" in statement_of(ledger(delta=1.2341e-6), "site-1").sentence()


# --- what it does not cover --------------------------------------------------------------------------------------
ALWAYS = ("records that another site holds", "side channels", "could read its file", "put back to an earlier day")


@pytest.mark.parametrize(
    ("terms", "mechanism", "more", "less"),
    [
        ({}, "dp-sgd", ("several rows of one person", "labels", "floating-point"), ("more than",)),
        ({"group_size": 4}, "dp-sgd", ("more than 4 rows of one person", "labels"), ("several rows",)),
        ({"unit": "client"}, "client-sum", ("floating-point",), ("rows of one person", "distribution of labels")),
        ({"unit": "client"}, "client-sum-distributed", (), ("floating-point",)),
        ({"adjacency": "replace_one"}, "k-rr", ("several rows of one person",), ("floating-point",)),
    ],
)
def test_every_statement_says_what_its_unit_and_its_noise_leave_open(ledger, terms, mechanism, more, less):
    book = ledger(**terms)
    book.plan("p", [Gaussian(50.0, 1)])
    book.reserve(request(1, mechanism, parameters=SPLIT), [Gaussian(50.0, 1)])
    told = "; ".join(statement_of(book, "site-1").not_covered)
    assert [part for part in (*ALWAYS, *more) if part not in told] == []
    assert [part for part in less if part in told] == []


def test_how_settings_were_chosen_is_unpaid_unless_somebody_says_otherwise(ledger):
    told = statement_of(ledger(), "site-1")
    assert told.tuning == "unpaid"
    assert "how these settings were chosen" in "; ".join(told.not_covered)
    for tuning in ("public", "paid"):
        said = statement_of(ledger(), "site-1", tuning)
        assert said.tuning == tuning
        assert "chosen" not in "; ".join(said.not_covered)


def test_answers_before_the_first_paid_one_are_said_first(ledger):
    told = statement_of(ledger(unpaid_before=3), "site-1")
    assert told.unpaid == 3
    assert told.sentence().startswith("INCOMPLETE, 3 answers were given before without a promise: (eps=0, ")
    assert told.not_covered[0] == "3 answers given before the first one that was paid for"
    assert statement_of(ledger(), "site-1").unpaid == 0


# --- what it rests on --------------------------------------------------------------------------------------------
def split(colluding=0.25, least=30, clients=40):
    return canonical(asdict(DistributedClientSum(2.0, 5.0, clients, least, colluding, classes=10)))


SPLIT = split()


@pytest.mark.parametrize(
    ("mechanism", "caveat"),
    [
        ("client-sum", "holds against everybody but the coordinator, which sees all votes"),
        (
            "client-sum-distributed",
            # the noise is split among ceil(.75 * 30) = 23 honest ones
            "holds if the coordinator follows the protocol, at least 30 of 40 sites add noise and at most 7 of these "
            "collude",
        ),
    ],
)
def test_a_promise_that_rests_on_others_says_so_in_its_sentence(ledger, mechanism, caveat):
    book = ledger(unit="client")
    book.plan("p", [Gaussian(50.0, 2)])
    for round_ in (1, 2):
        book.store(book.reserve(request(round_, mechanism, parameters=SPLIT), [Gaussian(50.0, 1)]), b"sum")
    told = statement_of(book, "coordinator")
    assert told.caveats == (caveat,)
    assert f"client, zero-out, {caveat}, rounds 1-2" in told.sentence()


@pytest.mark.parametrize(
    ("colluding", "said"),
    [
        (0.5, "at least 6 of 9 sites add noise and at most 3 of these collude"),
        (0.07, "at least 6 of 9 sites add noise and none of these collude"),  # ceil(5.58) = 6
        (0.0, "at least 6 of 9 sites add noise and none of these collude"),
    ],
)
def test_no_more_sites_may_collude_than_the_noise_was_split_for(colluding, said):
    (told,) = caveats_of("client-sum-distributed", json.loads(split(colluding, 6, 9)))
    assert told.endswith(said)


def test_the_noise_is_called_by_its_arithmetic():
    assert noise_of(["client-sum-distributed"]).startswith("discrete Gaussian integers")
    assert noise_of(["k-rr"]).startswith("discrete")
    for name in set(MECHANISMS) - {"client-sum-distributed", "k-rr"}:
        assert noise_of([name]) == "float, not exact-discrete"
    assert noise_of(["dp-sgd", "k-rr"]).count(";") == 1


# --- several clients ---------------------------------------------------------------------------------------------
def test_what_covers_all_clients_is_the_largest_epsilon_at_the_largest_delta(ledger):
    """The client that pays most promised a smaller delta than a smaller site, for which its pair would be too good."""
    books = [ledger(delta=5e-6), ledger(delta=1e-5, epsilon=2.0, seeded=True)]
    each = []
    for number, (book, noise) in enumerate(zip(books, (1.8, 2.5), strict=True)):
        book.plan("p", [PoissonGaussian(0.1, noise, 100)])
        book.store(book.reserve(request(1 + number), [PoissonGaussian(0.1, noise, 10)]), b"labels")
        each.append(statement_of(book, f"site-{number}"))
    assert each[0].epsilon > each[1].epsilon
    told = covering(each)
    assert (told.epsilon, told.delta, told.budget) == (each[0].epsilon, 1e-5, 3.0)
    assert (told.client, told.covers, told.rounds) == ("site-0", ("site-0", "site-1"), (1, 2))
    assert (told.ledger_head, told.events) == (each[0].ledger_head, each[0].events)
    assert (told.seeded, told.secure_rng) == (True, False)
    assert told.sentence() == (
        f"SIMULATION, NOT PRIVATE: (eps={shown(each[0].epsilon)}, delta=1e-05), record, zero-out, each of 2 clients, "
        f"rounds 1-2, dp-sgd under plan, {told.accountant}, dearest site-0: Poisson q=0.1 s=1.8 T=100, seeded noise, "
        f"ledger {told.ledger_seq}:{told.ledger_head[:8]}"
    )
    assert covering(each[:1]) == each[0]
