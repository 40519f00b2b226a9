"""What a site remembers between rounds: one safetensors file, replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from distillation.export import locked, write_atomically

_SCHEMA = "2"
_MEMORY = "memory."


class StateError(RuntimeError):
    """The state file is there and cannot be used; starting anew in silence would lose a model."""


@dataclass(frozen=True, slots=True, eq=False)
class SiteState:
    """After one answered round.

    Attributes:
        run, round, plan_sha256: which plan was answered.
        answered: answers so far, over all runs; the policy's limit is compared with it.
        answer: the bytes that were sent; the same plan again gets the same ones.
        learner: what TorchLearner.state() returned.
        memory: what else the site remembers of this run, as named tensors: see client.memory.
    """

    run: str
    round: int
    plan_sha256: str
    answered: int
    answer: bytes
    learner: Mapping[str, torch.Tensor]
    memory: Mapping[str, torch.Tensor] = field(default_factory=dict)


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
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as archive:
                told = archive.metadata() or {}
                tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118 - not a mapping
            if told.get("schema") != _SCHEMA:
                raise StateError(f"{self._path} has schema {told.get('schema')!r}; this version reads {_SCHEMA!r}")
            answer = tensors.pop("answer").numpy().tobytes()
            return SiteState(
                told["run"],
                int(told["round"]),
                told["plan_sha256"],
                int(told["answered"]),
                answer,
                {key: value for key, value in tensors.items() if not key.startswith(_MEMORY)},
                {key.removeprefix(_MEMORY): value for key, value in tensors.items() if key.startswith(_MEMORY)},
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise StateError(
                f"{self._path} is broken ({error!r}): restore it from a backup, or delete it to start this site anew"
            ) from error

    def save(self, state: SiteState, after: int) -> None:
        """Replace the stored state, unless another process of this site has done so meanwhile.

        Args:
            after: answers that the stored state had when this answer was begun; 0 where there was none.

        Raises:
            StateError: the stored state is another one; nothing was written.
            OSError: the disk refuses; the stored state is whole.
        """
        answer = torch.frombuffer(bytearray(state.answer), dtype=torch.uint8)
        told = {
            "schema": _SCHEMA,
            "run": state.run,
            "round": str(state.round),
            "plan_sha256": state.plan_sha256,
            "answered": str(state.answered),
        }
        memory = {f"{_MEMORY}{key}": value for key, value in state.memory.items()}
        data = save({**state.learner, **memory, "answer": answer}, told)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.with_name("lock")):
            found = self.load()
            if (found.answered if found else 0) != after:
                raise StateError(f"{self._path} was changed by another process of this site: run only one")
            write_atomically(self._path, data, durable=self._durable)
