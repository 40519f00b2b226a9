"""Keys: agreement between two clients, what is derived from it, sealed shares, signatures.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439), Ed25519 (RFC 8032), all of `cryptography`.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.secure_sum.errors import SecureSumError

KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES = 32, 64, 16
# Everything that is hashed, derived or signed here begins with this, so that no other use of a key can collide.
DOMAIN = b"consilium secure sum 1 "
# A key that is derived for one message, and never another, may use one nonce.
_NONCE = bytes(12)


def private_key(raw: bytes) -> X25519PrivateKey:
    """A key to agree with, from 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(raw)


def public_key(raw: bytes) -> bytes:
    """The 32 public bytes of 32 private ones."""
    return private_key(raw).public_key().public_bytes_raw()


def agreed(mine: X25519PrivateKey, theirs: bytes) -> bytes:
    """What two clients, and nobody else, can compute.

    Raises:
        SecureSumError: `key`, for a public key of low order: everybody could compute what is agreed with it.
    """
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:
        raise SecureSumError("key", "a public key with which nothing secret can be agreed") from error


def check_public(key: bytes) -> None:
    """Refuse a key of low order, with which anybody would agree on the same.

    Raises:
        SecureSumError: `key`.
    """
    agreed(private_key(bytes(KEY_BYTES)), key)


def derived(secret: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256."""
    return HKDF(SHA256(), length, salt, info).derive(secret)


def digest(purpose: bytes, *parts: bytes) -> bytes:
    """SHA-256 of the purpose and the parts, each with its length in front."""
    told = hashlib.sha256(DOMAIN + purpose)
    for part in parts:
        told.update(len(part).to_bytes(8, "little") + part)
    return told.digest()


def sealed(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """Encrypted and authenticated together with `bound`; a key seals one message in its life."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, bound)


def unsealed(key: bytes, cipher: bytes, bound: bytes) -> bytes:
    """The inverse of `sealed`.

    Raises:
        SecureSumError: `sealed`, for other bytes, another key or other bound bytes.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, cipher, bound)
    except InvalidTag as error:
        raise SecureSumError("sealed", "a share that was not sealed for this client in this session") from error


def signed(private: bytes, message: bytes) -> bytes:
    """Ed25519 signature of a message."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(message)


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the owner of a public key signed a message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def identity_key(private: bytes) -> bytes:
    """The 32 public bytes, for the registry, of a site's 32 private ones."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
