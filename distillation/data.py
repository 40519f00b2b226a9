"""Arrays on disk: a set of samples, the public proxy bundle, and their identities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from distillation.inputs import Inputs, inputs_from_json, inputs_to_json


class DataError(ValueError):
    """Data that cannot be used; the message names the thing, its value, the bound and the way out."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Rows of a data set as a model's inputs see them before scaling.

    Attributes:
        features: [n, *shape] uint8 or float32.
        labels: [n] int64 class numbers, or None where rows have no label.
    """

    features: torch.Tensor
    labels: torch.Tensor | None

    def __post_init__(self) -> None:
        if self.features.dtype not in (torch.uint8, torch.float32):
            raise DataError(f"features are {self.features.dtype}: uint8 or float32 expected")
        if self.labels is not None and (
            self.labels.dtype != torch.int64 or self.labels.shape != self.features.shape[:1]
        ):
            raise DataError(
                f"labels are {self.labels.dtype}{list(self.labels.shape)}: int64[{len(self.features)}] expected"
            )

    def __len__(self) -> int:
        return len(self.features)


def save_samples(path: Path, samples: Samples) -> None:
    """Write as safetensors: `features` and, where there are any, `labels`."""
    tensors = {"features": samples.features.contiguous()}
    if samples.labels is not None:
        tensors["labels"] = samples.labels.contiguous()
    save_file(tensors, path)


def load_samples(path: Path) -> Samples:
    """Read what save_samples wrote; the file is mapped, so processes on one machine share its pages.

    Raises:
        DataError: no such file, not safetensors, or other tensors than these two.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there: it should be a safetensors file with features and labels")
    try:
        with safe_open(path, framework="pt") as archive:
            tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise DataError(f"{path} is no safetensors file ({error})") from error
    if "features" not in tensors or not set(tensors) <= {"features", "labels"}:
        raise DataError(f"{path} holds {sorted(tensors)}: features and, if there are any, labels expected")
    return Samples(tensors["features"], tensors.get("labels"))


def features_sha256(features: torch.Tensor) -> str:
    """Identity of a proxy set: 64 hex digits over type, shape and content, in row order. Labels do not enter."""
    digest = hashlib.sha256(f"{features.dtype} {list(features.shape)}\n".encode())
    digest.update(features.contiguous().numpy().data)
    return digest.hexdigest()


def classes_sha256(classes: Sequence[str]) -> str:
    """Identity of a class list, order included: 64 hex digits.

    >>> classes_sha256(["cat", "dog"]) == classes_sha256(["dog", "cat"])
    False
    """
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Proxy:
    """The public proxy set as every site and the coordinator install it.

    Attributes:
        samples: the rows; labels only where they are public, too.
        classes: class names; their order is part of the federation's identity.
        inputs: how features become a model's inputs; fitted on these public rows only.
        sha256, classes_sha256: the identities that a plan names.
    """

    samples: Samples
    classes: tuple[str, ...]
    inputs: Inputs
    sha256: str
    classes_sha256: str


def save_proxy(folder: Path, samples: Samples, classes: Sequence[str], inputs: Inputs) -> str:
    """Write `proxy.safetensors` and its manifest `proxy.json` into `folder`; returns the proxy's sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    save_samples(folder / "proxy.safetensors", samples)
    digest = features_sha256(samples.features)
    manifest = {
        "schema": 1,
        "rows": len(samples),
        "proxy_sha256": digest,
        "classes": list(classes),
        "inputs": inputs_to_json(inputs),
    }
    (folder / "proxy.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return digest


def load_proxy(folder: Path, *, verify: bool = True) -> Proxy:
    """Read a proxy bundle.

    Args:
        folder: where save_proxy wrote.
        verify: compute the content's hash again; worker processes of a run that has just written it skip that.

    Raises:
        DataError: a file is missing or broken, or the content is not what the manifest says.
    """
    path = folder / "proxy.json"
    if not path.is_file():
        raise DataError(f"{path} is not there: a proxy set is a folder with proxy.json and proxy.safetensors")
    try:
        manifest = json.loads(path.read_text())
        classes = tuple(str(name) for name in manifest["classes"])
        inputs, said = inputs_from_json(manifest["inputs"]), str(manifest["proxy_sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no proxy manifest ({error!r})") from error
    samples = load_samples(folder / "proxy.safetensors")
    if verify and features_sha256(samples.features) != said:
        raise DataError(f"{folder / 'proxy.safetensors'} is not the set that {path} names: install both anew")
    return Proxy(samples, classes, inputs, said, classes_sha256(classes))
