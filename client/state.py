"""What a site remembers between rounds: one safetensors file, replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from distillation.export import locked, write_atomically

_SCHEMA = "6"
_MEMORY = "memory."


class StateError(RuntimeError):
    """The state file is there and cannot be used; starting anew in silence would lose a model."""


@dataclass(frozen=True, slots=True, eq=False)
class SiteState:
    """After the last answered round, and which plans were counted by now. As it is made: before the first.

    Attributes:
        run, round, plan_sha256: which plan was answered last; "" and 0: none yet.
        counted: plans that private rows were touched for, over all runs, however they ended; the policy's limit is
            compared with it.
        counted_sha256: the last of them.
        failed: the code that it was refused with; "" where it was answered, is under way, or died with its process.
        revision: how often the state was saved: two processes of one site notice each other by it.
        answer: the bytes that were sent; the same plan again gets the same ones.
        spent: what paid for them, see client.account; "" where nothing did.
        ledger: data set whose ledger has paid for an answer; "" where none ever has.
        trained: under what the model has learnt, see client.trained; "" where it has learnt nothing.
        learner: what TorchLearner.state() returned after that answer; empty before the first.
        memory: what else the site remembers of this run, as named tensors: see client.memory.
        sums: this site's part in secure sums, keys and shares among it: see client.secure.
    """

    run: str = ""
    round: int = 0
    plan_sha256: str = ""
    counted: int = 0
    counted_sha256: str = ""
    failed: str = ""
    revision: int = 0
    answer: bytes = b""
    spent: str = ""
    ledger: str = ""
    trained: str = ""
    learner: Mapping[str, torch.Tensor] = field(default_factory=dict)
    memory: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sums: bytes = field(default=b"", repr=False)


class StateStore:
    """A site's state on disk.

    Args:
        folder: created when the first state is saved.
        durable: survive a power cut too (fsync); a simulation only has to survive being killed.

    Guarantees:
        A reader finds the state before or after a save, never a mixture, however the process ends.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._path, self._durable = folder / "state.safetensors", durable

    def load(self) -> SiteState | None:
        """The last saved state, None before the first.

        Raises:
            StateError: the file is broken or of another version.
        """
        told, tensors = self._read()
        if told is None:
            return None
        try:
            sums = tensors.pop("sums").numpy().tobytes()
            return SiteState(
                told["run"],
                int(told["round"]),
                told["plan_sha256"],
                int(told["counted"]),
                told["counted_sha256"],
                told["failed"],
                int(told["revision"]),
                tensors.pop("answer").numpy().tobytes(),
                told["spent"],
                told["ledger"],
                told["trained"],
                {key: value for key, value in tensors.items() if not key.startswith(_MEMORY)},
                {key.removeprefix(_MEMORY): value for key, value in tensors.items() if key.startswith(_MEMORY)},
                sums,
            )
        except (KeyError, ValueError) as error:
            raise self._broken(error) from error

    def save(self, state: SiteState, after: int) -> None:
        """Replace the stored state, unless another process of this site has done so meanwhile.

        Args:
            after: revision of the stored state that this one was made from; 0 where there was none.

        Raises:
            StateError: the stored state is another one; nothing was written.
            OSError: the disk refuses; the stored state is whole.
        """
        told = {
            "schema": _SCHEMA,
            "run": state.run,
            "round": str(state.round),
            "plan_sha256": state.plan_sha256,
            "counted": str(state.counted),
            "counted_sha256": state.counted_sha256,
            "failed": state.failed,
            "revision": str(state.revision),
            "spent": state.spent,
            "ledger": state.ledger,
            "trained": state.trained,
        }
        said = {"answer": state.answer, "sums": state.sums}
        told_bytes = {name: torch.tensor(np.frombuffer(data, np.uint8)) for name, data in said.items()}
        memory = {f"{_MEMORY}{key}": value for key, value in state.memory.items()}
        data = save({**state.learner, **memory, **told_bytes}, told)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.with_name("lock")):
            found, _ = self._read(only_told=True)
            if int((found or {}).get("revision", 0)) != after:
                raise StateError(f"{self._path} was changed by another process of this site: run only one")
            write_atomically(self._path, data, durable=self._durable)

    def _read(self, *, only_told: bool = False) -> tuple[dict[str, str] | None, dict[str, torch.Tensor]]:
        """What the file says in words, None where there is no file, and its tensors."""
        if not self._path.exists():
            return None, {}
        try:
            with safe_open(self._path, framework="pt") as archive:
                told = archive.metadata() or {}
                keys = [] if only_told else list(archive.keys())
                tensors = {key: archive.get_tensor(key) for key in keys}
        except SafetensorError as error:
            raise self._broken(error) from error
        if told.get("schema") != _SCHEMA:
            raise StateError(
                f"{self._path} has schema {told.get('schema')!r} and this version reads {_SCHEMA!r}: finish the run "
                "with the version that wrote it, or delete the file to start this site anew"
            )
        return told, tensors

    def _broken(self, error: Exception) -> StateError:
        return StateError(
            f"{self._path} is broken ({error!r}): restore it from a backup, or delete it to start this site anew"
        )
