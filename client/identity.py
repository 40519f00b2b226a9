"""Who may be in a sum: this site's identity key, and the registry of all sites' public ones.

The owners of the sites exchange the public lines themselves, as they would a contract; the coordinator hands out none
of them, and cannot play a site's peers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.config import SiteConfig, SiteConfigError
from distillation.export import write_atomically
from privacy.secure_sum.keys import identity_key
from privacy.secure_sum.session import FEWEST

IDENTITY = "identity.key"
_PUBLIC = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Peers:
    """Who may be in this site's sums.

    Attributes:
        registry: public keys (Ed25519, 32 bytes) by site, this one among them.
        identity: this site's private key, 32 bytes.
    """

    registry: Mapping[str, bytes]
    identity: bytes = field(repr=False)


def peers_of(config: SiteConfig, folder: Path) -> Peers | None:
    """The registry and the key that a site's file names; None where it names neither.

    Args:
        folder: of the site's file.

    Raises:
        SiteConfigError: one without the other, a file that cannot be used, or a registry that is not this site's.
    """
    policy = config.policy
    if policy is None or not (policy.sum_registry or policy.sum_identity):
        return None
    if not (policy.sum_registry and policy.sum_identity):
        named, missing = ("sum_registry", "sum_identity") if policy.sum_registry else ("sum_identity", "sum_registry")
        raise SiteConfigError(
            f"policy.{named} needs policy.{missing} beside it: peers are known by the registry, and know this site by "
            "its key"
        )
    path = folder / policy.sum_registry
    registry, identity = read_registry(path), read_identity(folder / policy.sum_identity)
    if registry.get(config.site) != identity_key(identity):
        raise SiteConfigError(
            f"{path} does not list the public key of policy.sum_identity as that of {config.site!r}: give this site's "
            ".pub file to whoever makes the registry, or name the key that is listed"
        )
    if len(registry) < policy.sum_threshold:
        raise SiteConfigError(
            f"{path} lists {len(registry)} sites and policy.sum_threshold={policy.sum_threshold} must stay in a sum: "
            "lower it, or register more sites"
        )
    return Peers(registry, identity)


def own_key(path: Path) -> bytes:
    """The public side of a site's private key, which is made if there is none; only its owner can read the file.

    Raises:
        SiteConfigError: what is there is no such key: with another one no registry would know this site.
        OSError: the disk refuses.
    """
    if os.path.lexists(path):
        return identity_key(read_identity(path))
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return key.public_key().public_bytes_raw()


def read_identity(path: Path) -> bytes:
    """The 32 bytes of a site's private key.

    Raises:
        SiteConfigError: no such file, one that others can read, or no Ed25519 key.
    """
    try:
        mode, text = path.stat().st_mode & 0o777, path.read_bytes()
    except OSError as error:
        raise SiteConfigError(
            f"{path} cannot be read ({error.strerror}): `consilium keys new` makes a site's key"
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise SiteConfigError(f"{path} has mode {mode:o} and others can read it: chmod 600, or make another key")
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SiteConfigError(f"{path} is no Ed25519 key in PEM without a password: `consilium keys new` makes one")
    return key.private_bytes_raw()


def public_line(site: str, public: bytes) -> str:
    """What a site's owner gives to the others: name and public key."""
    return f"{site} {public.hex()}\n"


def write_public(path: Path, site: str, public: bytes) -> None:
    """Write a site's public line."""
    write_atomically(path, public_line(site, public).encode(), durable=True)


def joined(lines: Iterable[Path]) -> dict[str, bytes]:
    """The registry of the sites whose public lines lie in these files.

    Raises:
        SiteConfigError: a file that is no such line, a name or a key twice, or fewer sites than a sum takes.
    """
    told: list[tuple[str, str]] = []
    for path in lines:
        found = _PUBLIC.fullmatch(_text(path).strip())
        if found is None:
            raise SiteConfigError(f"{path} is no site's public line, a name and 64 hex digits: `consilium keys new`")
        told.append((found[1], found[2]))
    return _checked(told, "these files")


def write_registry(path: Path, registry: Mapping[str, bytes]) -> str:
    """Write a registry, the same bytes for the same keys; the SHA-256 that owners compare."""
    told = {site: registry[site].hex() for site in sorted(registry)}
    data = (json.dumps(told, indent=1) + "\n").encode()
    write_atomically(path, data, durable=True)
    return hashlib.sha256(data).hexdigest()


def read_registry(path: Path) -> dict[str, bytes]:
    """Read what `write_registry` wrote.

    Raises:
        SiteConfigError: no such file, no JSON object of names and keys, a name or a key twice, or too few sites.
    """
    text = _text(path)
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)  # as a dict a name could stand there twice
    except (ValueError, RecursionError):
        pairs = None
    told = [(str(site), str(public)) for site, public in pairs] if isinstance(pairs, tuple) else [("", "")]
    if not all(_PUBLIC.fullmatch(f"{site} {public}") for site, public in told):
        raise SiteConfigError(
            f"{path} is no registry, a JSON object of names, 64 hex digits each: `consilium keys registry` makes one"
        )
    return _checked(told, str(path))


def _checked(told: list[tuple[str, str]], where: str) -> dict[str, bytes]:
    registry = {site: bytes.fromhex(public) for site, public in told}
    for what, values in (("name", [site for site, _ in told]), ("key", [public for _, public in told])):
        if twice := next((value for value in values if values.count(value) > 1), ""):
            raise SiteConfigError(f"{where} hold the {what} {twice} twice: every site has one name and one key")
    if len(registry) < FEWEST:
        raise SiteConfigError(
            f"{where} list {len(registry)} sites and a sum takes {FEWEST} or more: of two, each would know the other"
        )
    return registry


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SiteConfigError(f"{path} cannot be read ({error.strerror}): name a file that is there") from None
    except UnicodeDecodeError:
        raise SiteConfigError(f"{path} is no text: name another file") from None
