"""What the server refuses: one client's bad answer is that client's failure, and too few good ones the round's."""

from dataclasses import replace

import numpy as np
import pytest

from privacy.secure_sum import client, server
from privacy.secure_sum.messages import ADVERT, NO_VIEW, OPENED, seal
from privacy.secure_sum.roster import Advert
from privacy.secure_sum.session import Session
from privacy.secure_sum.sheet import Sheet
from tests.privacy.secure_sum.driving import (
    ABOUT,
    FORM,
    NONCE,
    OF,
    RUN,
    STEPS,
    Play,
    body_of,
    names,
    plain_sum,
    refused,
    sheet,
    sites,
)


def played():
    """A session up to the masked sum, and what each client said in every stage."""
    play = Play(OF, sites(5))
    summing = play.masked(play.shared(play.keyed()), FORM, STEPS)
    return play, summing


def unmasked(play, name, request):
    return client.unmask(play.sites[name], play.states[name], request)


def test_a_client_that_sends_bad_keys_is_left_out_and_the_sum_goes_on():
    play = Play(OF, sites(5))
    play.keyed()
    honest = play.traffic[0]
    mine, theirs = (Advert.decoded(body_of(honest[name])) for name in ("site-03", "site-01"))

    def sent(advert):
        return server.keyed(OF, {**honest, "site-03": seal(ADVERT, OF.digest, 3, NO_VIEW, advert.encoded())})

    low = sent(replace(mine, mask_key=bytes(32)))
    assert (low.asked, low.refused["site-03"].reason) == (("site-00", "site-01", "site-02", "site-04"), "key")
    twice = sent(replace(mine, channel_key=mine.mask_key))
    assert list(twice.refused) == ["site-03"]
    copied = sent(replace(mine, mask_key=theirs.mask_key))
    assert (copied.asked, sorted(copied.refused)) == (("site-00", "site-02", "site-04"), ["site-01", "site-03"])


def test_a_message_that_one_client_sends_as_another_is_refused():
    play, _ = played()
    joined, shared, masked = play.traffic
    assert server.keyed(OF, {**joined, "site-01": joined["site-02"]}).refused["site-01"].reason == "wrong_party"
    keyed = server.keyed(OF, joined)
    assert server.shared(keyed, {**shared, "site-01": shared["site-02"]}).refused["site-01"].reason == "wrong_party"
    with refused("wrong_party"):
        server.added(server.summing(server.shared(keyed, shared), FORM), "site-01", masked["site-02"])


def test_somebody_who_was_not_asked_is_not_heard():
    play, summing = played()
    joined = play.traffic[0]
    assert server.keyed(OF, {**joined, "stranger": b""}).refused["stranger"].reason == "not_invited"
    with refused("not_invited"):
        server.added(summing, "stranger", b"")
    silent = Play(OF, sites(5), {2: ["site-04"]})
    shared = silent.shared(silent.keyed())
    with refused("not_invited"):
        server.added(server.summing(shared, FORM), "site-04", b"")


def test_a_second_input_of_one_client_is_refused_and_the_sum_stays():
    play, summing = played()
    with refused("replayed"):
        server.added(summing, "site-00", play.traffic[2]["site-00"])
    np.testing.assert_array_equal(play.opened(summing).total.steps, plain_sum(STEPS, OF.clients))


def test_a_refused_answer_costs_only_its_client():
    play, summing = played()
    request = server.opening(summing)
    answers = play.stage(5, OF.clients[:4], lambda name: unmasked(play, name, request))
    result = server.total(summing, {**answers, "site-04": b"noise"})
    assert {name: error.reason for name, error in result.refused.items()} == {"site-04": "foreign"}
    np.testing.assert_array_equal(result.total.steps, plain_sum(STEPS, OF.clients))


@pytest.mark.parametrize("place", [0, 4])
def test_shares_that_do_not_combine_to_what_was_announced_fail_the_sum(place):
    """site-00 changes its share of a survivor's self mask (0), or of the mask key of one that is gone (4)."""
    play = Play(OF, sites(5), {3: ["site-04"]})
    summing = play.masked(play.shared(play.keyed()), FORM, STEPS)
    request = server.opening(summing)
    answers = play.stage(5, OF.clients[:3], lambda name: unmasked(play, name, request))
    told = bytearray(body_of(answers["site-00"]))
    told[33 * place + 32] ^= 1
    lying = seal(OPENED, OF.digest, 0, summing.view, bytes(told))
    with refused("shares"):
        server.total(summing, {**answers, "site-00": lying})


def test_a_share_above_the_prime_is_its_clients_failure():
    play, summing = played()
    request = server.opening(summing)
    answers = play.stage(5, OF.clients, lambda name: unmasked(play, name, request))
    large = seal(OPENED, OF.digest, 2, summing.view, b"\xff" * 165)
    result = server.total(summing, {**answers, "site-02": large})
    assert result.refused["site-02"].reason == "malformed"
    np.testing.assert_array_equal(result.total.steps, plain_sum(STEPS, OF.clients))


def test_every_stage_fails_with_a_sentence_below_the_threshold():
    play, summing = played()
    joined, shared, masked = ({name: stage[name] for name in OF.clients[:2]} for stage in play.traffic)
    sentence = "2 of 5 clients {} and 3 are needed: the sum fails and no input is opened"
    with refused("too_few") as told:
        server.keyed(OF, joined)
    assert sentence.format("sent keys") in str(told.value)
    with refused("too_few") as told:
        server.shared(server.keyed(OF, play.traffic[0]), shared)
    assert sentence.format("shared their keys") in str(told.value)
    few = server.summing(server.shared(server.keyed(OF, play.traffic[0]), play.traffic[1]), FORM)
    for name, answer in masked.items():
        few = server.added(few, name, answer)
    for step in (server.opening, server.survivors_list, lambda state: server.total(state, {})):
        with refused("too_few") as told:
            step(few)
        assert sentence.format("sent an input") in str(told.value)
    with refused("too_few") as told:
        server.signed_by(summing, {})
    assert "0 of 5 clients signed the list of survivors" in str(told.value)
    with refused("too_few") as told:
        server.total(summing, {})
    assert "0 of 5 clients opened the sum" in str(told.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run": "AB" * 16}, "run='ABABABABABABABABABABABABABABABAB' must be 32 hex digits"),
        ({"nonce": "ab"}, "nonce='ab' must be 32 hex digits"),
        ({"round": -1}, r"round=-1 must be in \[0, 2\^32\)"),
        ({"round": 2**32}, "round=4294967296 must be in"),
        ({"clients": names(2), "threshold": 2}, "2 clients: 3 to 10000 can be summed"),
        ({"clients": ("a", "b", "c d")}, "a client's name has 1 to 64 letters"),
        ({"clients": ("a", "a", "b")}, "clients must be in strictly ascending order"),
        ({"clients": ("b", "a", "c")}, "clients must be in strictly ascending order"),
        ({"clients": names(4), "threshold": 2}, r"threshold=2 must be in \(2, 4\]"),
        ({"threshold": 1}, r"threshold=1 must be in \(1.5, 3\]"),
        ({"threshold": 4}, r"threshold=4 must be in \(1.5, 3\]"),
    ],
)
def test_a_session_that_cannot_be_is_refused(fields, message):
    given = {"run": RUN, "round": 1, "nonce": NONCE, "clients": names(3), "threshold": 2, **fields}
    with pytest.raises(ValueError, match=message):
        Session(**given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "rows=0 must be in"),
        ({"columns": 2**31}, "columns=2147483648 must be in"),
        ({"about": "xy"}, "about='xy' must be 64 hex digits"),
        ({"step": 0.1}, "step=0.1 must be a power of two"),
        ({"step": 0.0}, "step=0.0 must be a power of two"),
        ({"step": float("inf")}, "step=inf must be a power of two"),
        ({"step": -0.5}, "step=-0.5 must be a power of two"),
        ({"low": 1.0}, "low=1.0 must be below high=1.0"),
        ({"high": float("nan")}, "low=0.0 must be below high=nan"),
        ({"low": float("-inf")}, "low=-inf must be below high=1.0"),
        ({"high": 0.3}, "high=0.3 must be a multiple of step=0.25"),
        ({"high": 2.0**40}, "high=1099511627776.0 must be a multiple of step=0.25, at most 2147483647 steps"),
        ({"headroom": -1}, "headroom=-1 must be in"),
    ],
)
def test_a_sheet_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Sheet(**{"rows": 2, "columns": 2, "about": ABOUT, "step": 0.25, **fields})


def test_sums_that_no_float64_holds_are_refused():
    form = sheet(step=2.0**-30, headroom=2**52)
    with pytest.raises(ValueError, match="sums of 9 clients need 54 bits and 53 are exact"):
        form.bits(9)


def test_votes_off_the_sheet_are_refused():
    form = sheet(2, 2, step=0.25)
    for votes in ([[0.0, 1.25], [0.0, 0.0]], [[0.0, -0.25], [0.0, 0.0]], [[np.nan, 0.0], [0.0, 0.0]]):
        with pytest.raises(ValueError, match=r"a vote is not in \[0.0, 1.0\]: clip before the sum"):
            form.quantised(np.array(votes))
    with pytest.raises(ValueError, match=r"votes are \[2, 3\] on \[2\] rows; \[2, 2\] asked"):
        form.quantised(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"votes are \[2, 2\] on \[3\] rows"):
        form.quantised(np.zeros((2, 2)), np.ones(3, bool))
    with pytest.raises(ValueError, match="a sheet without counts takes a vote on every row"):
        sheet(2, 2, counted=False).quantised(np.zeros((2, 2)), np.array([True, False]))


def test_inputs_off_the_sheet_are_refused_unless_noise_may_be_in_them():
    form = sheet(1, 2, step=0.25)
    for steps in ([[5, 0, 1]], [[-1, 0, 1]], [[0, 0, 2]], [[0, 0, -1]]):
        with pytest.raises(ValueError, match=r"an input outside \[0, 4\] steps, or a count"):
            form.ring(np.array(steps), 5)
        sheet(1, 2, step=0.25, headroom=1).ring(np.array(steps), 5)
    for wrong in (np.zeros((1, 2), np.int64), np.zeros((1, 3), np.float64)):
        with pytest.raises(ValueError, match=r"int64\[1, 3\] is asked"):
            form.ring(wrong, 5)


def test_rounding_moves_no_entry_by_more_than_half_a_step():
    form, votes = sheet(50, 40, counted=False, step=2.0**-6), np.random.default_rng(1).random((50, 40))
    moved = form.quantised(votes) * form.step - votes
    assert np.abs(moved).max() <= 2.0**-7
    assert np.linalg.norm(moved) <= 2.0**-6 * np.sqrt(2000) / 2
    # Halves go to the even step: 1/8 is half of 1/4.
    assert sheet(1, 2, counted=False, step=0.25).quantised(np.array([[0.125, 0.375]])).tolist() == [[0, 2]]
