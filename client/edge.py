"""Our bytes inside a Flower message, and a site's few words about itself; the coordinator imports this too."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

# "<train|evaluate|query>.<identifier>": Flower accepts nothing else.
CONSULT = "train.consult"
HELLO = "query.hello"

# Our error codes start here; Flower's own are 0 to 8.
REFUSED = 100

_LONGEST_HELLO = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z.+!_-]{1,40}")


def pack(blob: bytes) -> RecordDict:
    """One blob as the content of a message."""
    return RecordDict({"wire": ArrayRecord({"blob": Array(np.frombuffer(blob, np.uint8))})})


def unpack(message: Message) -> bytes:
    """The blob in a message.

    Raises:
        KeyError, TypeError, ValueError, MemoryError: anything but what `pack` makes.
    """
    blob = message.content.array_records["wire"]["blob"].numpy()  # npy without pickle
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise ValueError(f"the blob is {blob.dtype}{list(blob.shape)}: one row of uint8 expected")
    return blob.tobytes()


def answer_of(reply: Message) -> bytes | int:
    """The blob of a reply, the code of an error, or -1 for a reply that is neither.

    Guarantees:
        Never raises, and never shows an error's text: it may carry a site's exception.
    """
    try:
        if reply.has_error():
            return int(reply.error.code)
        return unpack(reply)
    except Exception:  # the reply is somebody else's; whatever is wrong with it is that client's failure
        return -1


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node says of itself before the first round: name of the site, versions of flwr and of Python."""

    site: str
    flwr: str
    python: str

    def encode(self) -> bytes:
        """As a small JSON blob."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, blob: bytes) -> Hello:
        """Read what `encode` wrote.

        Raises:
            ValueError: anything else; nothing of the blob stands in the message.
        """
        try:
            told = json.loads(blob) if len(blob) <= _LONGEST_HELLO else None
        except (ValueError, RecursionError):
            told = None
        if not (isinstance(told, dict) and all(isinstance(value, str) for value in told.values())):
            raise ValueError(f"a hello is a JSON object of strings in at most {_LONGEST_HELLO} bytes")
        site, flwr, python = (told.get(key, "") for key in ("site", "flwr", "python"))
        if not (_NAME.fullmatch(site) and _VERSION.fullmatch(flwr) and _VERSION.fullmatch(python)):
            raise ValueError("a hello has a site's name and two versions")
        return cls(site, flwr, python)
