"""A site of the tiny study, and what tests do to it and read from it."""

import numpy as np
import pytest

from client.config import PrivacySection, load_site, write_site
from strategies.believing import believe_symbols, decode_symbols
from strategies.messages import Refusal
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_answer, encode_plan


@pytest.fixture
def site_file(make_sites):
    return make_sites(1)["site-0"]


def _votes(answer, rows, spec="float32"):
    """What a whole answer says of `rows`."""
    raw = decode_answer(answer)
    assert raw.base == 0
    return believe_symbols(rows, decode_symbols(spec, raw.payload, len(rows), 3), spec, 3).log_probs


@pytest.fixture
def votes():
    """A function: what a whole answer says of rows."""
    return _votes


def _change(site_file, policy=None, training=None, **changed):
    """Write the site's file anew with other settings."""
    config = load_site(site_file)
    sections = {"policy": policy, "training": training}
    for name, told in sections.items():
        if told:
            changed[name] = getattr(config, name).model_copy(update=told)
    write_site(site_file, config.model_copy(update=changed))


@pytest.fixture
def change():
    """A function that writes a site's file anew with other settings."""
    return _change


@pytest.fixture
def promise(site_file, change):
    """A function that gives the site a [privacy], seeded unless told otherwise, for three answers."""

    def write(**told):
        privacy = PrivacySection(**{"epsilon": 3.0, "rounds": 3, "seeded": True, **told})
        change(site_file, privacy=privacy)

    return write


def _forget(site_file):
    """The site loses its disk."""
    (site_file.parent / "state" / "state.safetensors").unlink()


@pytest.fixture
def forget():
    """A function: a site loses its disk."""
    return _forget


def _start_anew(site_file):
    """The site, its ledger and what says so beside its rows are gone."""
    for path in ("state/state.safetensors", "ledger.sqlite", "private.safetensors.ledger"):
        (site_file.parent / path).unlink()


@pytest.fixture
def start_anew():
    """A function: a site of which nothing but its file and its rows is left."""
    return _start_anew


def _code_of(node, plan):
    answer = decode_answer(node.answer(encode_plan(plan)))
    assert isinstance(answer, Refusal)
    assert answer.client == "site-0"
    return answer.code


@pytest.fixture
def code_of():
    """A function: the code of a node's refusal."""
    return _code_of


def _spied(node):
    """The phases that a node's learner goes through, as (name, epochs), from now on."""
    phases = []

    def watch(learner):
        for name in ("fit_public", "fit", "distil"):
            original = getattr(type(learner), name)

            def spy(*args, _name=name, _original=original, _learner=learner, **kwargs):
                phases.append((_name, args[-2]))
                return _original(_learner, *args, **kwargs)

            setattr(learner, name, spy)
        return learner

    fresh = node.fresh
    node.fresh = lambda: watch(fresh())
    return phases


@pytest.fixture
def spied():
    """A function: the phases that a node's learner goes through from then on."""
    return _spied


def _teacher(rows, seed=0):
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), 3)))


def _plans(site_file, make_plan, rounds):
    """Plans of successive rounds, each with a teacher on the rows of the round before."""
    rows = [np.arange(r % 3, 60, 3) for r in range(rounds + 1)]
    return [
        make_plan(site_file, round=r, ask_rows=rows[r], teachers=(_teacher(rows[r - 1], r),) if r > 1 else ())
        for r in range(1, rounds + 1)
    ]


@pytest.fixture
def plans():
    """A function: plans of successive rounds."""
    return _plans
