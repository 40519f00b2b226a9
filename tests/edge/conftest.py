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
        carried: all reply bytes so far.
    """

    run = set_run = create_message = send_and_receive = None  # type: ignore[assignment]

    def __init__(self, configs: Mapping[int, dict[str, Any]]) -> None:
        self.configs = dict(configs)
        self.spoil: dict[int, Spoil] = {}
        self.only = "train.consult"
        self.carried: list[bytes] = []
        self._replies: dict[str, Message | Exception] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.configs)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, request: Message) -> str:
        node = request.metadata.dst_node_id
        if node not in self.configs:
            return ""
        request.metadata.__dict__["_message_id"] = name = uuid.uuid4().hex
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
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]


@pytest.fixture
def make_grid() -> Callable[[Iterable[Path]], FakeGrid]:
    """A function that makes nodes of site files, with ids from 1000 on."""
    return lambda files: FakeGrid({1000 + index: {"site": str(file)} for index, file in enumerate(files)})
