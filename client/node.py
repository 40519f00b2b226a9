"""One site's answer to one plan. The only place that orders check -> distil -> fit -> predict -> release."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from client.config import SiteConfig, load_site
from client.data import load_private
from client.state import SiteState, StateStore
from distillation.data import Proxy, Samples, load_proxy
from distillation.learner import Diverged, TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import device_named, generator, single_thread
from privacy.policy import PolicyError, check
from strategies.messages import ClientReport, Refusal, RoundPlan
from strategies.seeds import stream_seed
from strategies.wire import WireError, decode_plan, encode_refusal, encode_report

log = logging.getLogger("consilium.node")
_NO_RUN = "0" * 32


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
        """
        try:
            plan = decode_plan(blob)
        except WireError as error:
            log.warning("plan refused: %s", error)
            code = "bad_teacher" if error.reason in ("non_finite", "not_simplex") else "unreadable_plan"
            return encode_refusal(Refusal(self.name, 0, code), _NO_RUN)
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
        answered = last.answered if last is not None else 0
        self._check(plan, answered if last is None or last.plan_sha256 != plan_sha256 else answered - 1)
        if last is not None and last.run == plan.run:
            if last.round > plan.round:
                raise PolicyError("stale_round", f"round {plan.round} after round {last.round} was answered")
            if last.round == plan.round and last.plan_sha256 != plan_sha256:
                raise PolicyError("conflicting_plan", f"a second, different plan for round {plan.round}")
            if last.round == plan.round:
                return last.answer
        try:
            if last is None or last.run != plan.run:
                self._learner = self.fresh()
                self._warm_up()
            self._train(plan)
            votes = self._learner.predict(plan.ask_rows)
            answer = encode_report(ClientReport(self.name, plan.round, votes), plan)
            state = SiteState(plan.run, plan.round, plan_sha256, answered + 1, answer, self._learner.state())
            self._store.save(state, after=answered)
        except BaseException:
            self._unsure = True  # half-trained; if even the disk fails now, the next answer begins by reading it
            with suppress(Exception):
                self._recall()
            raise
        # The weights are in the learner and on disk; a third copy would only cost memory.
        self._last = replace(state, learner={})
        return answer

    def _recall(self) -> None:
        """Back to the last answer's model."""
        self._learner, self._last = self._remembered()
        self._unsure = False

    def _check(self, plan: RoundPlan, answered: int) -> None:
        """Compare the plan with the site's own limits and public set, before any model or row is touched."""
        check(self._config.limits(), plan.proxy_sha256, len(plan.ask_rows), answered)
        if plan.proxy_sha256 != self._proxy.sha256:
            raise PolicyError("proxy_not_allowed", "the plan names another proxy set than the one installed here")
        if plan.classes_sha256 != self._proxy.classes_sha256 or plan.classes != len(self._proxy.classes):
            raise PolicyError("wrong_classes", "the plan's class list is not the one of the installed proxy set")
        named = [plan.ask_rows] if plan.teacher is None else [plan.ask_rows, plan.teacher.rows]
        if any(len(rows) == 0 or rows[-1] >= len(self._proxy.samples) for rows in named):
            raise PolicyError("unknown_rows", f"no rows, or rows beyond the proxy's {len(self._proxy.samples)}")

    def _warm_up(self) -> None:
        """What precedes the first vote: FedMD's transfer phases; nothing by default."""
        training = self._config.training
        if training.public_epochs:
            self._learner.fit_public(training.public_epochs, self.rng("public", 0))
        if training.warmup_epochs:
            self._learner.fit(training.warmup_epochs, self.rng("warm-up", 0))

    def _train(self, plan: RoundPlan) -> None:
        """Digest the last teacher, then revisit the private rows, so that the vote shows the model after them."""
        training = self._config.training
        if plan.teacher is not None and training.distil_epochs:
            self._learner.distil(plan.teacher, training.distil_epochs, self.rng("distil", plan.round))
        if training.local_epochs:
            self._learner.fit(training.local_epochs, self.rng("fit", plan.round))

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
            exclude={"distil_epochs", "local_epochs", "public_epochs", "warmup_epochs"}
        )
        return TorchLearner(
            model,
            Training(**settings),
            self._proxy.inputs,
            self._proxy.samples,
            self._private,
            device_named(config.device),
        )

    def _remembered(self) -> tuple[TorchLearner, SiteState | None]:
        """The model as the last answer left it, or a fresh one."""
        learner, state = self.fresh(), self._store.load()
        if state is None:
            return learner, None
        learner.restore(state.learner)
        return learner, replace(state, learner={})
