"""A site is killed with SIGKILL at every line of the ledger's code and at random moments, and has never under-counted.

A driver process of its own forks the victims: forking is a hundred times cheaper than starting Python, and the test
runner has threads.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 is POSIX")

# One site's rounds, as a node goes through them; what it has seen it writes down, unbuffered, before it goes on.
DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
from privacy import accounting
from privacy.events import Gaussian, merged, times
from privacy.ledger import *

FOLDER = Path(sys.argv[1])
PATH, LOG = FOLDER / "ledger.sqlite", FOLDER / "log"
PRICE = (Gaussian(400.0, 1),)
FILTER = Terms("record", "zero_out", "filter", 3.0, 1e-5, 8, False)
PLAN = Terms("record", "zero_out", "plan", 3.0, 1e-5, None, False)
ROUNDS = 2
TICKS = []  # where to tell that something was written down
TRACED = {"ledger.py", "chain.py", "tally.py", "budget.py", "terms.py"}


def request(round_, attempt):
    return Request("run", round_, attempt, "site-a", "gaussian-output", "{}", "ab" * 32)


def say(**told):
    with LOG.open("ab", buffering=0) as log:
        log.write(json.dumps(told).encode() + b"\\n")
    if TICKS:
        os.write(TICKS[0], b".")


def told():
    '''What was written down; a line that death cut short was not.'''
    text = LOG.read_bytes() if LOG.exists() else b""
    whole = text[: text.rfind(b"\\n") + 1]
    if whole != text:
        LOG.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def live(terms, rounds):
    with Ledger.open_or_create(PATH, terms, durable=False) as ledger:
        seen(ledger.head())
        if terms.mode == "plan":
            ledger.plan("all", (times(PRICE[0], 1000),))
            seen(ledger.head())
        for round_ in rounds:
            answer(ledger, round_)


def answer(ledger, round_):
    for attempt in range(100):
        try:
            paid = ledger.reserve(request(round_, attempt), PRICE)
        except ReleaseLost:
            continue
        break
    if isinstance(paid, Token):
        seen(ledger.head())
        payload = os.urandom(64)  # the release: fresh noise, which exists from here on
        say(released=[round_, attempt], payload=payload.hex())
        seen(ledger.store(paid, payload))
    else:
        payload = paid.payload
    say(sent=round_, payload=payload.hex())


def seen(head):
    say(head=[head.seq, head.digest.hex()])


def check(durable=False):
    '''The invariants, after a death; returns the ledger's rows.'''
    seen_before = told()
    if not PATH.exists():
        assert not seen_before
        return []
    with Ledger.open(PATH, durable=durable) as ledger:
        ledger.verify()  # I5: the chain holds together
        rows = list(ledger.rows())
        slots = [(r.body["request"]["round"], r.body["request"]["attempt"]) for r in rows if r.kind == "SPENT"]
        released = [tuple(line["released"]) for line in seen_before if "released" in line]
        assert set(released) <= set(slots), (released, slots)  # I1: no noise that was not paid for
        assert len(set(released)) == len(released), released  # one token, one release
        assert ledger.events() == merged(PRICE * len(slots)) or not slots
        for line in seen_before:
            if "head" in line:  # I2, I5: all that was ever seen is still there, unchanged
                ledger.check(line["head"][0], bytes.fromhex(line["head"][1]))
    sent = {}
    for line in seen_before:
        if "sent" in line:  # I4: one round, one answer
            assert sent.setdefault(line["sent"], line["payload"]) == line["payload"]
    return rows


def victim(work, killed_at=0):
    '''A forked process that does the work, and is killed at the n-th line of the ledger's code that it comes to.'''
    child = os.fork()
    if child:
        return child
    lines = set()

    def at_line(frame, event, arg):
        if event == "line" and (line := (frame.f_code, frame.f_lineno)) not in lines:
            lines.add(line)
            if len(lines) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return at_line

    def of_ours(frame, event, arg):
        return at_line if os.path.basename(frame.f_code.co_filename) in TRACED else None

    try:
        if killed_at:
            sys.settrace(of_ours)
        work()
        sys.settrace(None)
        os._exit(0)
    except BaseException:
        sys.settrace(None)
        import traceback

        traceback.print_exc()
        os._exit(1)


def ended(child):
    '''Whether it was killed; it must not have failed.'''
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def clear():
    for file in FOLDER.iterdir():
        file.unlink()


def every_line(terms, step=1):
    '''A fresh ledger is killed at its first line, the next, ...; then the site goes on to its last round.'''
    live(terms, range(ROUNDS))  # what is computed once a process is computed here
    points = 0
    while True:
        clear()
        if not ended(victim(lambda: live(terms, range(ROUNDS)), 1 + points * step)):
            return points
        before = check()
        assert not ended(victim(lambda: live(terms, range(ROUNDS))))
        after = check()
        assert after[: len(before)] == before  # I2: rows are only added
        assert {entry["sent"] for entry in told() if "sent" in entry} == set(range(ROUNDS))
        points += 1


def go_on(durable, ticks):
    '''The round that was under way, and all after it.'''
    TICKS.append(ticks)
    with Ledger.open(PATH, durable=durable) as ledger:
        seen(ledger.head())
        for round_ in range(max(0, ledger.count() - 1), 10**6):
            answer(ledger, round_)


def random_moments(kills, durable):
    '''One ledger through all deaths; returns what it says at the end, and how far it came.'''
    moments, before = random.Random(7), []
    Ledger.create(PATH, FILTER, durable=durable).close()
    for _ in range(kills):
        listening, ticks = os.pipe()
        child = victim(lambda: go_on(durable, ticks))
        os.close(ticks)
        for _ in range(moments.randint(1, 12)):  # however busy the machine is, it gets somewhere
            os.read(listening, 1)
        time.sleep(moments.choice([0.0, moments.uniform(0.0, 0.003)]))
        os.kill(child, signal.SIGKILL)
        assert ended(child)
        os.close(listening)
        rows = check(durable)
        assert rows[: len(before)] == before
        before = rows
    with Ledger.open(PATH, durable=durable) as ledger:
        spent = sum(1 for row in before if row.kind == "SPENT")
        fresh = accounting.rdp_of((Gaussian(400.0, spent),), 8) + accounting.conversion(8, 1e-5)
        return {"spent": spent, "rounds": ledger.count(), "epsilon": ledger.epsilon(), "fresh": fresh}


print(json.dumps(eval(sys.argv[2])))
"""


def driven(folder, call):
    done = subprocess.run([sys.executable, "-c", DRIVER, str(folder), call], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_a_site_that_is_killed_at_any_line_of_the_ledgers_code_has_counted_what_it_released(tmp_path):
    assert driven(tmp_path, "every_line(FILTER)") > 150


def test_a_site_that_is_killed_while_it_reserves_its_plan_has_one_plan(tmp_path):
    assert driven(tmp_path, "every_line(PLAN, 5)") > 30


@pytest.mark.parametrize("durable", [True, False])
def test_a_site_that_is_killed_fifty_times_at_random_moments_has_counted_what_it_released(tmp_path, durable):
    got = driven(tmp_path, f"random_moments({50 if durable else 25}, {durable})")
    assert got["epsilon"] == pytest.approx(got["fresh"], abs=1e-9)
    assert got["spent"] >= got["rounds"] > 20
