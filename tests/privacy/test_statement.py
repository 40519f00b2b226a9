"""An epsilon's sentence is read off the ledger, has all its parts, and never rounds in its own favour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import epsilon_of
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse
from privacy.ledger import Ledger, Request, Terms
from privacy.statement import shown, statement_of


def request(round_, mechanism="dp-sgd", run="ab"):
    return Request(run, round_, 0, "site-1", mechanism, "{}", f"{round_:064x}")


@pytest.fixture
def ledger(tmp_path):
    """A function: a new ledger of these terms, closed at the end."""
    opened = []

    def make(mode="plan", epsilon=3.0, order=None, seeded=False, adjacency="zero_out"):
        terms = Terms("record", adjacency, mode, epsilon, None if mode == "count" else 1e-5, order, seeded)
        opened.append(Ledger.create(tmp_path / f"{len(opened)}.sqlite", terms, durable=False))
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
    sentence = statement_of(book, "site-1").sentence()
    assert "replace-one" in sentence
    assert "20 labels e0=0.5 k=10" in sentence


def test_a_ledger_that_only_counts_has_no_epsilon_to_state(ledger):
    with pytest.raises(ValueError, match="accounts for none"):
        statement_of(ledger("count", epsilon=None), "site-1")


def test_all_that_a_report_needs_is_in_the_plain_form(ledger):
    plain = statement_of(ledger(), "site-1").plain()
    needed = {"mechanism", "unit", "adjacency", "epsilon", "delta", "accountant", "composition", "noise_multiplier"}
    assert needed | {"sample_rate", "steps", "ledger_head", "secure_rng", "seeded", "statement"} <= set(plain)
    assert plain["statement"].startswith("(eps=0, delta=1e-05), record, zero-out")
