"""A coordinator of one secure sum, message by message, and the peers of the one real site in it."""

import numpy as np

from client.node import Node
from client.sum_wire import Part, SumAnswer, SumRequest, sheet_of
from privacy.noise import OsEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.messages import invitation
from privacy.secure_sum.session import Session, Site
from strategies.envelope import REFUSAL, kind_of
from strategies.wire import decode_answer, encode_plan

OTHERS = ("other-1", "other-2")


class Sum:
    """A coordinator of one sum among the site and honest others whose inputs are zeros.

    Args:
        peers: the others as privacy.secure_sum.session.Site by name; those who are not in it have no registry.
    """

    def __init__(self, plan, nonce="1", others=OTHERS, threshold=2, sheet=None, peers=None):
        self.plan, self.blob, self.sheet = plan, encode_plan(plan), sheet or sheet_of(plan)
        self.session = Session(plan.run, plan.round, nonce * 32, tuple(sorted(("site-0", *others))), threshold)
        self.states = {}
        self.others = {name: (peers or {}).get(name, Site(name)) for name in others}

    def request(self, *parts):
        return SumRequest(self.plan.run, self.plan.round, parts).encode()

    def ask(self, site_file, message, plan=b""):
        """What a site in a process of its own says to one message; a refusal's code where it refuses."""
        told = Node.open(site_file).answer(self.request(Part(message, plan)))
        self.whole = told
        (part,) = SumAnswer.decode(told).parts
        return decode_answer(part).code if kind_of(part) == REFUSAL else part

    def others_take(self, step):
        """One step of every other one: its state goes in, and state and answer come out."""
        answers = {}
        for name, site in self.others.items():
            self.states[name], answers[name] = step(site, self.states.get(name))
        return answers

    def join(self, site_file):
        answer = self.ask(site_file, invitation(self.session))
        if isinstance(answer, str):
            return answer
        others = self.others_take(lambda site, _: client.join(site, self.session, OsEntropy()))
        self.keyed = server.keyed(self.session, {"site-0": answer, **others})
        return ""

    def share(self, site_file):
        message = self.keyed.message
        answer = self.ask(site_file, message)
        if isinstance(answer, str):
            return answer
        others = self.others_take(lambda site, state: client.share(site, state, message, OsEntropy()))
        self.shared = server.shared(self.keyed, {"site-0": answer, **others})
        self.adding = server.summing(self.shared, self.sheet)
        return ""

    def give(self, site_file):
        answer = self.ask(site_file, self.shared.messages["site-0"], self.blob)
        if isinstance(answer, str):
            return answer
        self.adding = server.added(self.adding, "site-0", answer)
        zeros, parcels = np.zeros(self.sheet.shape, np.int64), self.shared.messages
        masked = self.others_take(lambda site, state: client.mask(state, parcels[site.name], self.sheet, zeros))
        for name, answer in masked.items():
            self.adding = server.added(self.adding, name, answer)
        return ""

    def sign(self, site_file):
        listed = server.survivors_list(self.adding)
        answer = self.ask(site_file, listed)
        if isinstance(answer, str):
            return answer
        others = self.others_take(lambda site, state: client.agree(site, state, listed))
        self.signed = server.signed_by(self.adding, {"site-0": answer, **others})
        return ""

    def open(self, site_file):
        request = server.opening(self.adding, getattr(self, "signed", None))
        answer = self.ask(site_file, request)
        if isinstance(answer, str):
            return answer
        others = self.others_take(lambda site, state: client.unmask(site, state, request))
        return server.total(self.adding, {"site-0": answer, **others}).total.steps

    def begun(self, site_file):
        assert (self.join(site_file), self.share(site_file)) == ("", "")
        return self

    def run(self, site_file):
        """All stages: what is opened."""
        self.begun(site_file)
        assert self.give(site_file) == ""
        if self.adding.roster.is_signed:
            assert self.sign(site_file) == ""
        return self.open(site_file)
