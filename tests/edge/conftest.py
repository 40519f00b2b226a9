from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from distillation.data import load_proxy
from distillation.learner import Training
from server.app import FlowerCohort
from server.config import FederationConfig, StudentSettings
from server.exchange import Exchange

Spoil = Callable[[Message, Message], Message | None]


@pytest.fixture(autouse=True)
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Message needs the identity of a run."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class FakeGrid(Grid):
    """Nodes without a network: every message is copied through protobuf, as a real one would be.

    Attributes:
        configs: node_config of each node.
        spoil: what becomes of a node's replies, as (request, reply) -> reply or None for silence.
        slow: nodes whose replies cannot be pulled yet.
        carried: all reply bytes so far.
    """

    run = set_run = create_message = send_and_receive = None  # type: ignore[assignment]

    def __init__(self, configs: Mapping[int, dict[str, Any]]) -> None:
        self.configs = dict(configs)
        self.spoil: dict[int, Spoil] = {}
        self.slow: set[int] = set()
        self.only = "train.consult"
        self.carried: list[bytes] = []
        self._replies: dict[str, Message] = {}
        self._asked: dict[str, int] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.configs)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, request: Message) -> str:
        node = request.metadata.dst_node_id
        if node not in self.configs:
            return ""
        request.metadata.__dict__["_message_id"] = name = uuid.uuid4().hex
        self._asked[name] = node
        received = message_from_proto(message_to_proto(request))
        try:
            reply: Message | None = app(received, Context(1, node, self.configs[node], RecordDict(), {}))
        except Exception as error:  # what Flower does with it
            reply = Message(Error(2, str(error)), reply_to=received)
        if node in self.spoil and request.metadata.message_type == self.only:
            reply = self.spoil[node](received, reply)
        if reply is not None:
            told = message_to_proto(reply)
            self.carried.append(told.SerializeToString())
            self._replies[name] = message_from_proto(told)
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ready = [name for name in message_ids if name in self._replies and self._asked[name] not in self.slow]
        return [self._replies.pop(name) for name in ready]


@pytest.fixture
def make_grid() -> Callable[[Iterable[Path]], FakeGrid]:
    """A function that makes nodes of site files, with ids from 1000 on."""
    return lambda files: FakeGrid({1000 + index: {"site": str(file)} for index, file in enumerate(files)})


def _federation(site_file: Path, **changed: Any) -> FederationConfig:
    folder = site_file.parent.parent.parent
    proxy = load_proxy(folder / "proxy")
    settings = {
        "run": "ab" * 16,
        "seed": 3,
        "proxy_sha256": proxy.sha256,
        "classes_sha256": proxy.classes_sha256,
        "classes": 3,
        "proxy_rows": 60,
        "uplink": "float16",
        "downlink": "float16",
        "rows_per_round": 20,
        "quorum": changed.pop("quorum", 0.5),
        "participation": 1.0,
        **changed.pop("settings", {}),
    }
    exchange = Exchange(**settings)
    told: dict[str, Any] = {
        "exchange": exchange,
        "rounds": 3,
        "clients": 3,
        "aggregator": "era",
        "aggregator_settings": {"temperature": 0.1},
        "student": StudentSettings(
            model="linear",
            training=Training("sgd", 0.1, 0.1, 0.0, 0.0, 10, "kl", 1.0),
            distil_epochs=1,
            best_metric="accuracy",
        ),
        "proxy": str(folder / "proxy"),
        "test": str(folder / "test.safetensors"),
        "device": "cpu",
        "timeout_s": 1.0,
    }
    return FederationConfig(**{**told, **changed})


@pytest.fixture
def federation() -> Callable[..., FederationConfig]:
    """A function that makes the settings of a federation of the tiny study."""
    return _federation


@pytest.fixture
def gather() -> Callable[..., FlowerCohort]:
    """A function that gathers the nodes of a grid."""

    def go(grid: Any, clients: int = 3, timeout_s: float = 1.0, patience: int = 0) -> FlowerCohort:
        return FlowerCohort.gather(grid, clients, timeout_s, poll_s=0.01, patience=patience)

    return go
