"""What the server sees of an input is uniform noise, until t clients open the sum; and what a lying one can get."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from privacy.noise import SeededEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.keys import agreed, private_key
from privacy.secure_sum.masks import stream, unpacked
from privacy.secure_sum.messages import MASKED, opened
from privacy.secure_sum.roster import channel_key, pair_key, self_key
from privacy.secure_sum.session import Session, Site, honest_inputs
from privacy.secure_sum.shares import PRIME, weights
from tests.privacy.secure_sum.driving import NONCE, RUN, Play, names, session, sheet, sites

FORM = sheet(3000, 4, counted=False, step=2.0**-10)
BITS = FORM.bits(4)  # 4 * 1024 + 1 sums: 13
ALMOST_NEVER = 1e-4


def masked_words(answer, of, number=0):
    _, body = opened(answer, MASKED, of.digest, number)
    return unpacked(body, FORM.entries, BITS).astype(np.int64)


def steps_of(kind):
    """A whole input of zeros, of ones, or one that is half each."""
    full = {"zeros": 0, "ones": 1024}.get(kind)
    if full is not None:
        return np.full(FORM.shape, full)
    return np.where(np.arange(FORM.entries).reshape(FORM.shape) % 2, 1024, 0)


def looks_uniform(words):
    """p-values: of 64 equal ranges, of the low six bits, and of neighbours falling into the same of 16 ranges."""
    high, low = np.bincount(words >> (BITS - 6), minlength=64), np.bincount(words & 63, minlength=64)
    coarse = words >> (BITS - 4)
    pairs = np.bincount(16 * coarse[::2] + coarse[1::2], minlength=256)
    return [chisquare(counts).pvalue for counts in (high, low, pairs)]


@pytest.mark.parametrize("kind", ["zeros", "ones", "halves"])
def test_one_masked_input_is_uniform_and_independent_of_the_input(kind):
    of = session()
    play = Play(of, sites(4), seed=11)
    play.masked(play.shared(play.keyed()), FORM, dict.fromkeys(of.clients, steps_of(kind)))
    for number, name in enumerate(of.clients):
        words = masked_words(play.traffic[-1][name], of, number)
        assert min(looks_uniform(words)) > ALMOST_NEVER
        if kind == "halves":
            table = [np.bincount(words[parity::2] >> (BITS - 4), minlength=16) for parity in (0, 1)]
            assert chi2_contingency(table).pvalue > ALMOST_NEVER


def test_the_test_for_uniformity_sees_an_input_that_is_not_masked_enough():
    words = stream(bytes(32), FORM.entries, 32).astype(np.int64)
    assert min(looks_uniform(words % (2**BITS - 400))) < 1e-12


def test_masks_do_not_depend_on_the_input():
    """Equal secrets under two inputs: the answers differ by exactly the inputs' difference."""
    of, told = session(), []
    for kind in ("zeros", "halves"):
        play = Play(of, sites(4), seed=12)
        play.masked(play.shared(play.keyed()), FORM, dict.fromkeys(of.clients, steps_of(kind)))
        told.append(masked_words(play.traffic[-1]["site-00"], of))
    np.testing.assert_array_equal((told[1] - told[0]) % 2**BITS, steps_of("halves").ravel())


def test_any_single_mask_that_the_server_does_not_know_hides_the_input():
    """Of the self mask and three pair masks the server takes off all but one, in each of the four ways."""
    of = session()
    play = Play(of, sites(4), seed=13)
    keyed = play.keyed()
    secrets = play.states["site-00"].secrets
    view = play.masked(play.shared(keyed), FORM, dict.fromkeys(of.clients, steps_of("zeros"))).view
    private, adverts = private_key(secrets[:32]), keyed.roster.adverts
    pads = [stream(self_key(secrets[64:], view, 0), FORM.entries, BITS).astype(np.int64)]
    for other in (1, 2, 3):
        key = pair_key(agreed(private, adverts[other].mask_key), view, 0, other)
        pads.append(stream(key, FORM.entries, BITS).astype(np.int64))
    words = masked_words(play.traffic[-1]["site-00"], of)
    for kept in range(4):
        rest = (words - sum(pad for place, pad in enumerate(pads) if place != kept)) % 2**BITS
        assert min(looks_uniform(rest)) > ALMOST_NEVER
    assert not ((words - sum(pads)) % 2**BITS).any()  # all of them taken off: zeros again


def test_the_masked_sum_is_uniform_as_well_until_it_is_opened():
    of = session()
    play = Play(of, sites(4), seed=14)
    summing = play.masked(play.shared(play.keyed()), FORM, dict.fromkeys(of.clients, steps_of("zeros")))
    assert min(looks_uniform(summing.words.astype(np.int64) % 2**BITS)) > ALMOST_NEVER
    assert not play.opened(summing).total.steps.any()


def test_fewer_than_t_opened_shares_are_refused_and_combine_to_another_mask():
    of, form = session(), sheet()
    play = Play(of, sites(4), {5: ["site-02", "site-03"]})
    own = {}
    keyed = play.keyed()
    for number, name in enumerate(of.clients):
        own[number] = play.states[name].secrets[64:]
    summing = play.masked(play.shared(keyed), form, {name: np.zeros(form.shape, np.int64) for name in of.clients})
    with pytest.raises(SecureSumError, match="2 of 4 clients opened the sum and 3 are needed"):
        play.opened(summing)
    shares = [answer[-4 - 4 * 33 : -4][:33] for answer in play.traffic[-1].values()]  # of site-00's self mask
    values = [int.from_bytes(one, "big") for one in shares]
    told = sum(value * factor for value, factor in zip(values, weights([1, 2]), strict=True)) % PRIME
    assert told != int.from_bytes(own[0], "big")


def test_masks_cancel_only_between_clients_that_were_told_the_same():
    """The server tells one client another sheet: its masks stay on the sum, and the answers do not even fit."""
    of, form = session(), sheet()
    play = Play(of, sites(4))
    shared = play.shared(play.keyed())
    summing = server.summing(shared, form)
    state = play.states["site-00"]
    _, answer = client.mask(state, shared.messages["site-00"], sheet(high=2.0), np.zeros(form.shape, np.int64))
    with pytest.raises(SecureSumError, match="wrong_view"):
        server.added(summing, "site-00", answer)


def test_without_a_registry_a_server_that_hands_out_its_own_keys_learns_an_input():
    """The limit that `Site.registry` is there for: three of the four clients are the server itself."""
    of, form = session(), sheet()
    secret = {name: np.zeros(form.shape, np.int64) for name in of.clients}
    secret["site-00"] = form.quantised(np.full((3, 2), 0.5))
    play = Play(of, sites(4))
    np.testing.assert_array_equal(play.whole(form, secret).total.steps, secret["site-00"])

    registered = sites(4, registered=True)
    impostors = {name: Site(name) if name != "site-00" else registered[name] for name in of.clients}
    with pytest.raises(SecureSumError, match="identity: the keys of site-01 are not signed by its registered key"):
        Play(of, impostors).whole(form, secret)


def test_equal_entropy_in_two_sessions_shares_no_mask():
    told = []
    for nonce in (NONCE, "ce" * 16):
        of = session(nonce=nonce)
        play = Play(of, sites(4), seed=15)
        play.masked(play.shared(play.keyed()), FORM, dict.fromkeys(of.clients, steps_of("zeros")))
        told.append(masked_words(play.traffic[-1]["site-00"], of))
    assert min(looks_uniform((told[0] - told[1]) % 2**BITS)) > ALMOST_NEVER


def test_one_secret_gives_another_key_for_every_use():
    """Even if a self mask and what two clients agree on were the same 32 bytes."""
    secret, views = bytes(32), (b"\1" * 32, b"\2" * 32)
    own = [self_key(secret, view, number) for view in views for number in range(3)]
    pairs = [pair_key(secret, view, *pair) for view in views for pair in combinations(range(3), 2)]
    channels = [channel_key(secret, view, *pair) for view in views for pair in permutations(range(3), 2)]
    assert len({*own, *pairs, *channels}) == 6 + 6 + 12
    assert pair_key(secret, views[0], 2, 1) == pair_key(secret, views[0], 1, 2)


def views(me, clients, threshold):
    """Everything that a lying server can tell one honest client: (members, survivors)."""
    for size in range(threshold, len(clients) + 1):
        for members in combinations(clients, size):
            for left in range(threshold, size + 1):
                for survivors in combinations(members, left):
                    if me in survivors:
                        yield members, survivors


def opened_secrets(clients, threshold, colluding, told):
    """Whose self masks and whose mask keys t shares are given of, if each honest client was told `told`."""
    gone = [set(members) - set(survivors) for members, survivors in told.values()]
    everyone = range(clients)
    selves = {v for v in everyone if sum(v in survivors for _, survivors in told.values()) + colluding >= threshold}
    return selves, {v for v in everyone if sum(v in missing for missing in gone) + colluding >= threshold}


def fewest_learned(clients, threshold, colluding, *, agreement=False):
    """The smallest number of honest inputs in a sum that any lies open, by trying them all."""
    everyone, honest = tuple(range(clients)), tuple(range(clients - colluding))
    if agreement:  # all answer to one list, or not at all
        plans = [{me: one for me in honest if me in one[1]} for one in views(0, everyone, threshold)]
    else:
        lies = product(*(list(views(me, everyone, threshold)) for me in honest))
        plans = (dict(zip(honest, told, strict=True)) for told in lies)
    fewest = clients
    for told in plans:
        selves, keys = opened_secrets(clients, threshold, colluding, told)
        for start, (members, _) in told.items():
            # Whose pair masks with `start` are not known must be in the sum, and must have put on the same masks.
            needed = {start} | ({v for v in honest if v in members and v not in keys} if start not in keys else set())
            if needed <= selves and all(v in told and told[v][0] == members for v in needed):
                fewest = min(fewest, len(needed))
    return fewest


@pytest.mark.parametrize(
    ("clients", "threshold", "colluding"),
    [(3, 2, 0), (3, 3, 0), (3, 3, 1), (4, 3, 0), (4, 3, 1), (4, 4, 1), (5, 4, 0), (5, 4, 1)],
)
def test_no_lie_opens_a_sum_of_fewer_honest_inputs_than_promised(clients, threshold, colluding):
    promised = honest_inputs(clients, threshold, colluding, active=True)
    assert 1 <= promised <= fewest_learned(clients, threshold, colluding)
    agreed_on = honest_inputs(clients, threshold, colluding, active=True, agreement=True)
    assert fewest_learned(clients, threshold, colluding, agreement=True) == agreed_on == threshold - colluding


@pytest.mark.parametrize(("clients", "threshold", "colluding"), [(3, 2, 1), (4, 3, 2)])
def test_where_nothing_is_promised_a_lie_opens_a_single_input(clients, threshold, colluding):
    assert honest_inputs(clients, threshold, colluding, active=True) == 0
    assert fewest_learned(clients, threshold, colluding) == 1


def test_what_is_promised_by_hand():
    assert honest_inputs(10, 7) == 7  # every sum holds the inputs of 7
    assert honest_inputs(10, 7, 3) == 4
    assert honest_inputs(10, 6, 6) == 0  # they hold 6 shares of everything
    assert honest_inputs(10, 6, 2, active=True) == 0  # 2 * 6 = 10 + 2
    # Ten honest clients give away 3 mask keys' shares each, 7 open one: floor(30 / 7) = 4 of 7 are missing.
    assert honest_inputs(10, 7, active=True) == 3
    assert honest_inputs(10, 7, active=True, agreement=True) == 7
    assert honest_inputs(10, 8, 1, active=True) == 7 - 18 // 7
    for threshold, colluding in ((5, 0), (11, 0), (7, -1), (7, 11)):
        with pytest.raises(ValueError, match=r"must be in \(5, 10\], colluding in \[0, 10\]"):
            honest_inputs(10, threshold, colluding)


def test_clients_share_no_secret():
    of = Session(RUN, 1, NONCE, names(4), 3)
    first, second = (client.join(Site(name), of, SeededEntropy(16, name))[0].secrets for name in names(2))
    assert len({told[at : at + 32] for told in (first, second) for at in (0, 32, 64)}) == 6
