"""What a site remembers of a run beside its model: what travelled on its links, and where it votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from distillation.selectors.selector import Selection
from strategies.tables import Table


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Of one run.

    Attributes:
        told: the labels that plans carried as differences; None where they never did.
        sent: the symbols of this site's own votes; None where the uplink takes no differences.
        competence: the selector's answer, made once a run; None without a selector.
        selector: which selector that was, with its settings, as JSON.
    """

    told: Table | None = None
    sent: Table | None = None
    competence: Selection | None = None
    selector: str = ""

    def tensors(self) -> dict[str, torch.Tensor]:
        """As named tensors."""
        kept: dict[str, torch.Tensor] = {}
        for name, table in (("told", self.told), ("sent", self.sent)):
            if table is not None:
                kept[f"{name}.symbols"] = torch.from_numpy(table.symbols)
                kept[f"{name}.round"] = torch.tensor(table.round)
        if self.competence is not None:
            kept["competence.kept"] = torch.from_numpy(np.ascontiguousarray(self.competence.kept))
            kept["competence.selector"] = torch.tensor(list(self.selector.encode()), dtype=torch.uint8)
            kept["competence.scores"] = torch.from_numpy(np.ascontiguousarray(self.competence.scores))
        return kept

    @classmethod
    def of_tensors(cls, kept: Mapping[str, torch.Tensor]) -> Memory:
        """What tensors() described.

        Raises:
            KeyError: a tensor is missing.
        """
        tables = {
            name: Table(int(kept[f"{name}.round"]), kept[f"{name}.symbols"].numpy())
            for name in ("told", "sent")
            if f"{name}.symbols" in kept
        }
        if "competence.kept" not in kept:
            return cls(tables.get("told"), tables.get("sent"))
        competence = Selection(kept["competence.kept"].numpy(), kept["competence.scores"].numpy())
        selector = kept["competence.selector"].numpy().tobytes().decode()
        return cls(tables.get("told"), tables.get("sent"), competence, selector)
