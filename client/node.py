"""One site's answer to one plan. The only place that orders check -> count -> distil -> fit -> predict -> release."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.config import SelectorSection, SiteConfig, load_site
from client.data import load_private
from client.memory import Memory
from client.state import SiteState, StateError, StateStore
from client.teaching import empty_table, teacher_of
from distillation.data import Proxy, Samples, load_proxy
from distillation.learner import Diverged, TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import device_named, generator, single_thread
from distillation.selectors import build_selector, selector_features
from distillation.selectors.selector import Selection
from privacy.policy import PolicyError, check
from strategies.believing import vote_symbols
from strategies.codecs import link_named
from strategies.envelope import WireError
from strategies.messages import ClientReport, Refusal, RoundPlan
from strategies.seeds import stream_seed
from strategies.soft_labels import Float64, Int64, SoftLabels, UInt8
from strategies.tables import Table
from strategies.wire import NO_RUN, decode_plan, encode_refusal, encode_report

log = logging.getLogger("consilium.node")
_Taught = tuple[SoftLabels | None, Table | None]
# What is wrong with a plan that cannot be read, as a refusal's code; anything else is unreadable.
_UNREADABLE = {
    "non_finite": "bad_teacher",
    "not_simplex": "bad_teacher",
    "rows": "unknown_rows",
    "class_list": "wrong_classes",
}


class Node:
    """A site: its model, its rows, its limits.

    Args:
        config: the site's own file.
        proxy: the public set.
        private: the site's rows.
        store: where its model survives.
    """

    def __init__(self, config: SiteConfig, proxy: Proxy, private: Samples, store: StateStore) -> None:
        self._config, self._proxy, self._private, self._store = config, proxy, private, store
        self._learner, self._last = self._remembered()
        self._unsure = False

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
        return cls(config, proxy, private, StateStore(folder / config.state, durable=durable))

    @property
    def name(self) -> str:
        """The site's name."""
        return self._config.site

    @property
    def config(self) -> SiteConfig:
        """The site's own file."""
        return self._config

    @property
    def learner(self) -> TorchLearner:
        """The site's model; it never leaves, and simulations evaluate it on the side."""
        return self._learner

    def answer(self, blob: bytes) -> bytes:
        """Answer a plan with votes, or with a refusal whose code says why.

        Guarantees:
            Never raises for what a coordinator sends. The last answered plan, sent again, gets the same bytes. A
            failure leaves the model as it was. Nothing but a code from a fixed list leaves in a refusal.
            A plan is counted on disk before a private row is touched, however it then ends, and no more plans are
            counted than the policy allows answers. The plan that was counted last is not counted again: if it failed,
            it gets the same code; if the process died or the disk refused, the same training, from the same model.
        """
        try:
            plan = decode_plan(blob, len(self._proxy.samples), len(self._proxy.classes))
        except WireError as error:
            log.warning("plan refused: %s", error)
            code = _UNREADABLE.get(error.reason, "unreadable_plan")
            return encode_refusal(Refusal(self.name, 0, code), NO_RUN)
        try:
            return self._answer(plan, hashlib.sha256(blob).hexdigest())
        except PolicyError as error:
            log.warning("round %d refused: %s", plan.round, error)
            code = error.code
        except Diverged as error:
            log.error("round %d failed: %s", plan.round, error)
            code = "diverged"
        except OSError as error:
            log.error("round %d failed: the site's disk refused (%s)", plan.round, error)
            code = "storage_error"
        except Exception:  # what escapes would be sent to the coordinator with its text
            log.exception("round %d failed", plan.round)
            code = "internal_error"
        return encode_refusal(Refusal(self.name, plan.round, code), plan.run)

    def _answer(self, plan: RoundPlan, plan_sha256: str) -> bytes:
        if self._unsure:
            self._recall()
        last = self._last
        counted = plan_sha256 in (last.plan_sha256, last.counted_sha256)
        self._check(plan, last.counted - counted)
        if last.run == plan.run:
            if last.round > plan.round:
                raise PolicyError("stale_round", f"round {plan.round} after round {last.round} was answered")
            if last.round == plan.round and last.plan_sha256 != plan_sha256:
                raise PolicyError("conflicting_plan", f"a second, different plan for round {plan.round}")
            if last.round == plan.round:
                return last.answer
        if counted and last.failed:
            raise PolicyError(last.failed, "this very plan ended so before, and is not tried again")
        first = last.run != plan.run
        memory = Memory() if first else Memory.of_tensors(last.memory)
        # Whether a difference fits takes no private row to see. To choose among several teachers takes this site's own
        # votes, and so comes after the count.
        taught = self._taught(plan, memory) if len(plan.teachers) <= 1 else None
        try:
            if not counted:
                self._keep(counted=last.counted + 1, counted_sha256=plan_sha256, failed="")
            if first:
                self._begin()
            report, memory = self._vote(plan, memory, taught, first=first)
            symbols = vote_symbols(report.soft_labels, plan.uplink)
            answer = encode_report(report, plan, memory.sent, symbols)
            memory = self._sent(plan, report.soft_labels.rows, symbols, memory)
            self._keep(
                run=plan.run,
                round=plan.round,
                plan_sha256=plan_sha256,
                answer=answer,
                learner=self._learner.state(),
                memory=memory.tensors(),
            )
        except BaseException as error:
            self._unsure = True  # half-trained; if even the disk fails now, the next answer begins by reading it
            with suppress(Exception):
                self._recall()
                self._close(plan_sha256, error)
            raise
        return answer

    def _keep(self, **changed: Any) -> None:
        """Save the state with these fields changed; without `learner` the model is that of the last answer."""
        last = self._last
        # Before the first answer there is no model to keep, and the owner may still name another.
        changed.setdefault("learner", self._learner.state() if last.plan_sha256 else {})
        state = replace(last, revision=last.revision + 1, **changed)
        self._store.save(state, after=last.revision)
        # The weights are in the learner and on disk; a third copy would only cost memory.
        self._last = replace(state, learner={})

    def _close(self, plan_sha256: str, error: BaseException) -> None:
        """Write down how a counted plan failed, so that it trains only once.

        What the plan has no part in leaves it open: the process ends, the disk refuses, another process was here.
        """
        last = self._last
        is_open = last.counted_sha256 == plan_sha256 != last.plan_sha256 and not last.failed
        if is_open and isinstance(error, Exception) and not isinstance(error, OSError | StateError):
            self._keep(failed="diverged" if isinstance(error, Diverged) else "internal_error")

    def preview(self) -> tuple[Selection, TorchLearner]:
        """A fresh model after one local training, and where its selector would vote: nothing is stored or sent.

        Without a [selector] the k-means ratio on the inputs stands in: it says how much the proxy rows are like the
        site's own.
        """
        learner, training = self.fresh(), self._config.training
        if training.public_epochs and self._proxy.samples.labels is not None:
            learner.fit_public(training.public_epochs, self.rng("public", 0))
        learner.fit(max(1, training.warmup_epochs + training.local_epochs), self.rng("fit", 1))
        section = self._config.selector or SelectorSection(name="kmeans-ratio")
        return self._competence(section, learner), learner

    def _recall(self) -> None:
        """Back to the last answer's model."""
        self._learner, self._last = self._remembered()
        self._unsure = False

    def _check(self, plan: RoundPlan, answered: int) -> None:
        """Compare the plan with the site's own limits and public set, before any model or row is touched."""
        releases = [*plan.wants, *(["class-tables"] if plan.subject == "classes" else [])]
        check(self._config.limits(), plan.proxy_sha256, len(plan.ask_rows), answered, releases)
        if plan.proxy_sha256 != self._proxy.sha256:
            raise PolicyError("proxy_not_allowed", "the plan names another proxy set than the one installed here")
        if plan.classes_sha256 != self._proxy.classes_sha256 or plan.classes != len(self._proxy.classes):
            raise PolicyError("wrong_classes", "the plan's class list is not the one of the installed proxy set")
        if "scores" in plan.wants and (self._config.selector is None or plan.subject == "classes"):
            raise PolicyError("unsupported", "scores are of proxy rows, and only a site with a [selector] has them")
        if len(plan.teachers) > 1 and plan.subject == "classes":
            raise PolicyError("unsupported", "among several class tables there is no nearest one")

    def _begin(self) -> None:
        """First weights, and what precedes the first vote: FedMD's transfer phases; nothing by default."""
        training = self._config.training
        self._learner = self.fresh()
        if training.public_epochs:
            self._learner.fit_public(training.public_epochs, self.rng("public", 0))
        if training.warmup_epochs:
            self._learner.fit(training.warmup_epochs, self.rng("warm-up", 0))

    def _taught(self, plan: RoundPlan, memory: Memory) -> _Taught:
        return teacher_of(plan, memory.told, len(self._proxy.samples), self._learner.predict)

    def _vote(
        self, plan: RoundPlan, memory: Memory, taught: _Taught | None, *, first: bool
    ) -> tuple[ClientReport, Memory]:
        """Train, then vote: on all asked rows, or where this site is competent if its owner lets that be seen."""
        # A site that is to choose among teachers goes by its last model, also if it begins anew after that.
        teacher, told = taught or self._taught(plan, memory)
        if self._config.training.restart and not first:
            self._begin()
        self._train(plan, teacher)
        memory = replace(memory, told=told)
        counts = self._counts() if "counts" in plan.wants else None
        if plan.subject == "classes":
            return ClientReport(self.name, plan.round, self._tables(plan), counts=counts), memory
        section = self._config.selector
        wanted = "" if section is None else section.model_dump_json()
        if memory.selector != wanted:  # once a run, after the first fit; and when the site's owner changed it
            competence = None if section is None else self._competence(section, self._learner)
            memory = replace(memory, competence=competence, selector=wanted)
        competence = memory.competence
        rows = plan.ask_rows
        if competence is not None and self._config.abstains:
            rows = rows[competence.kept[rows]]
        scores = competence.scores[rows] if competence is not None and "scores" in plan.wants else None
        votes = self._learner.predict(rows)
        return ClientReport(self.name, plan.round, votes, scores=scores, counts=counts), memory

    def _tables(self, plan: RoundPlan) -> SoftLabels:
        """Mean outputs on the private rows of each asked class that there are rows of."""
        tables = self._learner.class_tables()
        asked = np.isin(tables.rows, plan.ask_rows)
        return SoftLabels(tables.rows[asked], tables.log_probs[asked])

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
            self._learner.fit(
                training.local_epochs, self.rng("fit", plan.round), tables=teacher, table_weight=training.table_weight
            )
            return
        if teacher is not None and len(teacher.rows) and training.distil_epochs:
            self._learner.distil(teacher, training.distil_epochs, self.rng("distil", plan.round))
        if training.local_epochs:
            self._learner.fit(training.local_epochs, self.rng("fit", plan.round))

    def _competence(self, section: SelectorSection, learner: TorchLearner) -> Selection:
        """What a selector says of every proxy row."""
        selector = build_selector(section.name, section.settings)
        private, public = selector_features(section.on, learner, self._private, self._proxy)
        rng = np.random.default_rng(stream_seed(self._config.seed, "selector", self.name))
        return selector.select(private, self._labels(), public, rng)

    def _labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        labels = self._private.labels
        return np.asarray(labels.numpy() if labels is not None else np.empty(0), np.int64)

    def _counts(self) -> Float64:
        """[classes] private rows of each class."""
        return np.bincount(self._labels(), minlength=len(self._proxy.classes)).astype(np.float64)

    def rng(self, phase: str, round_: int) -> torch.Generator:
        """The site's random stream of one phase of one round.

        Derived, not carried: it is the same after a restart, and needs no state.
        """
        return generator(stream_seed(self._config.seed, phase, self.name, round_))

    def fresh(self) -> TorchLearner:
        """The site's model before its first round, always the same one."""
        config = self._config
        model = build_model(
            config.model,
            tuple(self._proxy.inputs.shape),
            len(self._proxy.classes),
            stream_seed(config.seed, "model", config.site),
        )
        settings = config.training.model_dump(
            exclude={"distil_epochs", "local_epochs", "public_epochs", "warmup_epochs", "restart", "table_weight"}
        )
        return TorchLearner(
            model,
            Training(**settings),
            self._proxy.inputs,
            self._proxy.samples,
            self._private,
            device_named(config.device),
        )

    def _remembered(self) -> tuple[TorchLearner, SiteState]:
        """The model as the last answer left it, or a fresh one."""
        learner, state = self.fresh(), self._store.load() or SiteState()
        if state.plan_sha256:
            learner.restore(state.learner)
        return learner, replace(state, learner={})
