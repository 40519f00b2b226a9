"""A site answers what its owner allows, keeps its model, and lets nothing but votes and codes leave."""

import dataclasses

import numpy as np
import pytest
import torch

from client.config import load_site, write_site
from client.node import Node
from client.state import StateStore
from distillation.learner import Diverged, TorchLearner
from strategies.messages import Refusal
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_answer, encode_plan


def teacher(rows, seed=0):
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), 3)))


def test_an_answer_is_the_models_vote_on_the_asked_rows(site_file, make_plan, votes):
    node, plan = Node.open(site_file), make_plan(site_file)
    answer = node.answer(encode_plan(plan))
    expected = node.learner.predict(plan.ask_rows).log_probs
    np.testing.assert_allclose(votes(answer, plan.ask_rows), np.maximum(expected, np.log(1e-7)), atol=1e-5)


def test_a_restarted_site_answers_as_if_it_had_never_stopped(site_file, make_plan, change, forget, plans):
    # A twin in memory, against one whose process ends after every round; adam, so that the optimiser matters.
    change(site_file, training={"optimizer": "adam"})
    all_plans = [encode_plan(plan) for plan in plans(site_file, make_plan, 4)]
    restarted = [Node.open(site_file).answer(blob) for blob in all_plans]
    forget(site_file)
    steady_node = Node.open(site_file)
    steady = [steady_node.answer(blob) for blob in all_plans]
    assert restarted == steady
    assert len(set(restarted)) == 4


def test_the_same_plan_gets_the_same_bytes_without_training_again(site_file, make_plan, monkeypatch):
    blob = encode_plan(make_plan(site_file))
    first = Node.open(site_file).answer(blob)
    again = Node.open(site_file)
    monkeypatch.setattr(again, "_train", lambda *_: pytest.fail("trained twice"))
    assert again.answer(blob) == first


def test_a_teacher_changes_the_vote(site_file, make_plan, votes, forget, plans):
    first, second = plans(site_file, make_plan, 2)
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    with_teacher = node.answer(encode_plan(second))
    forget(site_file)
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    without = node.answer(encode_plan(dataclasses.replace(second, teachers=())))
    assert np.abs(votes(with_teacher, second.ask_rows) - votes(without, second.ask_rows)).max() > 0.01


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"proxy_sha256": "00" * 32}, "proxy_not_allowed"),
        ({"classes_sha256": "00" * 32}, "wrong_classes"),
        ({"ask_rows": np.arange(41)}, "too_many_rows"),
        ({"ask_rows": np.array([59, 60])}, "unknown_rows"),
        ({"teachers": (teacher(np.array([60])),)}, "unknown_rows"),
        ({"classes": 4}, "wrong_classes"),
        ({"ask_rows": np.array([0, 3]), "subject": "classes"}, "unknown_rows"),
        ({"ask_rows": np.arange(3), "subject": "classes"}, "not_released"),
        ({"wants": ("scores",)}, "not_released"),
        ({"wants": ("counts",)}, "not_released"),
        ({"uplink": "top-k:3"}, "unreadable_plan"),
    ],
)
def test_what_the_site_does_not_allow_is_refused_before_its_rows_are_touched(
    site_file, make_plan, changed, code, monkeypatch, code_of
):
    for phase in ("fit", "fit_public", "distil"):
        monkeypatch.setattr(TorchLearner, phase, lambda *_: (_ for _ in ()).throw(AssertionError("touched")))
    assert code_of(Node.open(site_file), make_plan(site_file, **changed)) == code
    assert not (site_file.parent / "state").exists()


def test_without_a_policy_nothing_leaves(site_file, make_plan, code_of):
    write_site(site_file, load_site(site_file).model_copy(update={"policy": None}))
    assert code_of(Node.open(site_file), make_plan(site_file)) == "no_policy"


def test_another_proxy_set_is_refused_even_if_the_policy_lists_it(site_file, make_plan, change, code_of):
    change(site_file, policy={"proxy_sha256": ["00" * 32]})
    assert code_of(Node.open(site_file), make_plan(site_file, proxy_sha256="00" * 32)) == "proxy_not_allowed"


def test_old_rounds_and_second_plans_for_a_round_are_refused(site_file, make_plan, plans, code_of):
    first, second = plans(site_file, make_plan, 2)
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    node.answer(encode_plan(second))
    assert code_of(node, first) == "stale_round"
    assert code_of(node, dataclasses.replace(second, ask_rows=np.array([1, 2]))) == "conflicting_plan"


def test_new_runs_do_not_reset_the_number_of_answers(site_file, make_plan, change, code_of):
    change(site_file, policy={"max_answers": 3})
    answers = [make_plan(site_file, run=f"{number:032x}") for number in range(4)]
    for plan in answers[:3]:
        assert not isinstance(decode_answer(Node.open(site_file).answer(encode_plan(plan))), Refusal)
    assert code_of(Node.open(site_file), answers[3]) == "too_many_answers"
    # the last one again is no new release
    assert not isinstance(decode_answer(Node.open(site_file).answer(encode_plan(answers[2]))), Refusal)


def test_two_processes_of_one_site_never_overwrite_each_other(site_file, make_plan, plans, code_of):
    first, second = plans(site_file, make_plan, 2)
    slow, fast = Node.open(site_file), Node.open(site_file)
    fast.answer(encode_plan(first))
    fast.answer(encode_plan(second))
    assert code_of(slow, first) == "internal_error"
    # it has noticed, and goes on from what is on disk
    assert code_of(slow, first) == "stale_round"
    assert slow.answer(encode_plan(second)) == fast.answer(encode_plan(second))


def test_another_run_starts_from_the_first_weights(site_file, make_plan, votes, plans):
    first = make_plan(site_file)
    node = Node.open(site_file)
    before = votes(node.answer(encode_plan(first)), first.ask_rows)
    for plan in plans(site_file, make_plan, 3)[1:]:
        node.answer(encode_plan(plan))
    other = dataclasses.replace(first, run="cd" * 16)
    np.testing.assert_array_equal(votes(node.answer(encode_plan(other)), first.ask_rows), before)


@pytest.mark.parametrize("blob", [b"", b"\x80\x04pickle", b"CNSL" + bytes(100)])
def test_foreign_bytes_get_a_refusal(site_file, blob):
    answer = decode_answer(Node.open(site_file).answer(blob))
    assert answer == Refusal("site-0", 0, "unreadable_plan")


def test_no_text_of_an_exception_leaves(site_file, make_plan, monkeypatch, caplog):
    node = Node.open(site_file)

    def fail(*_):
        raise RuntimeError("patient 4711 in /secret/path")

    monkeypatch.setattr(node.learner, "fit", fail)
    monkeypatch.setattr(node, "fresh", lambda: node.learner)
    answer = node.answer(encode_plan(make_plan(site_file)))
    assert decode_answer(answer).code == "internal_error"
    assert b"4711" not in answer
    assert b"secret" not in answer
    assert "4711" in caplog.text  # the owner's own log has it


def test_a_failed_round_leaves_the_model_as_it_was(site_file, make_plan, monkeypatch, votes, plans, code_of):
    first, second = plans(site_file, make_plan, 2)
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    before = node.learner.state()

    def fail(*_):
        raise Diverged("at the last step")

    with monkeypatch.context() as patched:
        patched.setattr(type(node.learner), "predict", fail)
        assert code_of(node, second) == "diverged"
    for key, value in node.learner.state().items():
        assert torch.equal(value, before[key])
    # The same plan is not tried again; the next round's is learnt from there.
    assert code_of(node, second) == "diverged"
    third = dataclasses.replace(second, round=3)
    assert isinstance(votes(node.answer(encode_plan(third)), third.ask_rows), np.ndarray)


@pytest.mark.parametrize("refused", [{1}, {2}, {1, 2, 3}, {2, 3}])
def test_a_disk_that_is_full_loses_nothing(site_file, make_plan, monkeypatch, plans, code_of, forget, refused):
    first, second = plans(site_file, make_plan, 2)
    expected = [Node.open(site_file).answer(encode_plan(plan)) for plan in (first, second)]
    forget(site_file)
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    save, saves = StateStore.save, []

    def full(*args, **kwargs):
        saves.append(args)
        if len(saves) in refused:  # the first is the count, the second the answer
            raise OSError("no space left")
        save(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(StateStore, "save", full)
        assert code_of(node, second) == "storage_error"
    assert StateStore(site_file.parent / "state", durable=False).load().answer == expected[0]
    assert node.answer(encode_plan(second)) == expected[1]
    assert StateStore(site_file.parent / "state", durable=False).load().counted == 2


def test_fedmds_first_phase_runs_once_and_before_the_first_vote(
    site_file, make_plan, votes, change, forget, plans, spied
):
    plain = Node.open(site_file).answer(encode_plan(make_plan(site_file)))
    forget(site_file)
    change(site_file, training={"public_epochs": 20, "warmup_epochs": 3})
    node = Node.open(site_file)
    phases = spied(node)
    _, second = plans(site_file, make_plan, 2)
    answer = node.answer(encode_plan(make_plan(site_file)))
    assert phases == [("fit_public", 20), ("fit", 3), ("fit", 2)]
    phases.clear()
    node.answer(encode_plan(second))
    assert phases == [("distil", 2), ("fit", 2)]
    # Site 0 has classes a and b only; the labelled public rows teach it c.
    taught, untaught = (votes(blob, make_plan(site_file).ask_rows)[:, 2].max() for blob in (answer, plain))
    assert taught > untaught


def test_a_site_that_restarts_begins_every_round_with_its_first_epochs(
    site_file, make_plan, votes, change, forget, plans, spied
):
    change(site_file, training={"restart": True, "warmup_epochs": 3})
    node = Node.open(site_file)
    phases = spied(node)
    first, second, third = plans(site_file, make_plan, 3)
    node.answer(encode_plan(first))
    assert phases == [("fit", 3), ("fit", 2)]
    phases.clear()
    node.answer(encode_plan(second))
    assert phases == [("fit", 3), ("distil", 2), ("fit", 2)]
    after_two = votes(node.answer(encode_plan(third)), third.ask_rows)
    # What came before does not matter: the third plan alone gives the same votes.
    forget(site_file)
    alone = votes(Node.open(site_file).answer(encode_plan(third)), third.ask_rows)
    np.testing.assert_array_equal(after_two, alone)


def test_without_restart_what_came_before_matters(site_file, make_plan, votes, forget, plans):
    node, (first, second) = Node.open(site_file), plans(site_file, make_plan, 2)
    node.answer(encode_plan(first))
    after = votes(node.answer(encode_plan(second)), second.ask_rows)
    forget(site_file)
    alone = votes(Node.open(site_file).answer(encode_plan(second)), second.ask_rows)
    assert np.abs(after - alone).max() > 1e-3


def test_a_plan_that_asks_nothing_is_answered_with_no_vote(site_file, make_plan, plans):
    _, second = plans(site_file, make_plan, 2)
    node = Node.open(site_file)
    raw = decode_answer(node.answer(encode_plan(dataclasses.replace(second, ask_rows=np.empty(0, np.int64)))))
    assert (raw.rows, raw.voted) == (0, None)
