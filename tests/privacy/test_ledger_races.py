"""Two processes of one site are at its ledger at the same moment; it is as if they had come one after the other.

A driver process of its own forks them: forking is a hundred times cheaper than starting Python, and the test runner has
threads.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")

DRIVER = """
import json, os, sys
from pathlib import Path
from privacy.events import Gaussian
from privacy.ledger import *

FOLDER = Path(sys.argv[1])
# R(8) = 8 / (2 * 400) = .01 of B = 1.7859 at order 8: 178 releases
PRICE, LAST = (Gaussian(20.0, 1),), (Gaussian(20.0, 177),)
FILTER = Terms("record", "zero_out", "filter", 3.0, 1e-5, 8, False)
COUNT = Terms("record", "zero_out", "count", None, None, None, False)


def request(round_):
    return Request("run", round_, 0, "site-a", "gaussian-output", "{}", "ab" * 32)


def forked(work):
    '''What each of two processes says, both let go by the closing of one pipe.'''
    gate, keeper = os.pipe()
    children = []
    for number in (0, 1):
        told, telling = os.pipe()
        child = os.fork()
        if not child:
            os.close(keeper)
            os.read(gate, 1)
            try:
                said = work(number)
            except BaseException as error:
                said = type(error).__name__
            os.write(telling, json.dumps(said).encode())
            os._exit(0)
        os.close(telling)
        children.append((child, told))
    os.close(gate), os.close(keeper)
    said = [os.read(told, 1 << 16).decode() for _, told in children]
    for child, told in children:
        os.close(told), os.waitpid(child, 0)
    return [json.loads(each) for each in said]


def reserve(path, round_, price):
    with Ledger.open(path, durable=False) as ledger:
        return type(ledger.reserve(request(round_), price)).__name__


def last_of_the_budget(path):
    with Ledger.create(path, FILTER, durable=False) as ledger:
        ledger.reserve(request(0), LAST)
    said = forked(lambda number: reserve(path, 1 + number, PRICE))
    with Ledger.open(path, durable=False) as ledger:
        ledger.verify()
        assert ledger.events() == (Gaussian(20.0, 178),)
    return said


def same_request(path):
    Ledger.create(path, FILTER, durable=False).close()
    said = forked(lambda number: reserve(path, 1, PRICE))
    with Ledger.open(path, durable=False) as ledger:
        assert ledger.events() == PRICE
    return said


def many(path):
    '''Both open, reserve, store and close forty times; nobody's row is lost or doubled.'''
    Ledger.create(path, FILTER, durable=False).close()

    def work(number):
        for round_ in range(number, 80, 2):
            with Ledger.open(path, durable=False) as ledger:
                ledger.store(ledger.reserve(request(round_), PRICE), b"votes %d" % round_)
        return "done"

    said = forked(work)
    with Ledger.open(path, durable=False) as ledger:
        ledger.verify()
        assert (ledger.count(), ledger.events()) == (80, (Gaussian(20.0, 80),))
    return said


def one_token(path):
    '''Both hold the token of a seeded release, and one of them seals it.'''
    seeded = Terms("record", "zero_out", "filter", 3.0, 1e-5, 8, True)
    with Ledger.create(path, seeded, durable=False) as ledger:
        token = ledger.reserve(request(1), PRICE)

    def work(number):
        with Ledger.open(path, durable=False) as ledger:
            ledger.store(token, b"votes")
        return "sealed"

    return forked(work)


def creation(path):
    def work(number):
        with Ledger.open_or_create(path, COUNT, durable=False) as ledger:
            ledger.reserve(request(number), ())
            return ledger.data_set

    said = forked(work)
    with Ledger.open(path, durable=False) as ledger:
        assert (ledger.count(), [ledger.data_set] * 2) == (2, said)
    assert {file.name for file in path.parent.iterdir()} == {path.name}
    path.unlink()
    return ["same", "same"]


def children(path):
    Ledger.create(path, FILTER, durable=False).close()

    def work(number):
        with Ledger.create(path.with_name(f"{path.name}-{number}"), FILTER, parent=path, durable=False):
            return "child"

    return forked(work)


def reservation_or_child(path):
    '''What the parent spent is in the child, or it was refused.'''
    Ledger.create(path, FILTER, durable=False).close()
    heir = path.with_name(f"{path.name}-child")

    def work(number):
        if number:
            return reserve(path, 1, PRICE)
        Ledger.create(heir, FILTER, parent=path, durable=False).close()
        return "child"

    said = forked(work)
    with Ledger.open(heir, durable=False) as ledger:
        assert ledger.events() == (PRICE if said[1] == "Token" else ())
    return said


trial = globals()[sys.argv[2]]
print(json.dumps([sorted(trial(FOLDER / f"ledger-{number}")) for number in range(int(sys.argv[3]))]))
"""


@pytest.mark.parametrize(
    ("race", "trials", "outcomes"),
    [
        ("last_of_the_budget", 30, [["BudgetExceeded", "Token"]]),
        ("same_request", 30, [["ReleaseLost", "Token"]]),
        ("many", 2, [["done", "done"]]),
        ("one_token", 15, [["TokenRefused", "sealed"]]),
        ("creation", 30, [["same", "same"]]),
        ("children", 15, [["BudgetExceeded", "child"]]),
        ("reservation_or_child", 15, [["BudgetExceeded", "child"], ["Token", "child"]]),
    ],
)
def test_of_two_processes_that_come_together_one_is_first(tmp_path, race, trials, outcomes):
    command = [sys.executable, "-c", DRIVER, str(tmp_path), race, str(trials)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout)
    assert len(said) == trials
    assert [outcome for outcome in said if outcome not in outcomes] == []
