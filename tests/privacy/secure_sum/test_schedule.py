"""Sessions that overlap: two exchanges a round, or one with a teacher that comes a round later."""

import numpy as np
import pytest

from privacy.noise import SeededEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.client_state import ClientState
from privacy.secure_sum.messages import (
    INVITE,
    KEYS,
    OPEN,
    PARCEL,
    bundle,
    invitation,
    invited,
    kind_of,
    session_of,
    unbundled,
)
from privacy.secure_sum.session import Site
from tests.privacy.secure_sum.driving import inputs, names, plain_sum, session, sheet

ROUNDS, FORM = 4, sheet()
SESSIONS = {round_: session(5, 3, round_, f"{round_:032x}") for round_ in range(1, ROUNDS + 1)}
STEPS = {round_: inputs(SESSIONS[round_], FORM, round_) for round_ in SESSIONS}


class Agent:
    """A site that answers whatever comes in one exchange; between two of them it is bytes."""

    def __init__(self, name):
        self.site, self.kept = Site(name), {}

    def answer(self, blob):
        return bundle([self._one(part) for part in unbundled(blob)])

    def _one(self, part):
        key, kind, name = session_of(part), kind_of(part), self.site.name
        if kind == INVITE:
            of = invited(part)
            state, answer = client.join(self.site, of, SeededEntropy(of.round, name, "join"))
        else:
            before = ClientState.from_bytes(self.kept[key])
            round_ = before.open_session.round
            step = {
                KEYS: lambda: client.share(self.site, before, part, SeededEntropy(round_, name, "share")),
                PARCEL: lambda: client.mask(before, part, FORM, STEPS[round_][name]),
                OPEN: lambda: client.unmask(self.site, before, part),
            }[kind]
            state, answer = step()
        self.kept[key] = state.to_bytes()
        return answer


class Coordinator:
    """One session's four requests, each made of the answers to the one before."""

    def __init__(self, of):
        self.of, self.state, self.total = of, None, None

    def requests(self, stage):
        if stage == 0:
            return dict.fromkeys(self.of.clients, invitation(self.of))
        if stage == 1:
            return dict.fromkeys(self.state.asked, self.state.message)
        if stage == 2:
            return self.state.messages
        return dict.fromkeys(self.state.asked, server.opening(self.state))

    def hear(self, stage, answers):
        if stage == 0:
            self.state = server.keyed(self.of, answers)
        elif stage == 1:
            self.state = server.shared(self.state, answers)
        elif stage == 2:
            self.state = server.summing(self.state, FORM)
            for name, answer in answers.items():
                self.state = server.added(self.state, name, answer)
        else:
            self.total = server.total(self.state, answers).total


@pytest.mark.parametrize(("stride", "exchanges"), [(4, 16), (2, 10), (1, 7)])
def test_overlapping_sessions_take_fewer_exchanges_and_give_the_same_sums(stride, exchanges):
    """Round r's session takes the exchanges from stride * (r - 1) + 1 on, four in all."""
    agents = {name: Agent(name) for name in names(5)}
    coordinators = {round_: Coordinator(of) for round_, of in SESSIONS.items()}
    silent = {3: "site-01", 4: "site-02"}
    begins = {round_: stride * (round_ - 1) + 1 for round_ in SESSIONS}
    count = 0
    while any(one.total is None for one in coordinators.values()):
        count += 1
        stages = {round_: count - first for round_, first in begins.items() if 0 <= count - first < 4}
        parts = {name: [] for name in agents}
        for round_, stage in stages.items():
            for name, request in coordinators[round_].requests(stage).items():
                parts[name].append((round_, request))
        heard = {round_: {} for round_ in stages}
        for name, asked in parts.items():
            if asked and silent.get(count) != name:
                answers = unbundled(agents[name].answer(bundle([request for _, request in asked])))
                for (round_, _), answer in zip(asked, answers, strict=True):
                    heard[round_][name] = answer
        for round_, stage in stages.items():
            coordinators[round_].hear(stage, heard[round_])
    assert count == exchanges == stride * (ROUNDS - 1) + 4
    for round_, first in begins.items():
        # In the sum is who was heard in the session's first three exchanges.
        there = [name for name in names(5) if name not in {silent.get(first + stage) for stage in range(3)}]
        assert coordinators[round_].total.clients == tuple(there)
        np.testing.assert_array_equal(coordinators[round_].total.steps, plain_sum(STEPS[round_], there))


def test_bytes_that_are_none_of_ours_have_no_session():
    assert session_of(b"something else, of whatever length it may be, fifty") == b""
    assert session_of(invitation(SESSIONS[1])) == SESSIONS[1].digest[:16]
