"""A site that is killed at any write of a secure sum gives one input, and the sum is what it would have been."""

import json
import subprocess
import sys

# A real coordinator's round over three sites, each message in a process of its own; those of one site are killed just
# before or just after one of their writes, and the message is sent again. Torch is imported once, then forked.
KILLED = """
import json, os, signal, sys
from pathlib import Path

from client.node import Node
from client.state import StateStore
from distillation.runtime import single_thread
from server.exchange import Exchange
from server.replies import Reply
from server.rounds import run_rounds
from strategies.aggregators import build_aggregator

single_thread()
told = json.loads(sys.argv[1])
counter, save = Path(told["counter"]), StateStore.save

def killed_at(write, later):
    def saved(store, state, after):
        number = int(counter.read_text()) + 1
        counter.write_text(str(number))
        if number == write and not later:
            os.kill(os.getpid(), signal.SIGKILL)
        save(store, state, after)
        if number == write and later:
            os.kill(os.getpid(), signal.SIGKILL)
    return saved

class Killed:
    def __init__(self, sites, write, later):
        self.sites, self.clients, self.kills = sites, sorted(sites), 0
        self.write, self.saved = write, killed_at(write, later)

    def sent(self, site, blob):
        if not self.write:  # without kills in this very process: what is imported by then is inherited
            StateStore.save = self.saved if site == "site-1" else save
            return Node.open(Path(self.sites[site]), durable=False).answer(blob), False
        reader, writer = os.pipe()
        if not (child := os.fork()):
            StateStore.save = self.saved if site == "site-1" else save
            os.write(writer, Node.open(Path(self.sites[site]), durable=False).answer(blob))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            answer = stream.read()
        return answer, os.waitpid(child, 0)[1] == signal.SIGKILL

    def ask(self, blobs):
        for site, blob in blobs.items():
            answer, killed = self.sent(site, blob)
            if killed:
                self.kills += 1
                answer, _ = self.sent(site, blob)
            yield Reply(site, answer)

ended = []
for sites, write, later in told["runs"]:
    counter.write_text("0")
    cohort = Killed(sites, write, later)
    (result,) = run_rounds(cohort, build_aggregator("mean", {}), Exchange(**told["exchange"]), 1)
    ended.append([result.teacher.log_probs.tobytes().hex(), result.replies, cohort.kills, int(counter.read_text())])
print(json.dumps(ended))
"""
# Five steps of a sum among sites with a registry, the count of the plan and its answer.
WRITES = 7


def test_a_site_killed_before_or_after_any_write_gives_the_input_that_it_would_have_given(
    make_sites, make_plan, register, tmp_path
):
    moments = [(0, False), *((write, later) for write in range(1, WRITES + 1) for later in (False, True))]
    runs = []
    for write, later in moments:
        sites = make_sites(3, folder=tmp_path / f"{write}-{later}")
        register(sites)
        runs.append(({name: str(path) for name, path in sites.items()}, write, later))
    plan = make_plan(sites["site-0"])
    told = {
        "runs": runs,
        "counter": str(tmp_path / "writes"),
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
            "quorum": 1.0,
            "participation": 1.0,
            "secure_sum": True,
        },
    }
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(told)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, *killed = json.loads(done.stdout)
    assert whole[1:] == [3, 0, WRITES]
    for ended, moment in zip(killed, moments[1:], strict=True):
        # A write that was cut short is counted once more.
        assert ended == [whole[0], 3, 1, WRITES + (not moment[1])], moment
