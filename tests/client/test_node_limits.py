"""No more plans reach the private rows than the owner allows answers, however a plan, or the process, ends."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from client.node import Node
from client.state import StateStore
from distillation.learner import Diverged, TorchLearner
from strategies.believing import vote_symbols
from strategies.messages import Refusal, Sync
from strategies.soft_labels import SoftLabels
from strategies.tables import Table
from strategies.wire import decode_answer, encode_plan

DELTA = "quantised:1+delta+entropy"


def of_runs(site_file, make_plan, count, **changed):
    """Plans of as many new runs."""
    return [make_plan(site_file, run=f"{number:032x}", **changed) for number in range(count)]


def stored(site_file):
    return StateStore(site_file.parent / "state", durable=False).load()


@pytest.fixture
def fits(monkeypatch):
    """How many local trainings there were."""
    done, fit = [], TorchLearner.fit
    monkeypatch.setattr(TorchLearner, "fit", lambda *args, **kwargs: done.append(1) or fit(*args, **kwargs))
    return done


@pytest.fixture
def crash(monkeypatch):
    """A function: every local training ends with an error from then on, after its first look at the private rows."""

    def arm(error):
        fit = TorchLearner.fit

        def broken(*args, **kwargs):
            fit(*args, **kwargs)
            raise error

        monkeypatch.setattr(TorchLearner, "fit", broken)

    return arm


def test_a_difference_that_does_not_fit_touches_no_private_row_and_counts_for_nothing(
    site_file, make_plan, change, fits, code_of
):
    change(site_file, policy={"max_answers": 1}, training={"warmup_epochs": 1})
    rows = np.arange(5)
    symbols = vote_symbols(SoftLabels.from_logits(rows, np.eye(5, 3)), DELTA)
    digest = Table.empty(60, 1).changed(1, rows, symbols).digest(rows)
    node = Node.open(site_file)
    for base, said in ((1, digest), (0, bytes(8))):
        sync = Sync(base, rows, said, rows, symbols)
        for plan in of_runs(site_file, make_plan, 3, round=2, downlink=DELTA, sync=sync):
            assert code_of(node, plan) == "need_key"
    assert (fits, stored(site_file)) == ([], None)
    assert not isinstance(decode_answer(node.answer(encode_plan(make_plan(site_file)))), Refusal)
    assert len(fits) == 2  # warm-up and the round's own


@pytest.mark.parametrize(
    ("error", "code"), [(Diverged("at the last step"), "diverged"), (RuntimeError("patient 4711"), "internal_error")]
)
def test_a_plan_that_fails_is_counted_and_never_tried_again(
    site_file, make_plan, change, fits, crash, code_of, error, code
):
    change(site_file, policy={"max_answers": 2})
    crash(error)
    first, second, third = of_runs(site_file, make_plan, 3)
    for restarts in (False, True):
        node = Node.open(site_file)
        assert code_of(node, first) == code
        assert len(fits) == 1
        if restarts:
            break
        assert code_of(node, first) == code
    assert code_of(node, second) == code
    assert code_of(node, third) == "too_many_answers"
    assert code_of(node, second) == code  # what it has heard already
    assert len(fits) == 2
    assert (stored(site_file).counted, stored(site_file).failed) == (2, code)


def test_a_learning_rate_that_diverges_does_not_make_plans_free(site_file, make_plan, change, fits, code_of):
    change(site_file, policy={"max_answers": 1}, training={"lr": 1e38})
    codes = [code_of(Node.open(site_file), plan) for plan in of_runs(site_file, make_plan, 4)]
    assert codes == ["diverged"] + 3 * ["too_many_answers"]
    assert len(fits) == 1


def test_the_count_is_on_disk_before_a_private_row_is_touched(site_file, make_plan, plans, change, monkeypatch):
    change(site_file, training={"warmup_epochs": 1})
    fit, seen = TorchLearner.fit, []

    def look(*args, **kwargs):
        seen.append((stored(site_file).counted, stored(site_file).round))
        return fit(*args, **kwargs)

    monkeypatch.setattr(TorchLearner, "fit", look)
    node = Node.open(site_file)
    for plan in plans(site_file, make_plan, 3):
        node.answer(encode_plan(plan))
    assert seen == [(1, 0), (1, 0), (2, 1), (3, 2)]  # twice in the first round: warm-up and its own


def test_to_choose_among_teachers_is_counted_for_the_choice_takes_a_private_model(
    site_file, make_plan, plans, monkeypatch, code_of
):
    first, second = plans(site_file, make_plan, 2)
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    monkeypatch.setattr(TorchLearner, "predict", lambda *_: (_ for _ in ()).throw(Diverged("not finite")))
    assert code_of(node, dataclasses.replace(second, teachers=2 * second.teachers)) == "diverged"
    assert stored(site_file).counted == 2


def test_the_last_answer_is_given_again_also_after_another_plan_failed(site_file, make_plan, crash, fits, code_of):
    first, second = of_runs(site_file, make_plan, 2)
    answer = Node.open(site_file).answer(encode_plan(first))
    crash(Diverged("at the last step"))
    assert code_of(Node.open(site_file), second) == "diverged"
    assert Node.open(site_file).answer(encode_plan(first)) == answer
    assert len(fits) == 2


def test_an_interrupted_plan_is_free_once_more_only_while_nothing_else_was_counted(
    site_file, make_plan, change, code_of, monkeypatch
):
    change(site_file, policy={"max_answers": 3})
    first, second, third = of_runs(site_file, make_plan, 3)
    node = Node.open(site_file)

    def interrupted(plan):
        with monkeypatch.context() as patched:
            patched.setattr(TorchLearner, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                node.answer(encode_plan(plan))

    interrupted(first)
    interrupted(first)
    assert stored(site_file).counted == 1
    interrupted(second)
    interrupted(first)  # it would begin from what came since: another release
    assert stored(site_file).counted == 3
    assert code_of(node, third) == "too_many_answers"
    assert not isinstance(decode_answer(node.answer(encode_plan(first))), Refusal)


def test_an_interrupted_plan_is_tried_again_whatever_failed_before_it(
    site_file, make_plan, monkeypatch, code_of, forget
):
    first, second = of_runs(site_file, make_plan, 2)
    expected = Node.open(site_file).answer(encode_plan(second))
    forget(site_file)
    for plan, error in ((first, Diverged("at the last step")), (second, KeyboardInterrupt())):
        with monkeypatch.context() as patched:
            patched.setattr(TorchLearner, "fit", lambda *_, told=error, **__: (_ for _ in ()).throw(told))
            if plan is first:
                assert code_of(Node.open(site_file), plan) == "diverged"
            else:
                with pytest.raises(KeyboardInterrupt):
                    Node.open(site_file).answer(encode_plan(plan))
    assert Node.open(site_file).answer(encode_plan(second)) == expected
    assert stored(site_file).counted == 2


def test_a_second_process_does_not_end_the_plan_that_the_first_one_is_at(site_file, make_plan, monkeypatch, code_of):
    plan = make_plan(site_file)
    slow, fast = Node.open(site_file), Node.open(site_file)
    fit, codes = TorchLearner.fit, []

    def meanwhile(*args, **kwargs):
        if not codes:
            codes.append(code_of(slow, plan))
        return fit(*args, **kwargs)

    monkeypatch.setattr(TorchLearner, "fit", meanwhile)
    answer = fast.answer(encode_plan(plan))
    assert codes == ["internal_error"]
    assert not isinstance(decode_answer(answer), Refusal)
    assert Node.open(site_file).answer(encode_plan(plan)) == answer
    assert stored(site_file).counted == 1


# Every message in a process of its own, killed at one point or not at all; torch is imported once, then forked.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from client.node import Node
from client.state import StateStore
from distillation.learner import TorchLearner
from distillation.runtime import single_thread

single_thread()
site_file, folder = Path(sys.argv[1]), Path(sys.argv[2])
fit, save, saves = TorchLearner.fit, StateStore.save, []

def answer(plan, point):
    def here(name):
        if point == name:
            os.kill(os.getpid(), signal.SIGKILL)

    def fitted(*args, **kwargs):
        with (folder / "fits").open("a") as file:
            print(plan, file=file)
        here("fit begins")
        fit(*args, **kwargs)
        here("fit ends")

    def saved(*args, **kwargs):
        saves.append(1)
        here(f"save {len(saves)} begins")
        save(*args, **kwargs)
        here(f"save {len(saves)} ends")

    TorchLearner.fit, StateStore.save = fitted, saved
    return Node.open(site_file).answer((folder / f"plan-{plan}").read_bytes())

def sent(plan, point):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, answer(plan, point))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read().hex()
    _, status = os.waitpid(child, 0)
    return [told, signal.SIGKILL == status]

answer(3, "")  # so that what torch imports late is imported once, too
saves.clear()
for sends in json.load(sys.stdin):
    (site_file.parent / "state" / "state.safetensors").unlink(missing_ok=True)
    (folder / "fits").write_text("")
    told = [sent(*send) for send in sends]
    print(json.dumps([told, (folder / "fits").read_text().split()]))
"""
POINTS = ("save 1 begins", "save 1 ends", "fit begins", "fit ends", "save 2 begins", "save 2 ends")


def test_a_site_that_is_killed_anywhere_trains_on_no_more_plans_than_it_may_answer(
    tmp_path, site_file, make_plan, change
):
    change(site_file, policy={"max_answers": 2})
    blobs = [encode_plan(plan) for plan in of_runs(site_file, make_plan, 4)]
    for number, blob in enumerate(blobs):
        (tmp_path / f"plan-{number}").write_bytes(blob)
    # Each plan is sent again after the kill; or only after all others.
    again = [[(0, point), (0, ""), (1, point), (1, ""), (1, ""), (2, ""), (3, "")] for point in POINTS]
    later = [[(0, point), (1, point), (2, ""), (3, ""), (1, ""), (0, "")] for point in POINTS]
    child = [sys.executable, "-c", KILLED, str(site_file), str(tmp_path)]
    done = subprocess.run(child, input=json.dumps(again + later), capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    (site_file.parent / "state" / "state.safetensors").unlink()
    expected = [Node.open(site_file).answer(blob).hex() for blob in blobs]
    assert decode_answer(bytes.fromhex(expected[2])).code == "too_many_answers"
    for sends, (answers, fits) in zip(again + later, told, strict=True):
        assert len(set(fits)) <= 2, sends
        for (number, point), (_, killed) in zip(sends, answers, strict=True):
            assert killed is bool(point), (sends, number)
    for sends, (answers, fits) in zip(again, told[: len(again)], strict=True):
        # At one charge each, the answers of a site that never died.
        said = [answer for (_, point), (answer, _) in zip(sends, answers, strict=True) if not point]
        assert said == [expected[0], expected[1], *expected[1:]], sends
        assert set(fits) == {"0", "1"}, sends
