"""The policy allows exactly what it says, and nothing where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.policy import RELEASES, Policy, PolicyError, check
from strategies.messages import REFUSALS

PUBLIC, OTHER = "a1" * 32, "b2" * 32
POLICY = Policy((PUBLIC,), max_rows_per_round=100, max_answers=5)


def code(policy, proxy, rows, answered, releases=()):
    try:
        check(policy, proxy, rows, answered, releases)
    except PolicyError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("policy", "proxy", "rows", "answered", "expected"),
    [
        (POLICY, PUBLIC, 100, 4, None),
        (POLICY, PUBLIC, 101, 4, "too_many_rows"),
        (POLICY, PUBLIC, 100, 5, "too_many_answers"),
        (POLICY, OTHER, 1, 0, "proxy_not_allowed"),
        (None, PUBLIC, 1, 0, "no_policy"),
        (Policy((), 100, 5), PUBLIC, 1, 0, "proxy_not_allowed"),
    ],
)
def test_each_limit_holds_at_its_bound_and_has_its_code(policy, proxy, rows, answered, expected):
    assert code(policy, proxy, rows, answered) == expected


SUBSETS = st.sets(st.sampled_from(RELEASES)).map(tuple)


@given(SUBSETS, SUBSETS)
def test_nothing_beside_votes_leaves_that_the_owner_has_not_listed(listed, asked):
    policy = Policy((PUBLIC,), 100, 5, listed)
    assert code(policy, PUBLIC, 1, 0, asked) == (None if set(asked) <= set(listed) else "not_released")
    assert code(policy, PUBLIC, 1, 0) is None  # a vote on every asked row needs no line


def test_every_code_may_travel():
    for told in ("no_policy", "proxy_not_allowed", "too_many_rows", "too_many_answers", "not_released"):
        assert told in REFUSALS


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_what_a_stricter_policy_allows_a_looser_one_allows(rows, answered, max_rows, max_answers):
    strict = Policy((PUBLIC,), max_rows, max_answers)
    loose = Policy((PUBLIC, OTHER), max_rows + 1, max_answers + 1)
    if code(strict, PUBLIC, rows, answered) is None:
        assert code(loose, PUBLIC, rows, answered) is None
        assert rows <= max_rows
        assert answered < max_answers
