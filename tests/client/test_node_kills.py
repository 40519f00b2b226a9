"""A private site that is killed at any moment of a federated run: never too little on the books, never noise twice."""

import hashlib
import json
import subprocess
import sys

import pytest

from client.config import PrivacySection, load_site, write_site
from privacy.ledger import Ledger

# Two sites, a real coordinator's rounds, every message in a process of its own; torch and Opacus are imported once,
# then forked. One site a round dies at a random moment of its answers, so that the other's makes a quorum; every answer
# is asked for once more, and every draw of noise is written down before it is made, with the payment it is drawn under.
KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path

import privacy.dp_training
from client.account import Account
from client.node import Node
from distillation.runtime import single_thread
from privacy.dp_training import _Noised
from server.checks import Failure
from server.exchange import Exchange
from server.rounds import Reply, run_rounds
from strategies.aggregators import build_aggregator
from strategies.messages import Refusal
from strategies.wire import decode_answer

single_thread()
told = json.loads(sys.argv[1])
sites = {name: Path(path) for name, path in told["sites"].items()}
rng, kills, length, log, paid = random.Random(told["seed"]), 0, 0.05, [], None
draws = os.open(told["draws"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
spend, add_noise = Account.spend, _Noised.add_noise

def spends(account, *args, **kwargs):
    global paid
    sent = spend(account, *args, **kwargs)
    paid = [account._client, account._token and account._token.seq, os.getpid()]
    return sent

def adds(optimizer):
    os.write(draws, (json.dumps(paid) + "\\n").encode())
    add_noise(optimizer)

def sent(site, blob, moment=None):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        if moment is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, moment)
        answer = Node.open(sites[site]).answer(blob)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    return answer, os.waitpid(child, 0)[1] == signal.SIGKILL

class Killed:
    clients = sorted(sites)

    def ask(self, plans):
        global kills, length
        hit = rng.choice(self.clients)
        for site, blob in plans.items():
            for attempt in range(3):  # the last attempt is left alone
                dies, began = site == hit and attempt < 2 and kills < told["kills"], time.perf_counter()
                answer, killed = sent(site, blob, rng.uniform(1e-4, length) if dies else None)
                kills += killed
                if answer:
                    break
            refusal = isinstance(decode_answer(answer), Refusal) and decode_answer(answer).code
            if not refusal and not attempt:
                length = time.perf_counter() - began  # so that a moment falls into an answer on any machine
            log.append([site, answer.hex(), sent(site, blob)[0].hex(), refusal or ""])
            yield Reply(site, answer)

for path in sites.values():
    Node.open(path)  # what was computed for a promise, and the model's check, are inherited by every child
Account.spend, _Noised.add_noise = spends, adds
rounds = quiet = 0
for result in run_rounds(Killed(), build_aggregator("mean", {}), Exchange(**told["exchange"]), told["rounds"]):
    rounds, quiet = result.round, quiet + (kills == told["kills"])
    if quiet == 3:  # what comes after the last kill is as it was before the first
        break
print(json.dumps({"kills": kills, "rounds": rounds, "quiet": quiet, "log": log}))
"""
# Some 70 are needed: a moment may come after the answer.
MOST_ROUNDS = 300
# 30 rows, 10 a step, 2 epochs an answer.
STEPS = 6


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["skip", "pay-again"])
def test_a_site_that_is_killed_at_50_random_moments_never_spends_unrecorded_and_never_noises_twice(
    make_sites, make_plan, tmp_path, lost
):
    files = make_sites(2)
    for path in files.values():
        config = load_site(path)
        privacy = PrivacySection(noise_multiplier=4.0, rounds=2 * MOST_ROUNDS, lost=lost)
        policy = config.policy.model_copy(update={"max_answers": 2 * MOST_ROUNDS})
        write_site(path, config.model_copy(update={"privacy": privacy, "policy": policy}))
    plan, draws = make_plan(files["site-0"]), tmp_path / "draws"
    told = {
        "sites": {name: str(path) for name, path in files.items()},
        "seed": 4,
        "kills": 50,
        "rounds": MOST_ROUNDS,
        "draws": str(draws),
        "exchange": {
            "run": plan.run,
            "seed": 3,
            "proxy_sha256": plan.proxy_sha256,
            "classes_sha256": plan.classes_sha256,
            "classes": 3,
            "proxy_rows": 60,
            "uplink": "float32",
            "downlink": "float32",
            "rows_per_round": 20,
            "quorum": 0.01,
            "participation": 1.0,
            "row_quorum": 1,
        },
    }
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(told)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert (ended["kills"], ended["quiet"]) == (50, 3)
    assert len(ended["log"]) == 2 * ended["rounds"]
    assert {code for *_, code in ended["log"]} == ({"", "release_lost"} if lost == "skip" else {""})
    assert all(first == again for _, first, again, _ in ended["log"]), "one plan, two answers"
    drawn = [json.loads(line) for line in draws.read_text().splitlines()]
    for name, path in files.items():
        with Ledger.open(path.parent / "ledger.sqlite") as ledger:
            ledger.verify()
            (event,) = ledger.events()
            rows = list(ledger.rows())
        spent = {row.seq for row in rows if row.kind == "SPENT"}
        sealed = {row.body["spent"]: row.body["sha256"] for row in rows if row.kind == "SEALED"}
        left = [bytes.fromhex(answer) for site, answer, _, code in ended["log"] if site == name and not code]
        assert {hashlib.sha256(answer).hexdigest() for answer in left} <= set(sealed.values()), "an answer was not paid"
        under = {}  # payment -> the process of each draw
        for site, seq, process in drawn:
            if site == name:
                under.setdefault(seq, []).append(process)
        assert set(under) <= spent
        assert all(len(set(processes)) == 1 for processes in under.values()), "two trainings under one payment"
        assert all(len(processes) <= STEPS for processes in under.values()), "more draws than were paid for"
        assert all(len(under[seq]) == STEPS for seq in sealed), "an answer with too little noise"
        assert event.count == len(spent) * STEPS >= sum(map(len, under.values()))
