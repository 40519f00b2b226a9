"""Every random stream has a name; its seed is a hash of the experiment's seed and that name."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *name: str | int) -> int:
    """64-bit seed of the stream `name`, for example `(seed, "fit", "site-003", round)`.

    Guarantees:
        Equal on every machine and version: SHA-256 over the length-prefixed parts. Two names share a stream
        only by a collision of SHA-256.

    >>> stream_seed(1, "fit", "site-000", 2) == stream_seed(1, "fit", "site-000", 2)
    True
    >>> stream_seed(1, "a", "bc") == stream_seed(1, "ab", "c")
    False
    """
    digest = hashlib.sha256()
    for part in (seed, *name):
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest()[:8], "little")
