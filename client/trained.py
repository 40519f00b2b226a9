"""Under what a site's model has learnt private rows: one that learnt them otherwise is never gone on with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Self

import numpy as np

from client.config import SiteConfig, SiteConfigError
from client.promise import Promise
from distillation.data import Samples
from privacy.mechanisms.pate import Pate


@dataclass(frozen=True, slots=True)
class Trained:
    """As the site's state keeps it.

    Attributes:
        model: a name of distillation.models.
        mechanism: of the promise; "" without one.
        clipping: of dp-sgd, since the model is checked for it; "" elsewhere.
        teachers, rows_sha256: of pate, which deals rows by position: how many teachers, and which rows in which order.
            The digest never leaves the site.
        data_set: whose ledger paid; "" without a promise.
    """

    model: str
    mechanism: str = ""
    clipping: str = ""
    teachers: int = 0
    rows_sha256: str = ""
    data_set: str = ""

    @classmethod
    def of(cls, config: SiteConfig, private: Samples, promise: Promise | None) -> Self:
        """As a site's file has it now; whose ledger pays is known when it is open."""
        if promise is None:
            return cls(config.model)
        clipping = "" if promise.training is None else promise.training.clipping
        if not isinstance(promise.mechanism, Pate):
            return cls(config.model, promise.name, clipping)
        return cls(config.model, promise.name, clipping, promise.mechanism.teachers, rows_sha256(private))

    def paid_by(self, data_set: str) -> str:
        """As text, with whose ledger pays; "" for none."""
        return json.dumps(asdict(replace(self, data_set=data_set)), sort_keys=True)

    def goes_on_from(self, kept: str) -> bool:
        """Whether a model that was kept under this text may be gone on with, as far as is known without a ledger.

        Raises:
            SiteConfigError: it is another model.
        """
        if not kept:
            return False
        before = type(self)(**json.loads(kept))
        if before.model != self.model:
            raise SiteConfigError(
                f"model={self.model!r}, and the site's state holds a {before.model!r}: put its name back, or name "
                "another `state` folder to start this site anew"
            )
        return replace(before, data_set="") == self


def rows_sha256(private: Samples) -> str:
    """Of the rows and labels, in their order."""
    digest = hashlib.sha256()
    for tensor in (private.features, private.labels):
        if tensor is not None:
            values = np.ascontiguousarray(tensor.numpy())
            digest.update(f"{values.dtype.str}{values.shape}".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()
