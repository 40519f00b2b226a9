"""What may stand between the coordinator and the sites of a simulation: liars, and answers that come late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from server.checks import Failure, check_answer
from server.rounds import Cohort, Reply
from simulations.attacks.attack import Attack, Scene
from simulations.config import ExperimentConfig
from strategies.codecs import link_named
from strategies.codecs.float16 import Float16
from strategies.codecs.float32 import Float32Codec
from strategies.messages import ClientReport, RoundPlan
from strategies.seeds import stream_seed
from strategies.soft_labels import Float64, Int64, SoftLabels
from strategies.wire import decode_plan, encode_report, plan_round

# The stream that draws who attacks.
LIARS = "attackers"
# Rows of each class that a liar says it has: class-count counts more as that many.
MOST_COUNTS = 2.0**30


class AttackedCohort:
    """Some clients lie, knowing all honest answers of the round; see simulations.attacks.

    A liar never abstains, trusts itself fully where scores are asked, and has the most rows where counts are.

    Args:
        cohort: the honest network, with an uplink that takes no differences.
        attackers: names.
        attack: what they send.
        seed: of the attack's own draws.
        proxy_rows: rows of the proxy set.
    """

    def __init__(self, cohort: Cohort, attackers: Sequence[str], attack: Attack, seed: int, proxy_rows: int) -> None:
        self._cohort, self._attackers, self._attack = cohort, frozenset(attackers), attack
        self._seed, self._proxy_rows = seed, proxy_rows

    @property
    def clients(self) -> Sequence[str]:
        """Everybody, by name."""
        return self._cohort.clients

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """The honest answers as they come, then the lies. A liar whose own model cannot answer does not lie either."""
        decoded = {
            id(blob): decode_plan(blob, self._proxy_rows) for blob in {id(b): b for b in plans.values()}.values()
        }
        honest: list[ClientReport] = []
        liars: list[ClientReport] = []
        for reply in self._cohort.ask(plans):
            checked = (
                reply.payload
                if isinstance(reply.payload, Failure)
                else check_answer(reply.client, reply.payload, decoded[id(plans[reply.client])])
            )
            if isinstance(checked, Failure):
                yield reply
            elif reply.client in self._attackers:
                liars.append(checked.report)
            else:
                honest.append(checked.report)
                yield reply
        for own in sorted(liars, key=lambda report: report.client):
            plan = decoded[id(plans[own.client])]
            yield Reply(own.client, self._lie(own, plan, honest, len(liars)))

    def _lie(self, own: ClientReport, plan: RoundPlan, honest: Sequence[ClientReport], attackers: int) -> bytes:
        rows, said = plan.ask_rows, _on(plan.ask_rows, honest, plan.classes)
        scene = Scene(
            honest=said,
            own=_told(own.soft_labels, rows, said.mean(axis=0) if len(honest) else _uniform(rows, plan.classes)),
            teacher=_last_teacher(plan),
            attackers=attackers,
            clients=len(honest) + attackers,
            round=plan.round,
            rows=rows,
        )
        rng = np.random.default_rng(stream_seed(self._seed, "attack", plan.round, own.client))
        logits = self._attack.logits(scene, rng).astype(np.float32)
        symbols = link_named(plan.uplink).codec.symbols(logits, rows)
        sent = ClientReport(
            own.client,
            plan.round,
            SoftLabels.from_logits(rows, _uniform(rows, plan.classes)),  # the symbols are sent, and may be no labels
            scores=np.ones(len(rows)) if "scores" in plan.wants else None,
            counts=np.full(plan.classes, MOST_COUNTS) if "counts" in plan.wants else None,
        )
        return encode_report(sent, plan, symbols=symbols)


class LateCohort:
    """Some clients answer a fixed number of rounds late.

    Args:
        cohort: the network; it carries out every plan at once.
        late: names.
        rounds: how many rounds later their answers come.
    """

    def __init__(self, cohort: Cohort, late: Sequence[str], rounds: int) -> None:
        self._cohort, self._late, self._rounds = cohort, frozenset(late), rounds
        self._held: list[tuple[int, Reply]] = []
        self._round = 0

    @property
    def clients(self) -> Sequence[str]:
        """Everybody, by name."""
        return self._cohort.clients

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """Answers whose time has come, then those of this round; who is late is said to be late."""
        self._round += 1
        due = [reply for when, reply in self._held if when <= self._round]
        self._held = [(when, reply) for when, reply in self._held if when > self._round]
        yield from due
        for reply in self._cohort.ask(plans):
            if reply.client not in self._late or isinstance(reply.payload, Failure):
                yield reply
                continue
            self._held.append((self._round + self._rounds, replace(reply, round=plan_round(plans[reply.client]))))
            yield Reply(reply.client, Failure(reply.client, "late", f"its answer comes {self._rounds} rounds later"))


class GrowingCohort:
    """Some clients are not there before a round.

    Args:
        cohort: the network.
        members: the clients that a round may ask, by its number.
        done: rounds that were finished before.
    """

    def __init__(self, cohort: Cohort, members: Callable[[int], Sequence[str]], done: int) -> None:
        self._cohort, self._members, self._next = cohort, members, done + 1

    @property
    def clients(self) -> Sequence[str]:
        """Everybody who is there in the next round, by name."""
        return self._members(self._next)

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        """One exchange."""
        self._next += 1
        return self._cohort.ask(plans)


def liars_of(config: ExperimentConfig, names: Sequence[str]) -> list[str]:
    """The clients that attack; none without an attack.

    Raises:
        ValueError: a name that nobody has, or more than there are.
    """
    return [] if config.attack is None else some_clients(names, config.attack.clients, config.federation.seed, LIARS)


def late_of(config: ExperimentConfig, names: Sequence[str]) -> list[str]:
    """The clients whose answers come late; none without stragglers."""
    share = config.stragglers.share
    return some_clients(names, share, config.federation.seed, "stragglers") if share else []


def there(config: ExperimentConfig, names: Sequence[str], round_: int) -> list[str]:
    """The clients that a round may ask, sorted."""
    later = newcomers_of(config, names) if round_ < config.newcomers.round else []
    return sorted(set(names) - set(later))


def newcomers_of(config: ExperimentConfig, names: Sequence[str]) -> list[str]:
    """The clients that join later; none without newcomers, and never all."""
    share = config.newcomers.share
    return some_clients(names, share, config.federation.seed, "newcomers")[: len(names) - 1] if share else []


def some_clients(names: Sequence[str], wanted: int | float | tuple[str, ...], seed: int, purpose: str) -> list[str]:
    """So many clients, such a share of them but at least one, or those named; drawn by seed and purpose, sorted.

    Raises:
        ValueError: a name that nobody has, or more than there are.
    """
    if isinstance(wanted, tuple):
        if unknown := sorted(set(wanted) - set(names)):
            raise ValueError(f"clients names {unknown[0]!r}, and there are {names[0]} to {names[-1]}")
        return sorted(set(wanted))
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(names)))
    if count > len(names):
        raise ValueError(f"clients={count} must be at most {len(names)}: there are no more")
    rng = np.random.default_rng(stream_seed(seed, purpose))
    return sorted(rng.permutation(sorted(names))[:count].tolist())


def rehearse(attack: Attack, uplink: str, classes: int) -> None:
    """Try an attack on one row, so that what cannot be is refused before the first round.

    Raises:
        ValueError: its settings do not fit so many classes, or the uplink cannot carry what it sends.
    """
    votes = np.full((2, 1, classes), 1.0 / classes)
    sent = attack.logits(Scene(votes, votes[0], votes[0], 1, 3, 1), np.random.default_rng(0))
    distribution = np.isfinite(sent).all() and abs(np.logaddexp.reduce(sent, axis=1)).max() < 1e-3
    if not distribution and not isinstance(link_named(uplink).codec, Float32Codec | Float16):
        raise ValueError(f"it sends what is no distribution, and strategy.uplink={uplink!r} can carry nothing else")


def _on(rows: Int64, honest: Sequence[ClientReport], classes: int) -> Float64:
    """[voters, n, classes] what honest clients said of these rows; where one abstained the mean of the others'.

    So the mean of all is that of who voted, and no vote that was never cast does more harm than one that was.
    """
    ordered = sorted(honest, key=lambda report: report.client)
    if not ordered:
        return np.empty((0, len(rows), classes))
    nothing = np.zeros((len(rows), classes))
    told = np.stack([_told(report.soft_labels, rows, nothing) for report in ordered])
    voted = np.stack([np.isin(rows, report.soft_labels.rows) for report in ordered])[:, :, None]
    voters = voted.sum(axis=0)
    return np.where(voted, told, np.where(voters > 0, told.sum(axis=0) / np.maximum(voters, 1), 1.0 / classes))


def _last_teacher(plan: RoundPlan) -> Float64 | None:
    """[n, classes] what the plan's teacher says of the asked rows; uniform where it says nothing."""
    return _told(plan.teachers[0], plan.ask_rows, _uniform(plan.ask_rows, plan.classes)) if plan.teachers else None


def _uniform(rows: Int64, classes: int) -> Float64:
    return np.full((len(rows), classes), 1.0 / classes)


def _told(labels: SoftLabels, rows: Int64, otherwise: Float64) -> Float64:
    """[n, classes] what labels say of these rows, and `otherwise` where they say nothing."""
    told = otherwise.copy()
    told[np.isin(rows, labels.rows)] = labels.probabilities()[np.isin(labels.rows, rows)]
    return told
