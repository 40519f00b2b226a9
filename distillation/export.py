"""The student as files that outlive the run: weights as safetensors, everything else as JSON."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from distillation.data import DataError
from distillation.inputs import ImageInputs, Inputs, TableInputs, inputs_from_json, inputs_to_json
from distillation.models import build_model, parameter_count
from strategies.soft_labels import Float64, log_softmax

if TYPE_CHECKING:
    import pandas as pd


# Rows that are predicted at a time.
_BATCH = 500


@dataclass(frozen=True, slots=True)
class StudentCard:
    """What a reader of the weights must know.

    Attributes:
        model: a key of MODELS.
        classes: names, in the order of the outputs.
        round: the round after which these weights were taken.
        accuracy, macro_f1: on the held-out test rows; None where nobody could judge.
        proxy_sha256: the public rows it was distilled on.
        privacy: what the records that its teachers learnt were promised, as a whole sentence; "" where nothing was, or
            where the coordinator alone wrote the card and cannot know.
        on_the_side: what of this card that promise does not pay for; "" where there is none.
    """

    model: str
    classes: tuple[str, ...]
    round: int
    accuracy: float | None
    macro_f1: float | None
    proxy_sha256: str
    privacy: str = ""
    on_the_side: str = ""


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace `path` as a whole: a reader sees the old bytes or the new ones, never a part.

    Args:
        durable: also survive a power cut (fsync of file and folder).
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if durable and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Replace a CSV file: six decimals, empty cells for None."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(f"{cell:.6f}" if isinstance(cell, float) else ("" if cell is None else cell) for cell in row)
    write_atomically(path, text.getvalue().encode())


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; it is let go when the context or the process ends, however that happens.

    Raises:
        BlockingIOError: `wait` is false and another process holds it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: one process a folder is then the owner's promise
        yield
        return
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def save_student(folder: Path, stem: str, model: nn.Module, inputs: Inputs, card: StudentCard) -> None:
    """Write `<stem>.safetensors` and `<stem>.json` into `folder`."""
    weights = save({key: value.cpu().contiguous() for key, value in model.state_dict().items()})
    described = {
        "schema": 1,
        **asdict(card),
        "parameters": parameter_count(model),
        "inputs": inputs_to_json(inputs),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    write_atomically(folder / f"{stem}.safetensors", weights, durable=True)
    text = json.dumps(described, indent=1, allow_nan=False) + "\n"
    write_atomically(folder / f"{stem}.json", text.encode(), durable=True)


def state_privacy(folder: Path, stem: str, statement: str, on_the_side: str) -> None:
    """Write what was promised into a student's card, and what of the card it does not pay for.

    Does nothing where there is no such student.

    Raises:
        OSError: the disk refuses; the card is as before.
    """
    path = folder / f"{stem}.json"
    if path.is_file():
        told = {**json.loads(path.read_text()), "privacy": statement, "on_the_side": on_the_side}
        write_atomically(path, (json.dumps(told, indent=1, allow_nan=False) + "\n").encode(), durable=True)


class Student:
    """A student read back from its files."""

    def __init__(self, model: nn.Module, inputs: Inputs, card: StudentCard) -> None:
        self._model, self._inputs, self.card = model.eval(), inputs, card

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the outputs."""
        return self.card.classes

    def predict_proba(self, rows: pd.DataFrame | NDArray[Any]) -> Float64:
        """[n, classes] probabilities.

        Args:
            rows: for a table, a data frame with the columns that it was trained on; for images, [n, channels,
                height, width] (or [n, height, width] of grey ones) in the value range of the training files.

        Raises:
            ValueError: a column is missing, the shape is another one, or a value is not finite.
        """
        if isinstance(self._inputs, TableInputs) and not isinstance(rows, np.ndarray):
            features: NDArray[Any] = self._inputs.encode(rows)
        else:
            features = np.asarray(rows)
        if isinstance(self._inputs, ImageInputs) and features.ndim == 3:
            features = features[:, None]
        if features.shape[1:] != tuple(self._inputs.shape):
            raise ValueError(f"rows have shape {list(features.shape[1:])}: {list(self._inputs.shape)} expected")
        if features.dtype.kind == "f" and not np.isfinite(features).all():
            bad = np.flatnonzero(~np.isfinite(features.reshape(len(features), -1)).all(axis=1))
            raise ValueError(f"{len(bad)} rows hold a value that is not finite, the first is row {bad[0]}: mend them")
        with torch.inference_mode():
            parts = torch.from_numpy(np.ascontiguousarray(features)).split(_BATCH)
            logits = torch.cat([self._model(self._inputs.tensor(part)) for part in parts])
        return np.exp(log_softmax(logits.numpy()))

    def predict(self, rows: pd.DataFrame | NDArray[Any]) -> list[str]:
        """The likeliest class of each row, by name."""
        return [self.classes[index] for index in self.predict_proba(rows).argmax(axis=1)]


def load_student(path: Path | str) -> Student:
    """Read a student; `path` is its `.json` or `.safetensors`, or the folder of a run.

    Raises:
        DataError: a file is missing, not ours, or the weights are not those that the card names.
    """
    path = Path(path)
    card_path = path / "student.json" if path.is_dir() else path.with_suffix(".json")
    weights_path = card_path.with_suffix(".safetensors")
    for needed in (card_path, weights_path):
        if not needed.is_file():
            raise DataError(f"{needed} is not there: a student is a .json and a .safetensors of one name")
    try:
        data = json.loads(card_path.read_text())
        inputs = inputs_from_json(data["inputs"])
        card = StudentCard(
            data["model"],
            tuple(data["classes"]),
            data["round"],
            data["accuracy"],
            data["macro_f1"],
            data["proxy_sha256"],
            data.get("privacy", ""),
            data.get("on_the_side", ""),
        )
        said = data["weights_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{card_path} is no student's card ({error!r})") from error
    if hashlib.sha256(weights_path.read_bytes()).hexdigest() != said:
        raise DataError(f"{weights_path} is not the file that {card_path} names: copy both anew")
    try:
        model = build_model(card.model, tuple(inputs.shape), len(card.classes), seed=0)
        model.load_state_dict(load_file(weights_path))
    except (KeyError, RuntimeError, SafetensorError, ValueError) as error:
        raise DataError(f"{weights_path} does not hold the model that {card_path} describes ({error!r})") from error
    return Student(model, inputs, card)
