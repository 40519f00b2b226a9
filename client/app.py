"""The site's Flower app. In a deployment every message is a process of its own, so nothing slow is imported early."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.edge import REFUSED, Hello, pack, unpack

if TYPE_CHECKING:
    from distillation.data import Proxy

log = logging.getLogger("consilium.node")

app = ClientApp()


@app.train("consult")
def consult(message: Message, context: Context) -> Message:
    """One plan in, one answer out; the site's state lives in its own files, never in `context.state`."""
    try:
        answer = _answer(context.node_config, unpack(message))
    except Exception:  # what escapes is sent to the coordinator with its text
        log.exception("the plan could not be answered")
        return Message(Error(REFUSED, "refused"), reply_to=message)
    return Message(pack(answer), reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """The site's name and the versions that must agree."""
    try:
        from client.config import load_site

        site_file, _ = site_of(context.node_config)
        said = Hello(load_site(site_file).site, version("flwr"), platform.python_version())
    except Exception:  # as above
        log.exception("this site cannot introduce itself")
        return Message(Error(REFUSED, "refused"), reply_to=message)
    return Message(pack(said.encode()), reply_to=message)


def site_of(node_config: Mapping[str, Any]) -> tuple[Path, bool]:
    """The site's file, and whether this is a deployment.

    Args:
        node_config: the node's own: `site`, the path of site.toml; in a simulation Flower's `partition-id`, with
            the folder of all sites in the environment variable CONSILIUM_SITES.

    Raises:
        ValueError: neither is there, or there is no such partition.
    """
    if "site" in node_config:
        return Path(str(node_config["site"])), True
    folder, number = os.environ.get("CONSILIUM_SITES", ""), node_config.get("partition-id")
    if not folder or number is None:
        raise ValueError("no site: start the node with --node-config 'site=\"/path/to/site.toml\"'")
    files = sorted(Path(folder).glob("*/site.toml"), key=lambda file: file.parent.name)
    if not 0 <= int(number) < len(files):
        raise ValueError(f"partition-id={number} must be below {len(files)}, the number of sites in {folder}")
    return files[int(number)], False


def _answer(node_config: Mapping[str, Any], plan: bytes) -> bytes:
    from client.node import Node

    site_file, deployed = site_of(node_config)
    # A simulation's process answers for many sites of one study, which share the proxy set.
    proxy = None if deployed else _shared_proxy(site_file)
    return Node.open(site_file, proxy=proxy, durable=deployed).answer(plan)


def _shared_proxy(site_file: Path) -> Proxy:
    from client.config import load_site

    return _proxy_in(site_file.parent / load_site(site_file).proxy)


@lru_cache(maxsize=1)
def _proxy_in(folder: Path) -> Proxy:
    from distillation.data import load_proxy

    return load_proxy(folder)
