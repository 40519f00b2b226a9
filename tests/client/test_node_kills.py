"""A private site that is killed at any moment of a federated run: never too little on the books, never noise twice."""

import json
import subprocess
import sys

import pytest

from client.config import PrivacySection, load_site, write_site
from privacy.ledger import Ledger

# Two sites, a real coordinator's rounds, every message in a process of its own; torch and Opacus are imported once,
# then forked. Each message draws a moment for its process to be killed at, and is sent again after it.
KILLED = """
import json, os, random, signal, sys
from pathlib import Path

import numpy as np
import privacy.dp_training
from client.node import Node
from distillation.runtime import single_thread
from server.checks import Failure
from server.exchange import Exchange
from server.rounds import QuorumError, Reply, run_rounds
from strategies.aggregators import build_aggregator
from strategies.messages import Refusal
from strategies.wire import decode_answer, decode_plan, plan_sha256

single_thread()
told = json.loads(sys.argv[1])
sites = {name: Path(path) for name, path in told["sites"].items()}
rng, kills, log = random.Random(told["seed"]), 0, []

def sent(site, blob, moment):
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
        global kills
        hit = rng.choice(self.clients)  # one site a round, so that the other's answer makes a quorum
        for site, blob in plans.items():
            for attempt in range(3):
                # Answers take some 50 ms here: most moments fall into one. The last attempt is left alone.
                dies = site == hit and attempt < 2 and kills < told["kills"]
                moment = rng.uniform(1e-4, 0.08) if dies else None
                answer, killed = sent(site, blob, moment)
                kills += killed
                if answer:
                    log.append([site, plan_sha256(blob, decode_plan(blob, 60, 3)), answer.hex()])
                    break
            yield Reply(site, answer or Failure(site, "crashed"))

for path in sites.values():
    Node.open(path)  # what was computed for a promise is inherited by every child
exchange = Exchange(**told["exchange"])
rounds = 0
try:
    for result in run_rounds(Killed(), build_aggregator("mean", {}), exchange, told["rounds"]):
        rounds = result.round
except QuorumError as error:
    print(error, file=sys.stderr)
refusals = [decode_answer(bytes.fromhex(answer)).code for _, _, answer in log
            if isinstance(decode_answer(bytes.fromhex(answer)), Refusal)]
print(json.dumps({"kills": kills, "rounds": rounds, "log": log, "refusals": refusals}))
"""
ROUNDS = 40
# 30 rows, 10 a step, 2 epochs an answer.
STEPS = 6


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["skip", "pay-again"])
def test_a_site_that_is_killed_at_50_random_moments_never_spends_unrecorded_and_never_noises_twice(
    make_sites, make_plan, lost
):
    files = make_sites(2)
    for path in files.values():
        config = load_site(path)
        privacy = PrivacySection(noise_multiplier=4.0, rounds=4 * ROUNDS, lost=lost)
        policy = config.policy.model_copy(update={"max_answers": 4 * ROUNDS})
        write_site(path, config.model_copy(update={"privacy": privacy, "policy": policy}))
    plan = make_plan(files["site-0"])
    told = {
        "sites": {name: str(path) for name, path in files.items()},
        "seed": 4,
        "kills": 50,
        "rounds": ROUNDS,
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
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(told)], capture_output=True, text=True, check=True)
    ended = json.loads(done.stdout)
    assert ended["kills"] >= 40, done.stderr  # the last attempts are left alone
    assert ended["rounds"] == ROUNDS, done.stderr
    assert set(ended["refusals"]) <= {"release_lost"}
    for name, path in files.items():
        released = {}
        for site, asked, answer in ended["log"]:
            if site == name:
                released.setdefault(asked, set()).add(answer)
        assert all(len(answers) == 1 for answers in released.values()), "one plan, two answers"
        with Ledger.open(path.parent / "ledger.sqlite") as ledger:
            ledger.verify()
            (event,) = ledger.events()
            rows = list(ledger.rows())
        spent, sealed = (sum(row.kind == kind for row in rows) for kind in ("SPENT", "SEALED"))
        votes = [asked for asked, answers in released.items() if b"release_lost".hex() not in next(iter(answers))]
        assert event.count == spent * STEPS
        assert len(votes) <= sealed <= spent
