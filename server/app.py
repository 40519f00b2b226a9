"""The coordinator's Flower app: finds the sites, runs the rounds over Flower messages, leaves a failure on disk."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from client.edge import CONSULT, HELLO, REFUSED, Hello, answer_of, pack
from distillation.data import DataError, Proxy, Samples, load_proxy, load_samples
from distillation.export import write_atomically
from server.checkpoint import CheckpointError, refuse_lost
from server.checks import Failure
from server.config import FederationConfig, read_job
from server.coordinator import coordinate
from server.rounds import QuorumError, Reply
from strategies.wire import plan_round

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
_NOT_TAKEN = Silent("transport", "the SuperLink did not take the message")


@dataclass(slots=True)
class _Request:
    """A message that is not answered yet.

    `until`: when its answer is worth nothing any more, by the monotonic clock. `unread`: an answer could not be read.
    """

    node: int
    until: float
    site: str = ""
    round: int = 0
    unread: bool = False

    def silence(self, timeout_s: float) -> Silent:
        """Why there is no answer when its time is over."""
        return UNREADABLE if self.unread else Silent("late", f"no answer in {timeout_s:g} s")


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
        resume: go on with the checkpoint in `out`; without it a checkpoint is refused. Either way `out` holds no
            metrics of a run whose checkpoint is gone.

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
        refuse_lost(out)
        config = read_job(job / "federation.json")
        proxy, test = _public_rows(job, config)
        patience = config.exchange.patience if config.exchange.mode == "async" else 0
        cohort = FlowerCohort.gather(grid, config.clients, config.timeout_s, patience=patience)
        _write_json(notes / "sites.json", [asdict(hello) for hello in cohort.hellos])
        coordinate(config, cohort, proxy, test, out)
    except QuorumError as error:
        _write_failure(notes, str(error), error.round, error.failures, refused=error.refused)
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
        patience: rounds for which an answer that missed its deadline is still taken.
    """

    def __init__(
        self, grid: Grid, hellos: Mapping[int, Hello], timeout_s: float, poll_s: float = POLL_S, patience: int = 0
    ) -> None:
        self._grid, self._timeout_s, self._poll_s, self._patience = grid, timeout_s, poll_s, patience
        self._hellos = dict(hellos)
        self._waiting: dict[int, Hello] = {}
        self._open: dict[str, _Request] = {}

    @classmethod
    def gather(
        cls, grid: Grid, clients: int, timeout_s: float, poll_s: float = POLL_S, patience: int = 0
    ) -> FlowerCohort:
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
        return cls(grid, hellos, timeout_s, poll_s, patience)

    @property
    def clients(self) -> Sequence[str]:
        """All sites, sorted."""
        return sorted(hello.site for hello in self._hellos.values())

    @property
    def hellos(self) -> Sequence[Hello]:
        """What the sites said of themselves, sorted by name."""
        return sorted(self._hellos.values(), key=lambda hello: hello.site)

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """One exchange.

        A node that was restarted under a new id is found again by its site's name; one of a new name is asked from
        the next round on. With patience, answers to earlier plans come among the others; where nobody is asked, the
        first of them ends the exchange.
        """
        self._meet_newcomers()
        nodes = {hello.site: node for node, hello in self._hellos.items()}
        life_s = self._timeout_s * (1 + self._patience)
        asked, refused = _push(self._grid, CONSULT, {nodes[site]: plan for site, plan in plans.items()}, life_s)
        for node in refused:
            yield _reply(self._hellos[node].site, 0, _NOT_TAKEN)
        for request in asked.values():
            request.site = self._hellos[request.node].site
            request.round = plan_round(plans[request.site])
        waiting = {**self._open, **asked}
        heard = 0

        def enough() -> bool:
            return asked.keys().isdisjoint(waiting) if plans else heard > 0 or not waiting

        for request, answer in _answers(self._grid, waiting, enough, self._timeout_s, self._poll_s):
            heard += 1
            yield _reply(request.site, request.round, answer)
        self._open = {
            name: request
            for name, request in waiting.items()
            if self._patience and not request.unread and time.monotonic() < request.until
        }
        for name in asked.keys() & waiting.keys():
            yield _reply(asked[name].site, 0, asked[name].silence(self._timeout_s))

    def _meet_newcomers(self) -> None:
        """Give a lost site's place to the node that bears its name now, and a site of a new name a place of its own.

        A node that has just died may count as online for a minute; a newcomer with its name waits until then.
        """
        online = set(self._grid.get_node_ids())
        newcomers = sorted(online - set(self._hellos) - set(self._waiting))
        if newcomers:
            timeout_s = min(HELLO_S, self._timeout_s)
            for node, hello in _introductions(self._grid, newcomers, timeout_s, self._poll_s):
                if not isinstance(hello, Hello):
                    log.warning("node %d joined late and does not say who it is: asked again next round", node)
                    continue
                self._waiting[node] = hello
                if not _same_flower(hello):
                    log.warning("%s joined late with flwr %s and stays out", hello.site, hello.flwr)
        for node, hello in list(self._waiting.items()):
            if node not in online or not _same_flower(hello):
                continue
            namesakes = [old for old, known in self._hellos.items() if known.site == hello.site]
            if not any(old in online for old in namesakes):
                for old in namesakes:
                    del self._hellos[old]
                self._hellos[node] = self._waiting.pop(node)


def exchange(
    grid: Grid, message_type: str, blobs: Mapping[int, bytes], timeout_s: float, poll_s: float = POLL_S
) -> Iterator[tuple[int, bytes | Silent]]:
    """Send each node its blob; one answer each as they arrive, or why there is none.

    Guarantees:
        Asks for no reply after timeout_s; what the caller does between two answers counts. Holds one reply at a
            time. Nothing in a reply raises; a pull that fails is tried again until the deadline.
    """
    waiting, refused = _push(grid, message_type, blobs, timeout_s)
    for node in refused:
        yield node, _NOT_TAKEN
    for request, answer in _answers(grid, waiting, lambda: not waiting, timeout_s, poll_s):
        yield request.node, answer
    for request in waiting.values():
        yield request.node, request.silence(timeout_s)


def _push(
    grid: Grid, message_type: str, blobs: Mapping[int, bytes], life_s: float
) -> tuple[dict[str, _Request], list[int]]:
    """Send each node its blob; the requests by message, and the nodes whose message was not taken."""
    nodes = sorted(blobs)
    # One for all who share it: equal content is uploaded and kept once.
    bodies = {id(blob): pack(blob) for blob in {id(blob): blob for blob in blobs.values()}.values()}
    # Our own deadline decides; a message that expired first would come back as the network's error.
    sent = [Message(bodies[id(blobs[node])], node, message_type, ttl=life_s + 10.0) for node in nodes]
    names = list(grid.push_messages(sent)) or [""] * len(nodes)
    told = list(zip(nodes, names, strict=True))
    until = time.monotonic() + life_s
    return {name: _Request(node, until) for node, name in told if name}, [node for node, name in told if not name]


def _answers(
    grid: Grid, waiting: dict[str, _Request], enough: Callable[[], bool], timeout_s: float, poll_s: float
) -> Iterator[tuple[_Request, bytes | Silent]]:
    """Answers as they arrive, each taken out of `waiting`, until there are enough or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not enough() and time.monotonic() < deadline:
        for name, request in list(waiting.items()):
            if time.monotonic() > deadline:
                break
            answer = _pulled(grid, name)
            if answer is UNREADABLE:
                request.unread = True
            elif answer is not None:
                del waiting[name]
                yield request, answer
        if not enough():
            time.sleep(poll_s)


def _reply(site: str, round_: int, answer: bytes | Silent) -> Reply:
    return Reply(site, Failure(site, answer.reason, answer.detail) if isinstance(answer, Silent) else answer, round_)


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
    for node, answer in exchange(grid, HELLO, dict.fromkeys(nodes, b""), timeout_s, poll_s):
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


def _same_flower(hello: Hello) -> bool:
    return hello.flwr.split(".")[:2] == version("flwr").split(".")[:2]


def _refuse_other_versions(hellos: Mapping[int, Hello]) -> None:
    """Flower accepts nodes of another minor version in silence; its messages do not stay the same."""
    ours = version("flwr")
    for hello in sorted(hellos.values(), key=lambda hello: hello.site):
        if not _same_flower(hello):
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


def _write_failure(
    notes: Path, reason: str, round_: int = 0, failures: Sequence[Failure] = (), *, refused: bool = False
) -> None:
    """Round 0 is before the first one."""
    each = [asdict(failure) for failure in failures]
    _write_json(notes / "failure.json", {"reason": reason, "round": round_, "failures": each, "refused": refused})


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
