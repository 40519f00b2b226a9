"""The coordinator's Flower app: finds the sites, runs the rounds over Flower messages, leaves a failure on disk."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from client.edge import CONSULT, HELLO, REFUSED, Hello, answer_of, pack
from distillation.data import DataError, Proxy, Samples, load_proxy, load_samples
from distillation.export import write_atomically
from server.checkpoint import CheckpointError
from server.checks import Failure
from server.config import FederationConfig, read_job
from server.coordinator import coordinate
from server.rounds import QuorumError, Reply

log = logging.getLogger("consilium.server")

# Flower's default is 3 s, most of a trivial exchange.
POLL_S = 0.2
# A newcomer's introduction must not hold up a round for as long as training may take.
HELLO_S = 70.0
# What an error reply's code says of its client; every other code is the network's.
_APP_RAISED, _NODE_GONE, _APP_DIED, _UNREADABLE = 2, 5, 8, -1
_REASONS = {_APP_RAISED: "crashed", _APP_DIED: "crashed", REFUSED: "crashed", _NODE_GONE: "no_reply"}

app = ServerApp()  # plain: the bundle check refuses `app: ServerApp = ...`


class CohortError(RuntimeError):
    """The sites cannot begin: too few, two of one name, or another version of Flower."""


@dataclass(frozen=True, slots=True)
class Silent:
    """Why a node's answer is missing: reason and detail of a server.checks.Failure."""

    reason: str
    detail: str


# A reply that cannot even be put together, or a SuperLink that does not answer just now.
UNREADABLE = Silent("transport", "the reply could not be read")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation whose settings are in `job-dir`; results and checkpoint go to `out-dir`."""
    told = context.run_config
    job, out = str(told["job-dir"]), str(told["out-dir"])
    if not job or not out:
        raise ValueError(f"job-dir={job!r} and out-dir={out!r} must both be set: flwr run --run-config")
    serve(grid, Path(job), Path(out), resume=bool(told["resume"]))


def serve(grid: Grid, job: Path, out: Path, *, resume: bool) -> None:
    """Gather the sites and coordinate; whatever ends it early is told in out/checkpoint/failure.json, then raised.

    Args:
        job: holds federation.json; its relative paths start here.
        resume: go on with the checkpoint in `out`; without it a checkpoint is refused.

    Raises:
        QuorumError, CohortError, CheckpointError, DataError, ValueError, OSError: one sentence for the operator.
    """
    notes = out / "checkpoint"
    notes.mkdir(parents=True, exist_ok=True)
    for name in ("failure.json", "sites.json"):
        (notes / name).unlink(missing_ok=True)
    try:
        if not resume and (notes / "server.safetensors").exists():
            raise CheckpointError(f"{out} already holds a run: set resume=true to go on with it, or another out-dir")
        config = read_job(job / "federation.json")
        proxy, test = _public_rows(job, config)
        cohort = FlowerCohort.gather(grid, config.clients, config.timeout_s)
        _write_json(notes / "sites.json", [asdict(hello) for hello in cohort.hellos])
        coordinate(config, cohort, proxy, test, out)
    except QuorumError as error:
        _write_failure(notes, str(error), error.round, error.failures)
        raise
    except (CohortError, CheckpointError, DataError) as error:
        _write_failure(notes, str(error))
        raise
    except Exception as error:
        _write_failure(notes, f"{type(error).__name__}: {error}")
        raise


class FlowerCohort:
    """Sites behind Flower nodes: see server.rounds.Cohort.

    Args:
        grid: the nodes.
        hellos: what each node said of itself, by node id; names are unique.
        timeout_s: of one exchange.
    """

    def __init__(self, grid: Grid, hellos: Mapping[int, Hello], timeout_s: float, poll_s: float = POLL_S) -> None:
        self._grid, self._timeout_s, self._poll_s = grid, timeout_s, poll_s
        self._hellos = dict(hellos)
        self._waiting: dict[int, Hello] = {}

    @classmethod
    def gather(cls, grid: Grid, clients: int, timeout_s: float, poll_s: float = POLL_S) -> FlowerCohort:
        """Wait until `clients` nodes are online and have said who they are.

        Raises:
            CohortError: too few within timeout_s, two of one name, another minor version of Flower.
        """
        nodes = _wait_for_nodes(grid, clients, timeout_s)
        hellos: dict[int, Hello] = {}
        silent: list[str] = []
        for node, hello in _introductions(grid, nodes, timeout_s, poll_s):
            if isinstance(hello, Hello):
                hellos[node] = hello
            else:
                silent.append(f"{hello.reason} ({hello.detail})")
        _refuse_doubles(hellos)
        _refuse_other_versions(hellos)
        if len(hellos) < clients:
            raise CohortError(
                f"{len(hellos)} of {len(nodes)} nodes said which site they are and {clients} are needed; the others: "
                f"{', '.join(silent)}: the log of the silent node says why"
            )
        return cls(grid, hellos, timeout_s, poll_s)

    @property
    def clients(self) -> Sequence[str]:
        """All sites, sorted."""
        return sorted(hello.site for hello in self._hellos.values())

    @property
    def hellos(self) -> Sequence[Hello]:
        """What the sites said of themselves, sorted by name."""
        return sorted(self._hellos.values(), key=lambda hello: hello.site)

    def ask(self, plan: bytes, clients: Sequence[str]) -> Iterator[Reply]:
        """One exchange; a node that was restarted under a new id is found again by its site's name."""
        self._find_restarted()
        sites = {node: hello.site for node, hello in self._hellos.items() if hello.site in clients}
        for node, answer in exchange(self._grid, CONSULT, plan, sorted(sites), self._timeout_s, self._poll_s):
            site = sites[node]
            if isinstance(answer, Silent):
                yield Reply(site, Failure(site, answer.reason, answer.detail))
            else:
                yield Reply(site, answer)

    def _find_restarted(self) -> None:
        """Give a lost site's place to the node that bears its name now.

        A node that has just died may count as online for a minute; a newcomer with its name waits until then.
        """
        online = set(self._grid.get_node_ids())
        newcomers = sorted(online - set(self._hellos) - set(self._waiting))
        if newcomers:
            timeout_s = min(HELLO_S, self._timeout_s)
            for node, hello in _introductions(self._grid, newcomers, timeout_s, self._poll_s):
                if isinstance(hello, Hello):
                    self._waiting[node] = hello
                else:
                    log.warning("node %d joined late and does not say who it is: asked again next round", node)
        for node, hello in list(self._waiting.items()):
            lost = [old for old, known in self._hellos.items() if old not in online and known.site == hello.site]
            if node in online and lost:
                del self._hellos[lost[0]]
                self._hellos[node] = self._waiting.pop(node)


def exchange(
    grid: Grid, message_type: str, blob: bytes, nodes: Sequence[int], timeout_s: float, poll_s: float = POLL_S
) -> Iterator[tuple[int, bytes | Silent]]:
    """Send `blob` to `nodes`; one answer each as they arrive, or why there is none.

    Guarantees:
        Asks for no reply after timeout_s; what the caller does between two answers counts. Holds one reply at a
            time. Nothing in a reply raises; a pull that fails is tried again until the deadline.
    """
    body = pack(blob)  # one for all: equal content is uploaded and kept once
    # Our own deadline decides; a message that expired first would come back as the network's error.
    requests = [Message(body, node, message_type, ttl=timeout_s + 10.0) for node in nodes]
    asked: dict[str, int] = {}
    for node, message in zip(nodes, list(grid.push_messages(requests)) or [""] * len(nodes), strict=True):
        if message:
            asked[message] = node
        else:
            yield node, Silent("transport", "the SuperLink did not take the message")
    deadline = time.monotonic() + timeout_s
    unread: dict[str, Silent] = {}
    while asked and time.monotonic() < deadline:
        for message, node in list(asked.items()):
            if time.monotonic() > deadline:
                break
            answer = _pulled(grid, message)
            if answer is UNREADABLE:
                unread[message] = UNREADABLE
            elif answer is not None:
                del asked[message]
                yield node, answer
        if asked:
            time.sleep(poll_s)
    for message, node in asked.items():
        yield node, unread.get(message, Silent("late", f"no answer in {timeout_s:g} s"))


def _pulled(grid: Grid, message: str) -> bytes | Silent | None:
    """The answer to one message, None while there is none; one at a time, so that a hostile reply spoils no other."""
    try:
        replies = [reply for reply in grid.pull_messages([message]) if reply.metadata.reply_to_message_id == message]
    except Exception as error:  # a reply that cannot even be put together, or a SuperLink that is gone
        log.warning("a reply could not be read: %s", type(error).__name__)
        return UNREADABLE
    if not replies:
        return None
    answer = answer_of(replies[0])
    if isinstance(answer, bytes):
        return answer
    detail = "the reply is no answer" if answer == _UNREADABLE else f"code {answer}"
    return Silent(_REASONS.get(answer, "transport"), detail)


def _wait_for_nodes(grid: Grid, minimum: int, timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while len(nodes := sorted(grid.get_node_ids())) < minimum:  # online ones; none at first
        if time.monotonic() > deadline:
            raise CohortError(
                f"{len(nodes)} nodes are online after {timeout_s:g} s and {minimum} are needed: start the others"
            )
        time.sleep(0.5)
    return nodes


def _introductions(
    grid: Grid, nodes: Sequence[int], timeout_s: float, poll_s: float
) -> Iterator[tuple[int, Hello | Silent]]:
    for node, answer in exchange(grid, HELLO, b"", nodes, timeout_s, poll_s):
        if isinstance(answer, Silent):
            yield node, answer
            continue
        try:
            yield node, Hello.decode(answer)
        except ValueError as error:
            yield node, Silent("transport", str(error))


def _refuse_doubles(hellos: Mapping[int, Hello]) -> None:
    names = [hello.site for hello in hellos.values()]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise CohortError(
            f"{names.count(doubles[0])} nodes say that they are {doubles[0]!r}: every site needs a name of its own, "
            "the key `site` of its file"
        )


def _refuse_other_versions(hellos: Mapping[int, Hello]) -> None:
    """Flower accepts nodes of another minor version in silence; its messages do not stay the same."""
    ours = version("flwr")
    for hello in sorted(hellos.values(), key=lambda hello: hello.site):
        if hello.flwr.split(".")[:2] != ours.split(".")[:2]:
            raise CohortError(
                f"{hello.site!r} runs flwr {hello.flwr} and this coordinator flwr {ours}: install the same minor "
                "version at every site"
            )
        if hello.python.split(".")[:2] != platform.python_version().split(".")[:2]:
            log.warning("%s runs Python %s: results may differ in the last bits", hello.site, hello.python)


def _public_rows(job: Path, config: FederationConfig) -> tuple[Proxy, Samples]:
    """The proxy set, and the held-out rows or none."""
    proxy = load_proxy(job / config.proxy)
    if proxy.sha256 != config.exchange.proxy_sha256:
        raise DataError(
            f"{job / config.proxy} holds the proxy set {proxy.sha256[:12]}... and the job names "
            f"{config.exchange.proxy_sha256[:12]}...: install the one that the job was written for"
        )
    return proxy, load_samples(job / config.test) if config.test else Samples(proxy.samples.features[:0], None)


def _write_failure(notes: Path, reason: str, round_: int = 0, failures: Sequence[Failure] = ()) -> None:
    """Round 0 is before the first one."""
    told = {"reason": reason, "round": round_, "failures": [asdict(failure) for failure in failures]}
    _write_json(notes / "failure.json", told)


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
