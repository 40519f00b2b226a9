"""Whose rows a folder of ledgers counts: ledgers that outlive a run go by a site's name, and a seed deals rows anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillation.export import locked, write_atomically
from simulations.config import ConfigError, ExperimentConfig
from simulations.study import Study

_FILE = "deal.json"


def deal_of(config: ExperimentConfig) -> str:
    """What decides which rows are dealt to whom, as far as a configuration says it: equal texts, equal deals."""
    told = {**config.data.model_dump(mode="json"), "seed": config.deal_seed}
    return json.dumps([told, config.federation.clients], sort_keys=True)


def keep_deal(config: ExperimentConfig, study: Study) -> None:
    """Note whose rows the ledgers in `privacy.ledgers` count, or make sure that it is these; elsewhere nothing.

    The first run leaves a digest of each site's private rows and of the proxy set beside the ledgers. The file is as
    private as they are: a digest tells whoever can guess the rows that they are these.

    Raises:
        ConfigError: the ledgers count other rows, nothing says whose, or the folder cannot be written.
    """
    if config.privacy is None or not config.privacy.promises or not config.privacy.ledgers:
        return
    folder, told = Path(config.privacy.ledgers), _told(config, study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "deal.lock"):
            if (folder / _FILE).exists():
                _refuse_another(folder, _read(folder / _FILE), told)
            elif any(folder.glob("*.sqlite")):
                raise ConfigError(
                    f"privacy.ledgers={folder} holds ledgers and no {_FILE}, so that nothing says whose rows they "
                    "count: name another folder"
                )
            else:
                write_atomically(folder / _FILE, (json.dumps(told, indent=1) + "\n").encode(), durable=True)
    except OSError as error:
        raise ConfigError(f"privacy.ledgers={folder} cannot be used ({error.strerror}): name another folder") from None


def _told(config: ExperimentConfig, study: Study) -> dict[str, Any]:
    sites = {name: hashlib.sha256(study.private(name).read_bytes()).hexdigest() for name in study.names}
    return {
        "schema": 1,
        "about_private_rows": True,
        "seed": config.deal_seed,
        "proxy_sha256": study.proxy_sha256,
        "private_sha256": sites,
    }


def _read(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_bytes())
        if told["schema"] != 1:
            raise ValueError(f"schema {told['schema']!r}")
        return {key: told[key] for key in ("seed", "proxy_sha256", "private_sha256")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no deal of this version: put it back, or name another privacy.ledgers") from error


def _refuse_another(folder: Path, kept: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    before, now = kept["private_sha256"], told["private_sha256"]
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    public = kept["proxy_sha256"] != told["proxy_sha256"]
    if not other and not public:
        return
    rows = f"{len(other)} of {len({**before, **now})} sites have other private rows here, {other[0]} is one"
    what = " and ".join([*([rows] if other else []), *(["the public proxy rows are others"] if public else [])])
    raise ConfigError(
        f"privacy.ledgers={folder} counts what the rows of another deal have paid: {what}. Keep [data] and "
        f"federation.clients as they were and set data.seed={kept['seed']}, or name another folder for other rows"
    )
