"""One secure sum from the first key to the total, in memory, with clients that fall silent where a test wants it."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from privacy.noise import SeededEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.client_state import ClientState
from privacy.secure_sum.errors import REASONS, SecureSumError
from privacy.secure_sum.keys import identity_key
from privacy.secure_sum.messages import EVERYBODY, OPEN, invitation, invited, members_field, seal
from privacy.secure_sum.session import Session, Site
from privacy.secure_sum.sheet import Sheet

RUN, NONCE, ABOUT = "ab" * 16, "cd" * 16, "ef" * 32


def names(count):
    return tuple(f"site-{index:02}" for index in range(count))


def session(count=4, threshold=3, round_=1, nonce=NONCE):
    return Session(RUN, round_, nonce, names(count), threshold)


def sheet(rows=3, columns=2, **fields):
    return Sheet(rows, columns, ABOUT, **fields)


def identities(count):
    """Private identity keys by name, and the registry of the public ones."""
    private = {name: SeededEntropy(0, "identity", name).bytes(32) for name in names(count)}
    return private, {name: identity_key(key) for name, key in private.items()}


def sites(count, *, registered=False, agreement=False):
    if not registered:
        return {name: Site(name) for name in names(count)}
    private, registry = identities(count)
    return {name: Site(name, registry=registry, identity=private[name], agreement=agreement) for name in names(count)}


def inputs(of, form, seed=0):
    """Random inputs of every client, in steps; some rows without a vote where votes are counted."""
    rng = np.random.default_rng(seed)
    told = {}
    for name in of.clients:
        votes = rng.uniform(form.low, form.high, (form.rows, form.columns))
        voted = rng.random(form.rows) < 0.7 if form.counted else np.ones(form.rows, bool)
        told[name] = form.quantised(votes, voted)
    return told


@dataclass
class Play:
    """A session as it goes; every state is written and read between two steps.

    Attributes:
        silent: by stage (1 to 5), who does not answer in it, nor later.
    """

    of: Session
    sites: dict
    silent: dict = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        self.states, self.gone, self.traffic = {}, set(), []
        self.entropy = {name: SeededEntropy(self.seed, name) for name in self.of.clients}

    def stage(self, stage, asked, step):
        """The answers of those who still answer; what they went through stays in their states."""
        self.gone |= set(self.silent.get(stage, ()))
        answers = {}
        for name in asked:
            if name in self.gone:
                continue
            state, answers[name] = step(name)
            self.states[name] = ClientState.from_bytes(state.to_bytes())
        self.traffic.append(answers)
        return answers

    def keyed(self):
        of = invited(invitation(self.of))
        joined = self.stage(1, of.clients, lambda name: client.join(self.sites[name], of, self.entropy[name]))
        return server.keyed(of, joined)

    def shared(self, keyed):
        return server.shared(
            keyed,
            self.stage(
                2,
                keyed.asked,
                lambda name: client.share(self.sites[name], self.states[name], keyed.message, self.entropy[name]),
            ),
        )

    def masked(self, shared, form, steps):
        """The answers of stage 3, and the server's sum of them."""
        answers = self.stage(
            3,
            tuple(shared.messages),
            lambda name: client.mask(self.states[name], shared.messages[name], form, steps[name]),
        )
        summing = server.summing(shared, form)
        for name, answer in answers.items():
            summing = server.added(summing, name, answer)
        return summing

    def agreement(self, summing):
        listed = server.survivors_list(summing)
        return server.signed_by(
            summing,
            self.stage(4, summing.asked, lambda name: client.agree(self.sites[name], self.states[name], listed)),
        )

    def opened(self, summing, agreement=None):
        request = server.opening(summing, agreement)
        answers = self.stage(5, summing.asked, lambda name: client.unmask(self.sites[name], self.states[name], request))
        return server.total(summing, answers)

    def whole(self, form, steps):
        """From the invitation to what was opened."""
        summing = self.masked(self.shared(self.keyed()), form, steps)
        agreed = self.agreement(summing) if any(site.agreement for site in self.sites.values()) else None
        return self.opened(summing, agreed)


def plain_sum(steps, of):
    """What should come out: whole numbers, added one by one."""
    total = np.zeros_like(next(iter(steps.values())))
    for name in of:
        total = total + steps[name]
    return total


def body_of(blob):
    """A message without its envelope: 44 bytes before, a checksum behind."""
    return blob[44:-4]


# A session of five that is met again and again, and the client that things happen to.
OF, FORM, ME = session(5, 3), sheet(), "site-00"
STEPS = inputs(OF, FORM)


class Met:
    """site-00 before each stage, and what an honest server sends it then."""

    def __init__(self, *, registered=False, agreement=False):
        play = Play(OF, sites(5, registered=registered, agreement=agreement))
        self.site, self.play = play.sites[ME], play
        self.keyed = play.keyed()
        self.joined = play.states[ME]
        self.shared_reply = play.shared(self.keyed)
        self.shared = play.states[ME]
        self.summing = play.masked(self.shared_reply, FORM, STEPS)
        self.masked = play.states[ME]
        self.keys, self.parcel = self.keyed.message, self.shared_reply.messages[ME]

    def opening(self, survivors, signatures=b"", view=None):
        body = members_field(survivors, 5) + signatures
        return seal(OPEN, OF.digest, EVERYBODY, self.masked.view if view is None else view, body)

    def share(self, keys, state=None):
        return client.share(self.site, state or self.joined, keys, SeededEntropy(0, "again"))

    def mask(self, parcel, state=None):
        return client.mask(state or self.shared, parcel, FORM, STEPS[ME])

    def unmask(self, request, state=None):
        return client.unmask(self.site, state or self.masked, request)


def refused(reason):
    assert reason in REASONS
    return pytest.raises(SecureSumError, match=rf"^{reason}: ")
