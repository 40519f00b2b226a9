"""Order-0 entropy coding of symbol columns; every group of columns has a table of its own, which travels.

ANS: Duda (2013), Asymmetric numeral systems; the coder is constriction's (Bamler 2022). Design reference 5.6.

payload  1 bit: 1 | groups | zeros to a byte | ANS state, little-endian, without its zero bytes at the top
group    mode 2 bits: 0 every column in bits_needed(alphabet) bits; 1 one symbol; 2 a table, its symbols are in the ANS
         state
table    a bit a symbol: used? | the commonest one | width, 4 bits | each other one's frequency - 1 in that width

Frequencies are the counts themselves, scaled down to sum to 4096 where there are more symbols than that.
"""

from __future__ import annotations

import constriction
import numpy as np

from strategies.codecs.bits import BitReader, bits_needed, to_bits, to_bytes
from strategies.soft_labels import Int64, UInt8

MOST_FREQUENCY = 4096
_PLAIN, _CONSTANT, _CODED = 0, 1, 2
# 2^-16 bits and whole numbers: two machines whose logarithms differ in the last place must choose the same mode.
_COST_UNIT = 2**16
_LOG2 = np.rint(np.log2(np.arange(1, MOST_FREQUENCY + 1)) * _COST_UNIT).astype(np.int64)


def compress(symbols: UInt8, alphabets: Int64, groups: Int64) -> bytes:
    """Symbols as bytes.

    Args:
        symbols: [n, width] each below its column's alphabet.
        alphabets: [width] numbers of different symbols, in [2, 256].
        groups: [width] columns with the same number share a table.

    Returns:
        At least one byte, the first one from 128; the same ones on every machine.
    """
    header, coded = [_number(1, 1)], []
    for group in np.unique(groups) if len(symbols) else ():
        members, own = symbols[:, groups == group], alphabets[groups == group]
        counts = np.bincount(members.ravel(), minlength=int(own.max()))
        used = np.flatnonzero(counts)
        if len(used) == 1:
            header += [_number(_CONSTANT, 2), _number(int(used[0]), bits_needed(len(counts)))]
            continue
        table, cost = _table(counts)
        if cost < _COST_UNIT * len(symbols) * int(_widths(own).sum()):
            header += [_number(_CODED, 2), table]
            coded.append((members, used, frequencies(counts[used])))
        else:
            header += [_number(_PLAIN, 2), _plain(members, own)]
    return to_bytes(np.concatenate(header)) + _state(coded)


def expand(payload: bytes, rows: int, alphabets: Int64, groups: Int64) -> UInt8:
    """The inverse of `compress`, which is told the number of rows by somebody it trusts.

    Returns:
        [rows, width] symbols, each below its column's alphabet.

    Raises:
        ValueError: bytes that `compress` never makes.

    Guarantees:
        Memory and time are proportional to rows * width and to the payload's length, and to nothing that it says.
    """
    reader = BitReader(payload)
    if reader.one(1) == 0:
        raise ValueError("these bytes begin with a bit that is 0")
    symbols, coded = np.zeros((rows, len(alphabets)), np.uint8), []
    for group in np.unique(groups) if rows else ():
        columns = np.flatnonzero(groups == group)
        alphabet, mode = int(alphabets[columns].max()), reader.one(2)
        if mode == _PLAIN:
            _take_plain(reader, symbols, columns, alphabets)
        elif mode == _CONSTANT:
            symbols[:, columns] = reader.one(bits_needed(alphabet))
        elif mode == _CODED:
            coded.append((columns, *_take_table(reader, alphabet, min(rows * len(columns), MOST_FREQUENCY))))
        else:
            raise ValueError(f"mode {mode} of a group is not known")
    _take_state(reader.rest(), symbols, coded)
    # One comparison for all that is left to doubt: fillings, needless tables, other frequencies, another end.
    if (symbols >= alphabets).any() or compress(symbols, alphabets, groups) != payload:
        raise ValueError("these bytes are not what their symbols are compressed to")
    return symbols


def frequencies(counts: Int64) -> Int64:
    """Counts, scaled down to sum to 4096 where they are more: at least 1 each, the rest by largest remainder.

    >>> frequencies(np.array([60_000, 40_000, 1])).tolist()
    [2457, 1638, 1]
    """
    if counts.sum() <= MOST_FREQUENCY:
        return counts
    rare = np.zeros(len(counts), bool)
    # What the rare ones get beyond their share the others lack, which may make another one rare.
    while (below := ~rare & (counts * (MOST_FREQUENCY - rare.sum()) < counts[~rare].sum())).any():
        rare |= below
    shares, remainders = np.divmod(counts * (MOST_FREQUENCY - rare.sum()), counts[~rare].sum())
    scaled = np.where(rare, 1, shares)
    order = np.argsort(np.where(rare, 1, -remainders), kind="stable")
    scaled[order[: MOST_FREQUENCY - scaled.sum()]] += 1
    return scaled


def _number(value: int, width: int) -> UInt8:
    return to_bits(np.array([value], np.uint64), width)


def _widths(alphabets: Int64) -> Int64:
    return np.array([bits_needed(int(count)) for count in alphabets])


def _plain(symbols: UInt8, alphabets: Int64) -> UInt8:
    """Bits of the columns, those of the same width together."""
    widths = _widths(alphabets)
    return np.concatenate([to_bits(symbols[:, widths == width], int(width)) for width in np.unique(widths)])


def _take_plain(reader: BitReader, symbols: UInt8, columns: Int64, alphabets: Int64) -> None:
    widths = _widths(alphabets[columns])
    for width in np.unique(widths):
        among = columns[widths == width]
        symbols[:, among] = reader.take(len(symbols) * len(among), int(width)).reshape(len(symbols), len(among))


def _table(counts: Int64) -> tuple[UInt8, int]:
    """The table's bits, and what it and its symbols cost in units of 2^-16 bits."""
    used = np.flatnonzero(counts)
    scaled = frequencies(counts[used])
    commonest = int(scaled.argmax())
    others = np.delete(scaled, commonest) - 1
    width = int(others.max()).bit_length()
    table = np.concatenate(
        [
            (counts > 0).astype(np.uint8),
            _number(int(used[commonest]), bits_needed(len(counts))),
            _number(width, 4),
            to_bits(others.astype(np.uint16), width),
        ]
    )
    return table, len(table) * _COST_UNIT + int((counts[used] * (_LOG2[scaled.sum() - 1] - _LOG2[scaled - 1])).sum())


def _take_table(reader: BitReader, alphabet: int, total: int) -> tuple[Int64, Int64]:
    """The symbols used and their frequencies, which sum to `total`."""
    used = np.flatnonzero(reader.take(alphabet, 1))
    commonest, width = reader.one(bits_needed(alphabet)), reader.one(4)
    if len(used) < 2 or commonest not in used:
        raise ValueError("a table needs two symbols, and the commonest one among them")
    others = reader.take(len(used) - 1, width).astype(np.int64) + 1
    if others.sum() >= total:
        raise ValueError(f"the frequencies of a table sum to more than {total}")
    return used, np.insert(others, np.searchsorted(used, commonest), total - others.sum())


def _state(coded: list[tuple[UInt8, Int64, Int64]]) -> bytes:
    """One ANS state for the symbols of all coded groups; the last one goes in first."""
    coder = constriction.stream.stack.AnsCoder()
    for members, used, scaled in reversed(coded):
        places = np.zeros(256, np.int32)
        places[used] = np.arange(len(used))
        coder.encode_reverse(places[members.ravel()], _model(scaled))
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    return words.rstrip(b"\0")


def _take_state(state: bytes, symbols: UInt8, coded: list[tuple[Int64, Int64, Int64]]) -> None:
    if state.endswith(b"\0"):
        raise ValueError("the ANS state ends in a zero byte")
    words = np.frombuffer(state + bytes(-len(state) % 4), "<u4").astype(np.uint32)
    coder = constriction.stream.stack.AnsCoder(words)
    for columns, used, scaled in coded:
        places = coder.decode(_model(scaled), len(symbols) * len(columns))
        symbols[:, columns] = used[places].reshape(len(symbols), len(columns))


def _model(scaled: Int64) -> object:
    # perfect=False: the search for the last 1e-6 bit has not always ended (constriction issue 20).
    model: object = constriction.stream.model.Categorical(scaled.astype(np.float64), perfect=False)
    return model
