"""Masks: uniform numbers modulo 2^bits from a 32-byte key, and how such numbers are packed."""

from __future__ import annotations

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from privacy.secure_sum.errors import SecureSumError

# Numbers modulo 2^bits in words that are wider: the words wrap around at 2^32 or 2^64, and their low bits are right.
Words = NDArray[np.unsignedinteger[Any]]
# Counter and nonce: a key is derived for one stream, and never another.
_START = bytes(16)


def word_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The words that hold numbers modulo 2^bits, bits at most 64."""
    return np.dtype("<u4") if bits <= 32 else np.dtype("<u8")


def stream(key: bytes, entries: int, bits: int) -> Words:
    """[entries] words of ChaCha20's key stream (RFC 8439); their low `bits` bits are uniform numbers modulo 2^bits.

    Guarantees:
        Without the key the words cannot be told from random ones. A power of two divides the words' range: no number
        is more likely than another.
    """
    kind = word_type(bits)
    zeros = bytes(entries * kind.itemsize)
    return np.frombuffer(Cipher(ChaCha20(key, _START), mode=None).encryptor().update(zeros), kind)


def packed(words: Words, bits: int) -> bytes:
    """The low `bits` bits of each word, one after another, the highest bit first; zeros to a byte.

    >>> packed(np.array([1, 2, 3], np.uint32), 2).hex()
    '6c'
    """
    big = words.astype(words.dtype.newbyteorder(">"))
    wide = np.unpackbits(big.view(np.uint8).reshape(len(words), words.itemsize), axis=1)
    return np.packbits(wide[:, wide.shape[1] - bits :]).tobytes()


def packed_size(entries: int, bits: int) -> int:
    """Bytes of so many packed numbers."""
    return -(-entries * bits // 8)


def unpacked(payload: bytes, entries: int, bits: int) -> Words:
    """The inverse of `packed`; every word is below 2^bits.

    Raises:
        SecureSumError: `malformed`, for another length or bits behind the end.
    """
    if len(payload) != packed_size(entries, bits):
        raise SecureSumError("malformed", f"{len(payload)} bytes where {entries} numbers of {bits} bits are due")
    told = np.unpackbits(np.frombuffer(payload, np.uint8))
    if told[entries * bits :].any():
        raise SecureSumError("malformed", "bits behind the end")
    kind = word_type(bits)
    wide = np.zeros((entries, 8 * kind.itemsize), np.uint8)
    wide[:, wide.shape[1] - bits :] = told[: entries * bits].reshape(entries, bits)
    words: Words = np.packbits(wide, axis=1).view(kind.newbyteorder(">")).reshape(entries).astype(kind)
    return words
