"""From a configuration to everything that an engine needs: what it asks is checked, data dealt out, sites described."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from client.config import PolicySection, SelectorSection, SiteConfig, TrainingSection, write_site
from client.identity import IDENTITY
from client.promise import check_mechanism
from distillation.data import classes_sha256
from distillation.learner import Training
from distillation.models import MODELS, build_model
from distillation.runtime import device_named
from privacy.ledger import Ledger
from server.config import FederationConfig, StudentSettings
from server.exchange import Exchange
from simulations.attacks import build_attack
from simulations.attacks.attack import Attack
from simulations.attacks.replay import Replay
from simulations.config import ConfigError, ExperimentConfig
from simulations.engines.cohorts import liars_of, rehearse, there
from simulations.prepared import Setup, run_id
from simulations.promises import calibrated, misfits, section_of
from simulations.sections import AttackSection
from simulations.study import Study, prepare_study
from simulations.sums import client_sum_of, register, secure_misfits, split_sum_of
from strategies.aggregator import Aggregator, traits_of
from strategies.aggregators import build_aggregator
from strategies.codecs import Link, link_named
from strategies.selection import participants

_Part = TypeVar("_Part")
# A dead node is noticed by Flower after 50 to 63 s: a shorter exchange would call it late.
SHORTEST_DEPLOYMENT_S = 70.0
# Beside the sites of a study whose votes are summed.
_REGISTRY = "registry.json"


def check_config(config: ExperimentConfig) -> None:
    """What can be refused before any data is read.

    Raises:
        ConfigError: a part that there is not, a setting out of its bounds, or parts that do not fit each other.
        ModuleNotFoundError: the engine needs a package that is not installed.
    """
    rule = _part("strategy.aggregator", lambda: rule_of(config))
    uplink = _part("strategy.uplink", lambda: link_named(config.strategy.uplink))
    downlink = _part("strategy.downlink", lambda: link_named(config.strategy.downlink))
    attack = _part("attack", lambda: attack_of(config))
    _part("federation.device", lambda: device_named(config.federation.device))
    if (selector := _part("client.selector", lambda: _selector(config))) is not None:
        from distillation.selectors import build_selector

        _part("client.selector", lambda: build_selector(selector.name, selector.settings))
    if (promise := section_of(config, "", Path())) is not None:
        _part("privacy", lambda: check_mechanism(promise, config.client.batch_size))
    unfit = (_misfits(config, rule, uplink, downlink, attack), misfits(config, rule), secure_misfits(config, rule))
    for bad, why in chain(*unfit):
        if bad:
            raise ConfigError(why)
    for name, section in (("client", config.client), ("student", config.student)):
        try:
            training_of(section)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    for model in (*config.client.models, config.student.model):
        if model != "auto" and model not in MODELS:
            raise ConfigError(f"unknown model {model!r}; known: auto, {', '.join(sorted(MODELS))}")
    if config.federation.engine == "flower-simulation" and find_spec("ray") is None:
        raise ModuleNotFoundError("the flower-simulation engine needs Ray", name="ray")


def _part(key: str, build: Callable[[], _Part]) -> _Part:
    """A part; where it cannot be, a ConfigError that names the key."""
    try:
        return build()
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{key}: {error.args[0]}") from None


def _misfits(
    config: ExperimentConfig, rule: Aggregator, uplink: Link, downlink: Link, attack: Attack | None
) -> Iterator[tuple[bool, str]]:
    """Parts that are fine alone and do not fit each other: whether that is so here, and what to do about it."""
    strategy, engine, timeout_s = config.strategy, config.federation.engine, config.federation.timeout_s
    named, traits = f"strategy.aggregator {strategy.aggregator.name!r}", traits_of(rule)
    shared_table = strategy.cache_rounds > 0 or downlink.delta
    links = f"strategy.cache_rounds={strategy.cache_rounds} and strategy.downlink={strategy.downlink!r}"
    yield (
        traits.subject == "classes" and strategy.cache_rounds > 0,
        f"{named} asks every class in every round, and strategy.cache_rounds={strategy.cache_rounds} would ask fewer: "
        "set it to 0",
    )
    yield (
        traits.own_teachers and shared_table,
        f"{named} gives clients teachers of their own, and {links} keep one table for all: set cache_rounds=0 and a "
        "downlink without +delta",
    )
    yield (
        (traits.own_teachers or traits.subject == "classes") and config.student.speaks,
        f"{named} gives clients teachers of their own, and student.speaks=true would give them the student's answers: "
        "set it to false",
    )
    yield (
        "scores" in traits.needs and config.client.selector is None,
        f"{named} needs the clients' scores, and without client.selector there are none: set it, for example to "
        '"certainty"',
    )
    yield (
        attack is not None and engine != "in-process",
        f"attack.name={_name_of(config.attack)} goes with the in-process engine only, and "
        f"federation.engine={engine!r}: an attack is never sent to real sites",
    )
    yield (
        attack is not None and uplink.delta,
        f"attack.name={_name_of(config.attack)} needs votes that stand alone, and strategy.uplink={strategy.uplink!r} "
        "sends differences: set an uplink without +delta",
    )
    yield (
        isinstance(_innermost(attack), Replay) and shared_table,
        f"attack.name={_name_of(config.attack)} sends the last teacher back, and {links} send only what changed of "
        "it: set cache_rounds=0 and a downlink without +delta",
    )
    yield (
        config.stragglers.share > 0 and engine != "in-process",
        f"stragglers.share={config.stragglers.share} goes with the in-process engine only, and "
        f"federation.engine={engine!r}: real sites are late by themselves",
    )
    stragglers, federation = config.stragglers, config.federation
    newcomers = config.newcomers
    yield (
        newcomers.share > 0 and engine != "in-process",
        f"newcomers.share={newcomers.share} goes with the in-process engine only, and federation.engine={engine!r}: "
        "real sites join by themselves",
    )
    yield (
        newcomers.share > 0 and newcomers.round > federation.rounds,
        f"newcomers.round={newcomers.round} must be at most federation.rounds={federation.rounds}: nobody would join",
    )
    yield (
        federation.keep_votes and traits.subject == "classes",
        f"federation.keep_votes=true keeps votes for `consilium forget`, and {named} has class tables, which teach no "
        "student anew: set it to false",
    )
    yield (
        stragglers.share > 0 and federation.mode == "async" and stragglers.rounds > federation.patience,
        f"stragglers.rounds={stragglers.rounds} must be at most federation.patience={federation.patience}: an answer "
        "that comes later is never counted",
    )
    yield (
        engine != "in-process" and timeout_s < SHORTEST_DEPLOYMENT_S,
        f"federation.timeout_s = {timeout_s:g} must be at least {SHORTEST_DEPLOYMENT_S:g} with the {engine} engine: "
        "Flower needs up to 63 s to notice a dead node",
    )


def _innermost(attack: Any) -> Any:
    """What attacks at last where attacks stand in each other."""
    while (inner := getattr(attack, "attack", None)) is not None:
        attack = inner
    return attack


def _name_of(part: AttackSection | None) -> str:
    return "" if part is None else repr(part.name)


def check_fits(config: ExperimentConfig, study: Study) -> None:
    """What can be refused only when the sites and the classes are known.

    Raises:
        ConfigError: a link or an attack that does not go with so many classes, attackers that there are not, or fewer
            clients than a row needs.
    """
    strategy, classes = config.strategy, len(study.classes)
    asked = len(participants(0, 1, there(config, study.names, 1), config.federation.participation))
    if isinstance(strategy.row_quorum, int) and strategy.row_quorum > asked:
        raise ConfigError(
            f"strategy.row_quorum={strategy.row_quorum} must be at most {asked}, as many clients as the first round "
            "asks: no row would have voters enough"
        )
    for name, spec in (("uplink", strategy.uplink), ("downlink", strategy.downlink)):
        try:
            link_named(spec).codec.alphabets(classes)
        except ValueError as error:
            raise ConfigError(f"strategy.{name}={spec!r}: {error}") from None
    try:
        liars_of(config, study.names)
        if (attack := attack_of(config)) is not None:
            rehearse(attack, strategy.uplink, classes)
    except ValueError as error:
        raise ConfigError(f"attack.name={_name_of(config.attack)}: {error}") from None


def _selector(config: ExperimentConfig) -> SelectorSection | None:
    """The clients' selector as a site's file has it.

    Raises:
        ValueError: `on` is neither "inputs" nor "model".
    """
    part = config.client.selector
    if part is None:
        return None
    told = {"name": part.name, **part.settings}
    if told.get("on", "inputs") not in ("inputs", "model"):
        raise ValueError(f'client.selector: on={told["on"]!r} must be "inputs" or "model"')
    return SelectorSection.model_validate(told)


def _default_model(study: Study) -> str:
    return "cnn-small" if len(study.shape) == 3 and min(study.shape[1:]) >= 4 else "mlp"


def _built(name: str, study: Study) -> str:
    try:
        build_model(name, tuple(study.shape), len(study.classes), seed=0)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return name


def _models(config: ExperimentConfig, study: Study) -> dict[str, str]:
    dealt = [_default_model(study) if name == "auto" else name for name in config.client.models]
    for name in set(dealt):
        _built(name, study)
    return {name: dealt[index % len(dealt)] for index, name in enumerate(study.names)}


def _student_model(config: ExperimentConfig, study: Study) -> str:
    name = config.student.model
    return _built(_default_model(study) if name == "auto" else name, study)


def _site(
    config: ExperimentConfig, study: Study, name: str, model: str, out: Path, release: Sequence[Any]
) -> SiteConfig:
    client, state, sums = config.client, out.resolve() / "checkpoint" / "sites" / name, config.strategy.secure_sum
    return SiteConfig(
        site=name,
        private="private.safetensors",
        proxy=str(study.proxy),
        state=str(state),
        seed=config.federation.seed,
        device=config.federation.device,
        model=model,
        training=TrainingSection(
            **asdict(training_of(client)),
            distil_epochs=client.distil_epochs,
            local_epochs=client.local_epochs,
            public_epochs=client.public_epochs,
            warmup_epochs=client.warmup_epochs,
            restart=client.restart,
            table_weight=client.table_weight,
        ),
        selector=_selector(config),
        policy=PolicySection(
            proxy_sha256=[study.proxy_sha256],
            max_rows_per_round=max(config.federation.rows_per_round, len(study.classes)),
            max_answers=config.federation.rounds,
            release=list(release),
            secure_sum="require" if sums else "allow",
            sum_registry=str(study.folder.resolve() / _REGISTRY) if sums else "",
            sum_identity=str(state / IDENTITY) if sums else "",
        ),
        privacy=section_of(config, name, state),
    )


def rule_of(config: ExperimentConfig) -> Aggregator:
    """The aggregator that a configuration names.

    Raises:
        KeyError, ValueError: there is no such rule, or it has no such settings.
    """
    return build_aggregator(config.strategy.aggregator.name, config.strategy.aggregator.settings)


def attack_of(config: ExperimentConfig) -> Attack | None:
    """The attack that a configuration names; None without one.

    Raises:
        KeyError, ValueError: there is no such attack, or it has no such settings.
    """
    return None if config.attack is None else build_attack(config.attack.name, config.attack.settings)


def _releases(config: ExperimentConfig, rules: Iterable[Aggregator]) -> list[Any]:
    """What the sites of a simulation release beside votes: what the rules and the selector need, no more."""
    traits = [traits_of(rule) for rule in rules]
    needs = dict.fromkeys(need for each in traits for need in each.needs)
    abstentions = [] if config.client.selector is None else ["abstentions"]
    return [*needs, *abstentions, *(["class-tables"] if any(each.subject == "classes" for each in traits) else [])]


def prepare(config: ExperimentConfig, out: Path, rules: Iterable[Aggregator] = ()) -> Setup:
    """Data dealt out, site files written, the coordinator's settings complete.

    Args:
        rules: what the sites will be asked for votes by, if not by the configuration's own rule.

    Raises:
        ConfigError, DataError: what was asked for cannot be had.
    """
    federation = config.federation
    folder = out.resolve() / "checkpoint" / "study"
    shutil.rmtree(folder, ignore_errors=True)  # of the run that is resumed; it is written anew, the same
    study = prepare_study(config.data, federation.clients, config.deal_seed, folder)
    check_fits(config, study)
    models = _models(config, study)
    student = _student_model(config, study)
    settings = FederationConfig(
        exchange=Exchange(
            run=run_id(config, study.proxy_sha256),
            seed=federation.seed,
            proxy_sha256=study.proxy_sha256,
            classes_sha256=classes_sha256(study.classes),
            classes=len(study.classes),
            proxy_rows=study.proxy_rows,
            uplink=config.strategy.uplink,
            downlink=config.strategy.downlink,
            rows_per_round=federation.rows_per_round,
            quorum=federation.quorum,
            participation=federation.participation,
            row_quorum=config.strategy.row_quorum,
            choice=config.strategy.choice,
            cache_rounds=config.strategy.cache_rounds,
            subject=traits_of(rule_of(config)).subject,
            mode=federation.mode,
            staleness=federation.staleness,
            patience=federation.patience,
            secure_sum=config.strategy.secure_sum,
        ),
        rounds=federation.rounds,
        clients=federation.clients,
        aggregator=config.strategy.aggregator.name,
        aggregator_settings=config.strategy.aggregator.settings,
        student=StudentSettings(
            model=student,
            training=training_of(config.student),
            distil_epochs=config.student.distil_epochs,
            best_metric=config.student.best_metric,
            restart=config.student.restart,
            speaks=config.student.speaks,
        ),
        proxy=str(study.proxy),
        test=str(study.test),
        device=federation.device,
        timeout_s=federation.timeout_s,
        keep_votes=federation.keep_votes,
        client_sum=client_sum_of(config),
        split_sum=split_sum_of(config),
    )
    if (noise := settings.client_sum) is not None and Path(noise.ledger).is_file():
        Ledger.open_or_create(Path(noise.ledger), noise.terms).close()  # refuses another promise
    setup = Setup(config, study, settings, models, out)
    if config.strategy.secure_sum:
        register(setup.states, study.folder / _REGISTRY)
    release = _releases(config, tuple(rules) or (rule_of(config),))
    for name, path in setup.site_files.items():
        site = _site(config, study, name, models[name], out, release)
        write_site(path, calibrated(site, setup.sizes[name], len(study.classes)))
    return setup


def training_of(section: Any) -> Training:
    """The learner's settings of a [client] or [student] section."""
    return Training(
        section.optimizer,
        section.lr,
        section.distil_lr or section.lr,
        section.momentum,
        section.weight_decay,
        section.batch_size,
        section.distil_loss,
        section.temperature,
    )
