"""One site's answer to one plan. The only place that orders check -> spend -> distil -> fit -> predict -> release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from client.account import Account
from client.book import Book
from client.config import SelectorSection, SiteConfig, load_site
from client.data import load_private
from client.identity import Peers, peers_of
from client.learners import Learner, check_learner, fresh_learner, noisy_votes
from client.limits import check_again, check_plan
from client.marker import taken_out
from client.memory import Memory
from client.promise import Promise, promise_of
from client.refusing import refused, unreadable
from client.secure import SecureSums, noisy_input
from client.state import SiteState, StateError, StateStore
from client.statistics import class_counts, class_tables, competence_of
from client.teaching import empty_table, teacher_of
from client.trained import Trained
from distillation.data import Proxy, Samples, load_proxy
from distillation.ensemble import Ensemble
from distillation.learner import Diverged, TorchLearner
from distillation.runtime import generator, single_thread
from distillation.selectors.selector import Selection
from privacy.policy import PolicyError
from strategies.believing import vote_symbols
from strategies.codecs import link_named
from strategies.envelope import SUM_REQUEST, WireError, kind_of
from strategies.messages import ClientReport, RoundPlan
from strategies.seeds import stream_seed
from strategies.soft_labels import Int64, SoftLabels, UInt8
from strategies.tables import Table
from strategies.wire import decode_plan, encode_report, plan_sha256

_Taught = tuple[SoftLabels | None, Table | None]


class Node:
    """A site: its model, its rows, its limits.

    Args:
        config: the site's own file.
        proxy: the public set.
        private: the site's rows.
        store: where its model survives.
        folder: of the site's file, which the paths in it start from; None: rows in memory, and no promise.
        peers: who may be in its sums, where the site's file names a registry.
        durable: whether the ledger must survive a power cut.

    Raises:
        SiteConfigError: a promise that cannot be kept, or that is not the one that this site has given.
    """

    def __init__(
        self,
        config: SiteConfig,
        proxy: Proxy,
        private: Samples,
        store: StateStore,
        folder: Path | None = None,
        peers: Peers | None = None,
        *,
        durable: bool = True,
    ) -> None:
        self._config, self._proxy, self._private, self._store = config, proxy, private, store
        self._promise = promise_of(config, len(private), len(proxy.classes))
        if self._promise is not None and folder is None:
            raise ValueError(f"site {config.site!r} promises privacy and has no place for a ledger: name its folder")
        self._book = None if folder is None else Book.of(config, self._promise, folder, durable=durable)
        self._trained = Trained.of(config, private, self._promise)
        self._learner, self._last = self._remembered()
        if config.privacy is None and self._last.ledger:
            raise taken_out(self._last.ledger)
        if self._promise is not None and not self._last.trained:
            check_learner(config, proxy, self._promise)
        self._unsure = False
        self._sums = SecureSums(self, config.policy, self._promise, peers)

    @classmethod
    def open(cls, site_file: Path, *, proxy: Proxy | None = None, durable: bool = True) -> Node:
        """The site that a file describes, as its last answer left it.

        Args:
            site_file: TOML of client.config.
            proxy: the public set, if the caller has already read it.
            durable: whether its state must survive a power cut.

        Raises:
            SiteConfigError, DataError, StateError, KeyError, ValueError: one sentence for the site's owner.
        """
        single_thread()
        config, folder = load_site(site_file), site_file.parent
        proxy = proxy or load_proxy(folder / config.proxy)
        private = load_private(folder / config.private, config.target, proxy)
        store = StateStore(folder / config.state, durable=durable)
        return cls(config, proxy, private, store, folder, peers_of(config, folder), durable=durable)

    @property
    def name(self) -> str:
        """The site's name."""
        return self._config.site

    @property
    def config(self) -> SiteConfig:
        """The site's own file."""
        return self._config

    @property
    def learner(self) -> Learner:
        """The site's model; it never leaves, and simulations evaluate it on the side."""
        return self._learner

    @property
    def promise(self) -> Promise | None:
        """What a private record may lose; None where nothing is promised."""
        return self._promise

    def answer(self, blob: bytes) -> bytes:
        """Answer a plan with votes, or with a refusal whose code says why.

        Guarantees:
            Never raises for what a coordinator sends. The last answered plan, sent again, gets the same bytes. A
            failure leaves the model as it was. Nothing but a code from a fixed list leaves in a refusal.
            A plan is counted on disk before a private row is touched, however it then ends, and no more plans are
            counted than the policy allows answers. The plan that was counted last is not counted again: if it failed,
            it gets the same code; if the process died or the disk refused, the same training, from the same model.
        """
        if kind_of(blob) == SUM_REQUEST:
            return self._sums.answer(blob)
        try:
            plan = self.read(blob)
        except WireError as error:
            return unreadable(self.name, error)
        return self.answer_plan(plan, blob)

    def read(self, blob: bytes) -> RoundPlan:
        """A plan for the public set that is installed here.

        Raises:
            WireError: it is none.
        """
        return decode_plan(blob, len(self._proxy.samples), len(self._proxy.classes))

    def answer_plan(self, plan: RoundPlan, blob: bytes, *, summed: bool = False) -> bytes:
        """The answer to a plan that was read; `summed`: it does not leave but masked, in a secure sum."""
        try:
            return self._answer(plan, plan_sha256(blob, plan), summed=summed)
        except Exception as error:  # what escapes would be sent to the coordinator with its text
            return refused(self.name, plan.run, plan.round, error)

    @property
    def last(self) -> SiteState:
        """As the last answer, or step of a sum, left it; without the model."""
        return self._last

    def keep_sums(self, sums: bytes) -> None:
        """Store this site's part in secure sums; model and last answer stay as they are.

        Raises:
            StateError, OSError: nothing was stored.
        """
        if self._unsure:
            self._recall()
        self._keep(sums=sums)

    def _answer(self, plan: RoundPlan, asked_sha256: str, *, summed: bool) -> bytes:
        if self._unsure:
            self._recall()
        last = self._last
        counted = asked_sha256 in (last.plan_sha256, last.counted_sha256)
        check_plan(plan, last.counted - counted, self._config, self._proxy, self._promise, summed=summed)
        with self._account() as account:
            if account is not None:
                account.check(plan.ledger)
                account.settle(last.spent, last.answer)
            if last.run == plan.run:
                if last.round > plan.round:
                    raise PolicyError("stale_round", f"round {plan.round} after round {last.round} was answered")
                if last.round == plan.round and last.plan_sha256 != asked_sha256:
                    raise PolicyError("conflicting_plan", f"a second, different plan for round {plan.round}")
                if last.round == plan.round:
                    return last.answer
            if counted and last.failed:
                raise PolicyError(last.failed, "this very plan ended so before, and is not tried again")
            return self._new_answer(plan, asked_sha256, account, counted=counted, summed=summed)

    def _new_answer(
        self, plan: RoundPlan, asked_sha256: str, account: Account | None, *, counted: bool, summed: bool
    ) -> bytes:
        """An answer that this site's state does not hold."""
        last, paid_by = self._last, "" if account is None else account.data_set
        # What has learnt private rows under another promise, or none, is nothing to go on from.
        trained = self._trained.paid_by(paid_by)
        first = last.run != plan.run or last.trained != trained
        memory = Memory() if last.run != plan.run else Memory.of_tensors(last.memory)
        # Whether a difference fits takes no private row to see. To choose among several teachers takes this site's own
        # votes, and so comes after the count.
        taught = self._taught(plan, memory) if len(plan.teachers) <= 1 else None
        if account is not None and (sent := account.spend(plan, asked_sha256, first=first)) is not None:
            check_again(summed=summed)
            return sent
        try:
            if not counted:
                count = last.counted + 1
                self._keep(counted=count, counted_sha256=asked_sha256, failed="", ledger=paid_by or last.ledger)
            if first:
                self._begin(plan)
            report, memory = self._vote(plan, memory, taught, first=first)
            report = report if account is None else replace(report, ledger=account.head)
            symbols = vote_symbols(report.soft_labels, plan.uplink)
            answer = noisy_input(report, plan, self._promise, self._noise_seed(plan))
            answer = answer or encode_report(report, plan, memory.sent, symbols)
            memory = self._sent(plan, report.soft_labels.rows, symbols, memory)
            self._keep(
                run=plan.run,
                round=plan.round,
                plan_sha256=asked_sha256,
                answer=answer,
                spent="" if account is None else account.spent,
                ledger=paid_by or last.ledger,
                trained=trained,
                learner=self._learner.state(),
                memory=memory.tensors(),
            )
        except BaseException as error:
            self._unsure = True  # half-trained; if even the disk fails now, the next answer begins by reading it
            with suppress(Exception):
                self._recall()
                self._close(asked_sha256, error)
            raise
        if account is not None:
            account.seal(answer)
        return answer

    @contextmanager
    def _account(self) -> Iterator[Account | None]:
        """The site's ledger while one plan is answered; None where nothing is promised."""
        if self._book is None:
            yield None
            return
        with self._book.opened(self._last.ledger, self._last.counted) as account:
            yield account

    def _keep(self, **changed: Any) -> None:
        """Save the state with these fields changed; without `learner` the model is that of the last answer."""
        last = self._last
        # Before the first answer there is no model to keep, and the owner may still name another.
        changed.setdefault("learner", self._learner.state() if last.trained else {})
        state = replace(last, revision=last.revision + 1, **changed)
        self._store.save(state, after=last.revision)
        # The weights are in the learner and on disk; a third copy would only cost memory.
        self._last = replace(state, learner={})

    def _close(self, asked_sha256: str, error: BaseException) -> None:
        """Write down how a counted plan failed, so that it trains only once.

        What the plan has no part in leaves it open: the process ends, the disk refuses, another process was here.
        """
        last = self._last
        is_open = last.counted_sha256 == asked_sha256 != last.plan_sha256 and not last.failed
        if is_open and isinstance(error, Exception) and not isinstance(error, OSError | StateError):
            self._keep(failed="diverged" if isinstance(error, Diverged) else "internal_error")

    def preview(self) -> tuple[Selection, TorchLearner]:
        """A fresh model after one local training, and where its selector would vote: nothing is stored, sent or paid.

        Without a [selector] the k-means ratio on the inputs stands in: it says how much the proxy rows are like the
        site's own.
        """
        training = self._config.training
        learner = fresh_learner(self._config, self._proxy, self._private, None)
        assert isinstance(learner, TorchLearner)  # noqa: S101 - without a promise it is
        if training.public_epochs and self._proxy.samples.labels is not None:
            learner.fit_public(training.public_epochs, self.rng("public", 0))
        learner.fit(max(1, training.warmup_epochs + training.local_epochs), self.rng("fit", 1))
        section = self._config.selector or SelectorSection(name="kmeans-ratio")
        return self._competence(section, learner), learner

    def _recall(self) -> None:
        """Back to the last answer's model."""
        self._learner, self._last = self._remembered()
        self._unsure = False

    def _begin(self, plan: RoundPlan) -> None:
        """First weights, and what precedes the first vote: FedMD's transfer phases; nothing by default."""
        training = self._config.training
        self._learner = self.fresh()
        if training.public_epochs:
            self._learner.fit_public(training.public_epochs, self.rng("public", 0))
        if training.warmup_epochs:
            self._learner.fit(training.warmup_epochs, self._private_rng("warm-up", 0, plan))

    def _taught(self, plan: RoundPlan, memory: Memory) -> _Taught:
        return teacher_of(plan, memory.told, len(self._proxy.samples), self._learner.predict)

    def _vote(
        self, plan: RoundPlan, memory: Memory, taught: _Taught | None, *, first: bool
    ) -> tuple[ClientReport, Memory]:
        """Train, then vote: on all asked rows, or where this site is competent if its owner lets that be seen."""
        # A site that is to choose among teachers goes by its last model, also if it begins anew after that.
        teacher, told = taught or self._taught(plan, memory)
        if self._config.training.restart and not first:
            self._begin(plan)
        self._train(plan, teacher)
        memory = replace(memory, told=told)
        counts = class_counts(self._private, len(self._proxy.classes)) if "counts" in plan.wants else None
        if plan.subject == "classes":
            tables = class_tables(self._open_learner, plan.ask_rows)
            return ClientReport(self.name, plan.round, tables, counts=counts), memory
        section = self._config.selector
        wanted = "" if section is None else section.model_dump_json()
        if memory.selector != wanted:  # once a run, after the first fit; and when the site's owner changed it
            competence = None if section is None else self._competence(section, self._open_learner)
            memory = replace(memory, competence=competence, selector=wanted)
        competence = memory.competence
        rows = plan.ask_rows
        if competence is not None and self._config.abstains:
            rows = rows[competence.kept[rows]]
        scores = competence.scores[rows] if competence is not None and "scores" in plan.wants else None
        return ClientReport(self.name, plan.round, self._votes(plan, rows), scores=scores, counts=counts), memory

    def _votes(self, plan: RoundPlan, rows: Int64) -> SoftLabels:
        """What leaves of the model's outputs on proxy rows."""
        promise, learner = self._promise, self._learner
        # Where the noise is split among sites, it is put on when the answer is made.
        if promise is None or promise.training or promise.split or not isinstance(learner, Ensemble):
            return learner.predict(rows)
        return noisy_votes(learner, rows, promise.mechanism, promise.drawn_noise(self._noise_seed(plan)))

    def _noise_seed(self, plan: RoundPlan) -> int:
        return stream_seed(self._config.seed, "noise", self.name, plan.run, plan.round)

    def _sent(self, plan: RoundPlan, rows: Int64, symbols: UInt8, memory: Memory) -> Memory:
        """What the coordinator will hold of this site's votes once the answer has arrived."""
        if not link_named(plan.uplink).delta:
            return memory
        before = memory.sent
        if before is None or before.round != plan.have:  # a key frame: both ends forget what was sent before
            before = empty_table(plan, len(self._proxy.samples), plan.uplink)
        return replace(memory, sent=before.changed(plan.round, rows, symbols))

    def _train(self, plan: RoundPlan, teacher: SoftLabels | None) -> None:
        """Digest the last teacher, then revisit the private rows, so that the vote shows the model after them."""
        training = self._config.training
        if plan.subject == "classes":
            rng, weight = self._private_rng("fit", plan.round, plan), training.table_weight
            self._open_learner.fit(training.local_epochs, rng, tables=teacher, table_weight=weight)
            return
        if teacher is not None and len(teacher.rows) and training.distil_epochs:
            self._learner.distil(teacher, training.distil_epochs, self.rng("distil", plan.round))
        if training.local_epochs:
            self._learner.fit(training.local_epochs, self._private_rng("fit", plan.round, plan))

    @property
    def _open_learner(self) -> TorchLearner:
        """The model of a site that releases statistics of its rows, which none does that promises privacy."""
        assert isinstance(self._learner, TorchLearner)  # noqa: S101 - SiteConfig refuses the one with the other
        return self._learner

    def _competence(self, section: SelectorSection, learner: TorchLearner) -> Selection:
        return competence_of(section, learner, self._config, self._proxy, self._private)

    def rng(self, phase: str, round_: int, *run: str) -> torch.Generator:
        """The site's random stream of one phase of one round, of every run alike or of one.

        Derived, not carried: it is the same after a restart, and needs no state.
        """
        return generator(stream_seed(self._config.seed, phase, self.name, round_, *run))

    def _private_rng(self, phase: str, round_: int, plan: RoundPlan) -> torch.Generator:
        """Of a phase on private rows. With a promise it is this plan's alone: each was charged noise of its own."""
        return self.rng(phase, round_) if self._promise is None else self.rng(phase, plan.round, plan.run)

    def fresh(self) -> Learner:
        """The site's model before its first round, always the same one."""
        return fresh_learner(self._config, self._proxy, self._private, self._promise)

    def _remembered(self) -> tuple[Learner, SiteState]:
        """The model as the last answer left it, or a fresh one where that learnt under another promise."""
        learner, state = self.fresh(), self._store.load() or SiteState()
        if not self._trained.goes_on_from(state.trained):
            return learner, replace(state, learner={}, trained="")
        learner.restore(state.learner)
        return learner, replace(state, learner={})
