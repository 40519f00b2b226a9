"""With a promise every phase on private rows draws masks and noise that no other answer drew."""

from client.node import Node
from distillation.learner import TorchLearner
from strategies.messages import Refusal
from strategies.wire import decode_answer, encode_plan


def answered(blob):
    return not isinstance(decode_answer(blob), Refusal)


def drawn(monkeypatch):
    """The seeds of all simulated noise that a model trains with, in order, from now on."""
    seeds, original = [], TorchLearner._fit_privately

    def spy(learner, private, labels, dp, epochs, rng):
        seeds.append(rng.initial_seed())
        return original(learner, private, labels, dp, epochs, rng)

    monkeypatch.setattr(TorchLearner, "_fit_privately", spy)
    return seeds


def test_no_two_answers_that_were_paid_for_share_masks_or_noise(site_file, make_plan, change, promise, monkeypatch):
    promise(rounds=6)
    change(site_file, training={"restart": True, "warmup_epochs": 2, "local_epochs": 0, "distil_epochs": 0})
    seeds = drawn(monkeypatch)
    plans = [make_plan(site_file, round=round_, run=run * 16) for run in ("ab", "cd") for round_ in (1, 2)]
    payloads = [decode_answer(Node.open(site_file).answer(encode_plan(plan))).payload for plan in plans]
    assert len(set(payloads)) == len(plans)
    assert len(seeds) == len(set(seeds)) == len(plans)


def test_warm_up_and_rounds_of_two_runs_draw_from_streams_of_their_own(
    site_file, make_plan, change, promise, monkeypatch
):
    promise(rounds=6)
    change(site_file, training={"warmup_epochs": 1})
    seeds = drawn(monkeypatch)
    for run in ("ab", "cd"):
        for round_ in (1, 2):
            assert answered(Node.open(site_file).answer(encode_plan(make_plan(site_file, run=run * 16, round=round_))))
    assert len(seeds) == len(set(seeds)) == 2 * (1 + 2)
