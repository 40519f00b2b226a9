"""Rows are only added; whatever else is done to the file is noticed."""

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from privacy import chain
from privacy.events import Gaussian
from privacy.ledger import (
    Ledger,
    LedgerBroken,
    LedgerError,
    LedgerRolledBack,
    LedgerUnavailable,
    Request,
    Sealed,
    Terms,
    canonical,
)

FILTER = Terms("record", "zero_out", "filter", 3.0, 1e-5, 8, False)
PRICE = (Gaussian(20.0, 1),)


def request(round_=1, attempt=0):
    return Request("run", round_, attempt, "site-a", "dp-sgd", "{}", "ab" * 32)


def answer(ledger, round_):
    return ledger.store(ledger.reserve(request(round_), PRICE), b"votes %d" % round_)


@pytest.fixture
def path(tmp_path):
    """A ledger of two answers: OPEN, SPENT, SEALED, SPENT, SEALED."""
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, FILTER, durable=False) as ledger:
        answer(ledger, 1)
        answer(ledger, 2)
    assert os.listdir(tmp_path) == ["ledger.sqlite"]
    return path


def tampered(path, *statements):
    """Someone with the site's rights and a SQLite shell, who puts the tables' guards back."""
    guards = [statement for statement in chain._SCHEMA if "TRIGGER" in statement]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TRIGGER rows_no_delete")
        db.execute("DROP TRIGGER rows_no_update")
        for statement in statements:
            db.execute(*statement) if isinstance(statement, tuple) else db.execute(statement)
        for guard in guards:
            db.execute(guard)


def resealed(path, change):
    """Rewrite the whole chain with changed rows, so that it holds together again."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT seq, kind, key, body FROM rows ORDER BY seq").fetchall()
    prev, statements = bytes(32), ["DELETE FROM rows"]
    for seq, row in enumerate(change(rows), 1):
        _, kind, key, body = row
        head = naive_head(prev, seq, kind.encode(), key, body.encode())
        statements.append(("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", (seq, prev, head, kind, key, body)))
        prev = head
    tampered(path, *statements)


def naive_head(prev, seq, kind, key, body):
    lengths = b"".join(n.to_bytes(8, "big") for n in (32, 8, len(kind), len(key), len(body)))
    return hashlib.sha256(lengths + seq.to_bytes(8, "big") + prev + kind + key + body).digest()


# ---- the chain


def test_every_head_is_the_hash_of_its_row_and_of_the_head_before(path):
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = bytes
        rows = db.execute("SELECT seq, prev, head, kind, key, body FROM rows ORDER BY seq").fetchall()
    before = bytes(32)
    for number, (seq, prev, head, kind, key, body) in enumerate(rows, 1):
        assert (seq, prev) == (number, before)
        assert head == naive_head(prev, seq, kind, key, body)
        before = head
    with Ledger.open(path) as ledger:
        assert (ledger.head().seq, ledger.head().digest) == (5, before)


def test_older_heads_hold_and_no_other_ones(path):
    with Ledger.open(path, durable=False) as ledger:
        heads = [ledger.head(), answer(ledger, 3), answer(ledger, 4)]
        for head in heads:
            ledger.check(head.seq, head.digest)
        for seq, digest in (
            (heads[0].seq, heads[1].digest),
            (10, bytes(32)),
            (0, bytes(32)),
            (-1, bytes(32)),
            (2**63, bytes(32)),
            (5, b""),
            (5, heads[0].digest + b"\x00"),
        ):
            with pytest.raises(LedgerRolledBack, match="put back the newest one, with its -wal file"):
                ledger.check(seq, digest)


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("DELETE FROM rows WHERE seq = 2", 2),
        ("DELETE FROM rows WHERE seq <= 4", 1),
        ("UPDATE rows SET body = replace(body, '\"round\":1', '\"round\":7') WHERE seq = 2", 2),
        ("UPDATE rows SET key = x'00' WHERE seq = 3", 3),
        ("UPDATE rows SET kind = 'SEALED' WHERE seq = 4", 4),
        ("UPDATE rows SET prev = zeroblob(32) WHERE seq = 3", 3),
        ("UPDATE rows SET head = zeroblob(32) WHERE seq = 5", 5),
        ("UPDATE rows SET body = CAST(body AS BLOB) || x'ff' WHERE seq = 5", 5),
        ("UPDATE rows SET body = 7 WHERE seq = 5", 5),
        ("UPDATE rows SET seq = seq + 1 WHERE seq = 5", 5),
    ],
)
def test_rows_that_were_taken_out_or_changed_are_noticed_when_the_ledger_is_opened(path, statement, row):
    tampered(path, statement)
    with pytest.raises(LedgerBroken, match=f"row {row} does not follow from the rows before it"):
        Ledger.open(path)


def test_swapped_rows_are_noticed(path):
    tampered(
        path,
        "UPDATE rows SET seq = -2 WHERE seq = 2",
        "UPDATE rows SET seq = 2 WHERE seq = 4",
        "UPDATE rows SET seq = 4 WHERE seq = -2",
    )
    with pytest.raises(LedgerBroken, match="row 2 does not follow"):
        Ledger.open(path)


def test_a_dropped_last_row_is_noticed_by_whoever_saw_the_head(path):
    with Ledger.open(path) as ledger:
        seen = ledger.head()
    tampered(path, "DELETE FROM rows WHERE seq = 5")
    with Ledger.open(path) as shorter, pytest.raises(LedgerRolledBack):
        shorter.check(seen.seq, seen.digest)
    with pytest.raises(LedgerRolledBack, match="no longer has the row 5"):
        ledger.__enter__()


def test_an_old_copy_put_back_is_noticed_even_after_it_has_grown_again(path, tmp_path):
    shutil.copy(path, tmp_path / "backup")
    with Ledger.open(path) as ledger:
        seen = [answer(ledger, 3), answer(ledger, 4)]
    shutil.copy(tmp_path / "backup", path)
    with Ledger.open(path) as old:
        for grown in (False, True):
            for head in seen:
                with pytest.raises(LedgerRolledBack):
                    old.check(head.seq, head.digest)
            if not grown:  # the same requests and the same bytes, perhaps within the same second
                assert [answer(old, 3).seq, answer(old, 4).seq] == [head.seq for head in seen]
    with pytest.raises(LedgerRolledBack):
        ledger.__enter__()


def test_a_copy_without_its_write_ahead_log_lacks_commits_and_the_head_check_says_so(path, tmp_path):
    with Ledger.open(path) as ledger:
        seen = answer(ledger, 3)
        shutil.copy(path, tmp_path / "copy")
        assert path.with_name("ledger.sqlite-wal").exists()
    with Ledger.open(tmp_path / "copy") as copy:
        assert copy.head().seq == 5
        with pytest.raises(LedgerRolledBack):
            copy.check(seen.seq, seen.digest)


def test_a_chain_that_was_rewritten_as_a_whole_holds_together_and_only_its_old_heads_tell(path):
    with Ledger.open(path) as ledger:
        seen = ledger.head()
    resealed(path, lambda rows: [(*row[:3], row[3].replace("site-a", "site-b")) for row in rows])
    with Ledger.open(path) as forged:
        forged.verify()
        with pytest.raises(LedgerRolledBack):
            forged.check(seen.seq, seen.digest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [rows[1]], "one OPEN row"),
        (lambda rows: [rows[0], rows[0]], "one OPEN row"),
        (lambda rows: [rows[0], rows[1], rows[1]], "was spent before"),
        (lambda rows: [*rows[:3], rows[2]], "nothing to seal"),
        (lambda rows: [rows[0], rows[2]], "KeyError"),
        (lambda rows: [rows[0], (2, "REFUND", b"", "{}")], "KeyError"),
        (lambda rows: [rows[0], (2, "SPENT", b"", "{}")], "KeyError"),
        (lambda rows: [rows[0], (2, "SPENT", b"", "[]")], "TypeError"),
        (lambda rows: [rows[0], (2, "SPENT", b"", "{")], "is no JSON"),
        (lambda rows: [rows[0], (*rows[1][:3], rows[1][3].replace("},1]]", "},-1]]"))], "no privacy events"),
        (lambda rows: [rows[0], (2, "PLAN", b"", canonical({"name": "a", "events": [], "delta": 0.1}))], "no plan 'a'"),
        (lambda rows: [rows[0], *[(2, "CLOSED", b"", '{"child":"a","path":"b"}')] * 2], "closed before"),
        (lambda rows: [rows[0], (2, "CLOSED", b"", '{"child":"a","path":"b"}'), rows[1]], "nothing left to draw"),
        (lambda rows: [(*rows[0][:3], rows[0][3].replace("record", "nobody"))], "must be one of record"),
    ],
)
def test_rows_that_no_ledger_writes_are_refused_even_if_their_hashes_fit(path, change, said):
    resealed(path, change)
    with pytest.raises(LedgerBroken, match=said):
        Ledger.open(path)


def test_no_flipped_byte_changes_what_a_ledger_says(path):
    with Ledger.open(path, durable=False) as ledger:
        said = list(ledger.rows()), [ledger.reserve(request(round_), PRICE) for round_ in (1, 2)]
    data, noticed = path.read_bytes(), 0
    # Every 37th byte, and a stretch of the rows' page, where every byte means something.
    for at in sorted({*range(0, len(data), 37), *range(data.find(b'{"at":"20') - 200, data.find(b'{"at":"20') + 200)}):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            with Ledger.open(path, durable=False) as ledger:
                ledger.verify()
                again = list(ledger.rows()), [ledger.reserve(request(round_), PRICE) for round_ in (1, 2)]
            assert again == said
        except LedgerError:
            noticed += 1
        for ending in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
    assert noticed > 100


def test_a_changed_answer_is_noticed_before_it_is_sent_again(path):
    tampered(path, "UPDATE payloads SET payload = x'00' WHERE seq = 3")
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerBroken, match="the payload of row 3 is not what was sealed"):
            ledger.reserve(request(1), PRICE)
        with pytest.raises(LedgerBroken, match="the payload of row 3"):
            ledger.verify()
        assert ledger.reserve(request(2), PRICE) == Sealed(5, b"votes 2")
    tampered(path, "UPDATE payloads SET seq = 4 WHERE seq = 3")
    with Ledger.open(path) as ledger, pytest.raises(LedgerBroken, match="row 4 seals nothing"):
        ledger.verify()


# ---- the file


@pytest.mark.parametrize("content", [b"", b"not a database" * 100, b"SQLite format 3\x00" + bytes(84)])
def test_what_is_no_ledger_is_never_used_as_a_new_one(tmp_path, content):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    for use in (lambda: Ledger.open(path), lambda: Ledger.open_or_create(path, FILTER)):
        with pytest.raises(LedgerBroken, match="put back its newest backup"):
            use()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 2",
        "DROP TRIGGER rows_no_delete",
        "CREATE TABLE more (a)",
        "CREATE TRIGGER forget AFTER INSERT ON rows BEGIN DELETE FROM payloads; END",
    ],
)
def test_a_file_with_other_tables_is_refused(path, statement):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)
    with pytest.raises(LedgerBroken, match="its tables are not those of schema 1"):
        Ledger.open(path)


@pytest.mark.parametrize("statement", ["DELETE FROM rows", "UPDATE rows SET body = '{}' WHERE seq = 5"])
def test_not_even_a_shell_removes_or_changes_rows_by_mistake(path, statement):
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.IntegrityError, match="rows are only added"):
        db.execute(statement)


def test_a_log_without_its_ledger_is_not_read_into_a_new_one(path, tmp_path):
    with Ledger.open(path) as ledger:
        answer(ledger, 3)
        shutil.copy(tmp_path / "ledger.sqlite-wal", tmp_path / "kept")
    path.unlink()
    (tmp_path / "kept").rename(tmp_path / "ledger.sqlite-wal")
    for make in (Ledger.create, Ledger.open_or_create):
        with pytest.raises(LedgerBroken, match=r"is gone and its ledger\.sqlite-wal is not"):
            make(path, FILTER)
    assert os.listdir(tmp_path) == ["ledger.sqlite-wal"]


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 0)])
def test_every_connection_is_as_durable_as_was_asked_whatever_the_others_are(path, durable, synchronous):
    with Ledger.open(path, durable=not durable), Ledger.open(path, durable=durable) as ledger:
        assert ledger._chain._db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert ledger._chain._db.execute("PRAGMA journal_mode").fetchone() == (b"wal",)


@pytest.mark.parametrize(
    ("ignored", "durable", "said"),
    [
        ("journal_mode", True, r"journal_mode=b'delete', synchronous=2 and needs 'wal', 2: keep it on a local disk"),
        ("synchronous", False, r"journal_mode=b'wal', synchronous=2 and needs 'wal', 0"),
    ],
)
def test_settings_are_read_back_and_a_file_system_that_ignores_them_is_refused(
    path, monkeypatch, ignored, durable, said
):
    class Deaf(sqlite3.Connection):
        def execute(self, sql, *values):
            return super().execute("SELECT 'delete'" if sql.startswith(f"PRAGMA {ignored}=") else sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(chain.sqlite3, "connect", lambda *told, **more: connect(*told, factory=Deaf, **more))
    with pytest.raises(LedgerUnavailable, match=said):
        Ledger.open(path, durable=durable)


@pytest.mark.parametrize("durable", [True, False])
def test_a_new_ledger_and_its_folder_reach_the_disk_if_they_must(tmp_path, monkeypatch, durable):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle))[1])
    Ledger.create(tmp_path / "ledger.sqlite", FILTER, durable=durable).close()
    written = [(tmp_path / "ledger.sqlite").stat().st_ino, tmp_path.stat().st_ino]
    assert synced == (written if durable else [])


# ---- the disk, and other processes


def test_a_full_disk_refuses_and_leaves_nothing_half_written(path):
    with Ledger.open(path, durable=False) as ledger:
        before = ledger.head()
        (pages,) = ledger._chain._db.execute("PRAGMA page_count").fetchone()
        token = ledger.reserve(request(3), PRICE)
        ledger._chain._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerUnavailable, match=r"database or disk is full.*needs a local disk with room"):
            ledger.store(token, bytes(100_000))
        assert ledger.head().seq == before.seq + 1
        ledger._chain._db.execute("PRAGMA max_page_count = 1000000")
        ledger.store(token, bytes(100_000))
        ledger.verify()
        assert [row.kind for row in ledger.rows()][-2:] == ["SPENT", "SEALED"]


def test_a_ledger_that_another_process_holds_for_too_long_is_unavailable_and_unchanged(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with Ledger.open(path, durable=False, wait_s=0.05) as ledger:
            with pytest.raises(OSError, match="database is locked"):
                ledger.reserve(request(3), PRICE)
            assert ledger.head().seq == 5
            other.execute("COMMIT")
            answer(ledger, 3)


def test_a_ledger_that_must_not_be_written_spends_nothing(path):
    with Ledger.open(path, durable=False) as ledger:
        ledger._chain._db.execute("PRAGMA query_only = 1")
        with pytest.raises(LedgerUnavailable, match="readonly"):
            ledger.reserve(request(3), PRICE)
        assert ledger.head().seq == 5


def test_whatever_interrupts_a_transaction_takes_it_back(path, monkeypatch):
    with Ledger.open(path, durable=False) as ledger:
        token = ledger.reserve(request(3), PRICE)
        for error in (KeyboardInterrupt, MemoryError):
            with monkeypatch.context() as patch:
                patch.setattr(ledger._chain, "keep_payload", lambda *_, error=error: (_ for _ in ()).throw(error))
                with pytest.raises(error):
                    ledger.store(token, b"votes")
            assert ledger.head().seq == 6
        assert ledger.store(token, b"votes").seq == 7
