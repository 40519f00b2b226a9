"""Rows that are only ever added: one SQLite file, each row carrying the hash of everything before it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from privacy.ledger_errors import LedgerBroken, LedgerError, LedgerUnavailable, StaleRelease

_SCHEMA_VERSION = 1
# As SQLite keeps them: opening compares the file's own text with this one.
_SCHEMA = (
    "CREATE TABLE payloads (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
    "CREATE TABLE rows (seq INTEGER PRIMARY KEY, prev BLOB NOT NULL, head BLOB NOT NULL, kind TEXT NOT NULL, "
    "key BLOB NOT NULL, body TEXT NOT NULL)",
    "CREATE TRIGGER rows_no_delete BEFORE DELETE ON rows BEGIN SELECT RAISE(ABORT, 'rows are only added'); END",
    "CREATE TRIGGER rows_no_update BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'rows are only added'); END",
)
_LENGTHS = struct.Struct(">6Q")
_COLUMNS = "seq, prev, head, kind, key, body"
_INSERT = f"INSERT INTO rows ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
# What SQLite reports when the file's bytes are not what was written; everything else is the disk's or a lock's doing.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT}


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends.

    Attributes:
        seq: of the last row; the first row has 1.
        digest: 32 bytes, the hash of that row and of all before it.
    """

    seq: int
    digest: bytes


GENESIS = Head(0, bytes(32))


@dataclass(frozen=True, slots=True)
class Row:
    """One row, as it is kept for ever.

    Attributes:
        seq: 1, 2, 3, ...
        kind: OPEN, PLAN, SPENT, SEALED or CLOSED.
        key: of the release it belongs to; empty where there is none.
        body: what it says; numbers with a fraction as float.hex().
    """

    seq: int
    kind: str
    key: bytes
    body: Mapping[str, Any]


# Answers that can be sent again; older ones were followed by so many that their rounds are over.
_KEPT = 4
# kind, key, body of a row that has no place yet
Entry = tuple[str, bytes, Mapping[str, Any]]


def canonical(value: object) -> str:
    """JSON of which there is one text a value: sorted keys, no spaces, floats as float.hex().

    Raises:
        TypeError: the value holds what JSON has not.

    >>> canonical({"steps": 100, "noise": 1.5, "clip": None})
    '{"clip":null,"noise":"0x1.8000000000000p+0","steps":100}'
    """
    return json.dumps(_exact(value), sort_keys=True, separators=(",", ":"))


def _exact(value: object) -> object:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _exact(item) for key, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, list | tuple) else value


def chained(prev: bytes, seq: int, kind: bytes, key: bytes, body: bytes) -> bytes:
    """SHA-256 over the fields behind their lengths: no two rows can be cut differently from the same bytes."""
    lengths = _LENGTHS.pack(len(prev), 8, len(kind), len(key), len(body), seq)
    return hashlib.sha256(b"".join((lengths, prev, kind, key, body))).digest()


def _insert(db: sqlite3.Connection, last: Head, entry: Entry) -> Head:
    kind, key, body = entry
    # When, for whoever reads the rows; nothing here does. The salt makes a chain that was put back and has grown again
    # another one, however alike the requests, the bytes and the second.
    at = datetime.now(UTC).isoformat(timespec="seconds")
    text = canonical({**body, "at": at, "salt": secrets.token_hex(16)})
    digest = chained(last.digest, last.seq + 1, kind.encode(), key, text.encode())
    db.execute(_INSERT, (last.seq + 1, last.digest, digest, kind, key, text))
    return Head(last.seq + 1, digest)


@lru_cache(maxsize=1)
def made_with() -> dict[str, str]:
    """Versions of what a ledger's first row is written, and its epsilon computed, with."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in ("dp-accounting", "numpy", "scipy"):
        with suppress(PackageNotFoundError):  # a site that only counts needs none of them
            found[name] = version(name)
    return found


def make(path: Path, entries: Sequence[Entry], *, durable: bool) -> None:
    """Write a new chain, whole or not at all, however the process ends.

    Raises:
        LedgerUnavailable: something is there already, or the disk refuses.
        LedgerBroken: another ledger's write-ahead log lies there without its ledger; SQLite would read it as ours.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        logs = [path.with_name(path.name + ending) for ending in ("-wal", "-journal")]
        left = [log.name for log in logs if log.exists()]
        if left and not path.exists():
            raise LedgerBroken(
                f"{path} is gone and its {left[0]} is not: put the ledger back beside it, or move it away"
            )
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        try:
            _write(partial, entries, durable=durable)
            os.link(partial, path)  # not rename: of two processes that make the same ledger, one must lose
        finally:
            for ending in ("", "-wal", "-shm", "-journal"):
                partial.with_name(partial.name + ending).unlink(missing_ok=True)
        if durable and os.name == "posix":
            _fsync(path.parent)


def _write(path: Path, entries: Sequence[Entry], *, durable: bool) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        db.execute("BEGIN")
        for statement in _SCHEMA:
            db.execute(statement)
        at = GENESIS
        for entry in entries:
            at = _insert(db, at, entry)
        db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode=WAL")  # stands in the file from here on
    if durable:
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as ours: what is wrong with the file, and what with its surroundings."""
    try:
        yield
    except LedgerError:
        raise
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # a mistake in this code, not a fact about the file
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE:
            raise broken(path, f"SQLite says: {error}") from error
        raise _unavailable(path, error) from error
    except OSError as error:
        raise _unavailable(path, error) from error


def broken(path: Path, what: str) -> LedgerBroken:
    """The error for a file that does not hold together."""
    return LedgerBroken(f"the ledger {path} is broken ({what}): put back its newest backup, with its -wal file")


def _unavailable(path: Path, error: Exception) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"the ledger {path} cannot be used now ({error}): it needs a local disk with room, the right to write, and no "
        "other process that holds it for long"
    )


class Chain:
    """The file, and a connection to it while it is open.

    Args:
        path: on a local disk: write-ahead logs are unsafe on network file systems.
        durable: survive a power cut (synchronous=FULL); otherwise only the death of the process (synchronous=OFF).
        wait_s: how long to wait for another process's transaction.

    Guarantees:
        What is appended is there after `writing` has returned, and not at all if it raised, except that a disk that
        fails in the commit itself may have kept it.
    """

    def __init__(self, path: Path, *, durable: bool, wait_s: float) -> None:
        self.path, self.durable, self._wait_s = path, durable, wait_s
        self._opened: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._opened is not None

    def open(self) -> None:
        """Connect, and make sure that the file is a chain and that commits will be as durable as was asked.

        Raises:
            LedgerUnavailable, LedgerBroken.
        """
        with translated(self.path):
            # mode=rw: a ledger that is not there must not come into being by being asked for.
            where = f"{self.path.absolute().as_uri()}?mode=rw"
            db = sqlite3.connect(where, uri=True, isolation_level=None, timeout=self._wait_s)
            try:
                db.text_factory = bytes  # a flipped byte need not be UTF-8
                self._settle(db)
            except BaseException:
                db.close()
                raise
            self._opened = db

    def _settle(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        found = tuple(
            sql.decode(errors="replace") for (sql,) in db.execute("SELECT sql FROM sqlite_schema ORDER BY name")
        )
        if version != _SCHEMA_VERSION or found != _SCHEMA:
            raise broken(self.path, f"its tables are not those of schema {_SCHEMA_VERSION}")
        (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        wanted = 2 if self.durable else 0
        db.execute(f"PRAGMA synchronous={wanted}")
        (synchronous,) = db.execute("PRAGMA synchronous").fetchone()
        if (mode, synchronous) != (b"wal", wanted):
            raise LedgerUnavailable(
                f"the ledger {self.path} has journal_mode={mode!r}, synchronous={synchronous} and needs 'wal', "
                f"{wanted}: keep it on a local disk"
            )
        if self.durable:
            db.execute("PRAGMA fullfsync=1")  # macOS: fsync alone stops at the disk's cache; no effect elsewhere

    def close(self) -> None:
        """End the connection; nothing is lost by not doing so."""
        opened, self._opened = self._opened, None
        if opened is not None:
            with translated(self.path):
                opened.close()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._opened is None:
            raise ValueError(f"the ledger {self.path} is closed: use it inside `with ledger:`")
        return self._opened

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that no other process writes in: committed at the end, rolled back if anything is raised.

        Raises:
            LedgerUnavailable, LedgerBroken.
        """
        db = self._db
        with translated(self.path):
            try:
                db.execute("BEGIN IMMEDIATE")
                yield
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error is the one to tell
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                raise

    def append(self, at: Head, entry: Entry) -> Head:
        """Add one row behind `at`; only inside `writing`."""
        return _insert(self._db, at, entry)

    def digest_at(self, seq: int) -> bytes | None:
        """What stands as the head of row `seq`; None: there is no such row."""
        with translated(self.path):
            found = self._db.execute("SELECT head FROM rows WHERE seq = ?", (seq,)).fetchone()
        return found[0] if found else None

    def rows(self, after: Head = GENESIS) -> Iterator[tuple[Row, Head]]:
        """Rows behind `after`, each checked against the one before it.

        Raises:
            LedgerBroken: with the number of the first row that does not follow.
        """
        with translated(self.path):
            select = f"SELECT {_COLUMNS} FROM rows WHERE seq > ? ORDER BY seq"  # noqa: S608 - constants
            found = self._db.execute(select, (after.seq,)).fetchall()
        last, digest = after.seq, after.digest
        for seq, prev, head, kind, key, body in found:
            follows = seq == last + 1 and prev == digest and bytes is type(kind) is type(key) is type(body)
            if not follows or head != chained(prev, seq, kind, key, body):
                raise broken(self.path, f"row {last + 1} does not follow from the rows before it")
            try:
                row = Row(seq, kind.decode(), key, json.loads(body.decode()))
            except ValueError as error:
                raise broken(self.path, f"row {seq} is no JSON: {error}") from error
            last, digest = seq, head
            yield row, Head(seq, head)

    def keep_payload(self, seq: int, payload: bytes) -> None:
        """Keep what row `seq` seals, and let the oldest go; only inside `writing`."""
        self._db.execute("INSERT INTO payloads (seq, payload) VALUES (?, ?)", (seq, payload))
        older = "DELETE FROM payloads WHERE seq NOT IN (SELECT seq FROM payloads ORDER BY seq DESC LIMIT ?)"
        self._db.execute(older, (_KEPT,))

    def check_payloads(self, sha256: Mapping[int, str]) -> None:
        """Return if every payload that is kept is what its row seals; `sha256` by row.

        Raises:
            LedgerBroken: with the first that is not.
        """
        with translated(self.path):
            kept = [seq for (seq,) in self._db.execute("SELECT seq FROM payloads ORDER BY seq")]
        for seq in kept:
            if seq not in sha256:
                raise broken(self.path, f"row {seq} seals nothing, and a payload is kept for it")
            self.payload(seq, sha256[seq])

    def payload(self, seq: int, sha256: str) -> bytes:
        """What row `seq` sealed with this hash.

        Raises:
            StaleRelease: it is no longer kept.
            LedgerBroken: these are other bytes.
        """
        with translated(self.path):
            found = self._db.execute("SELECT payload FROM payloads WHERE seq = ?", (seq,)).fetchone()
        if found is None:
            raise StaleRelease(f"the bytes of row {seq} are gone: only the newest {_KEPT} are kept to be sent again")
        payload = found[0]
        if not isinstance(payload, bytes) or hashlib.sha256(payload).hexdigest() != sha256:
            raise broken(self.path, f"the payload of row {seq} is not what was sealed")
        return payload
