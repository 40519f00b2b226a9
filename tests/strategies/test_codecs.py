"""One row a codec: its size is what it says, its error within what it says, bytes it never makes are refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.codecs import CODECS, link_named
from strategies.codecs.quantised import Quantised
from strategies.codecs.top_k import TopK
from strategies.soft_labels import LOG_FLOOR, SoftLabels


def floored(log_probs):
    return np.maximum(log_probs, np.float32(LOG_FLOOR))


def l1(decoded, log_probs):
    """[n] L1 distance of the probabilities."""
    return np.abs(np.exp(decoded.astype(np.float64)) - np.exp(log_probs.astype(np.float64))).sum(axis=1)


def kept_or_mean(k):
    """Whether each decoded entry is one of the k largest to 2^-11, or the mean of the others to as much."""

    def within(decoded, log_probs):
        expected, order = floored(log_probs), np.argsort(-log_probs, axis=1)
        rest = np.exp(np.take_along_axis(log_probs, order[:, k:], axis=1).astype(np.float64)).mean(axis=1)
        np.put_along_axis(expected, order[:, k:], floored(np.log(np.maximum(rest, 1e-9)))[:, None], axis=1)
        # What is rounded is the log of the tail's mass, which is nearer to 0 than that of its mean.
        return np.abs(decoded - expected) <= np.abs(expected) * 2.0**-11 + 1e-5

    return within


# link without options: bytes of 7 rows x 5 classes, how near decoded values are to log-probabilities
ROWS = {
    "float32": (4 * 7 * 5, lambda decoded, log_probs: decoded == floored(log_probs)),
    "float16": (
        2 * 7 * 5,
        lambda decoded, log_probs: np.abs(decoded - floored(log_probs)) <= np.abs(floored(log_probs)) * 2.0**-11 + 1e-7,
    ),
    # ceil(log2 5) = 3 bits a row are 21 bits; classes / (2 S) = 5/2
    "quantised:1": (3, lambda decoded, floored: l1(decoded, floored) <= 5 / 2 + 2.1e-4),
    # binom(3 + 4, 4) = 35 rows are 6 bits each, together 42
    "quantised:2": (6, lambda decoded, floored: l1(decoded, floored) <= 5 / 6 + 2.1e-4),
    # binom(255 + 4, 4) = 183,181,376 rows are 28 bits each, together 196
    "quantised:8": (25, lambda decoded, floored: l1(decoded, floored) <= 5 / 510 + 2.1e-4),
    "top-k:1": (7 * (1 + 2 + 2), kept_or_mean(1)),
    "top-k:3": (7 * (3 + 6 + 2), kept_or_mean(3)),
}
LINKS = sorted(ROWS) + [f"{spec}{options}" for spec in sorted(ROWS) for options in ("+entropy", "+delta+entropy")]


def votes(seed, classes, n=7, scale=3.0):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(n, classes))
    return SoftLabels.from_logits(np.arange(n), logits).log_probs


def symbols_of(spec, log_probs):
    return link_named(spec).codec.symbols(log_probs, np.arange(len(log_probs)))


def test_every_codec_has_a_row():
    assert {spec.partition(":")[0] for spec in ROWS} == set(CODECS)


@pytest.mark.parametrize("spec", sorted(ROWS))
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100.0))
@settings(max_examples=40)
def test_a_round_trip_stays_within_the_stated_error(spec, seed, scale):
    log_probs = votes(seed, 5, scale=scale)
    codec = link_named(spec).codec
    decoded = codec.values(codec.unpack(codec.pack(symbols_of(spec, log_probs), 5), 7, 5), 5)
    assert decoded.dtype == np.float32
    assert ROWS[spec][1](decoded, log_probs).all()
    assert np.abs(np.exp(decoded.astype(np.float64)).sum(1) - 1).max() <= codec.sum_tolerance(5)


@pytest.mark.parametrize("spec", sorted(ROWS))
def test_the_stated_size_is_the_real_one(spec):
    codec = link_named(spec).codec
    assert codec.size(7, 5) == len(codec.pack(symbols_of(spec, votes(0, 5)), 5)) == ROWS[spec][0]


# 10 classes: 4 bits; binom(24, 9) = 1,307,504 in 21 bits; binom(264, 9) in 54 bits (5.3: 20.3 and 53.7 rounded up).
# 16 classes of 8 bits outgrow 2^63 and 17 classes the enumeration: bits * (C - 1). 300 classes: 9 bits, two id bytes.
@pytest.mark.parametrize(
    ("spec", "classes", "row_bits"),
    [
        ("quantised:1", 2, 1),
        ("quantised:1", 10, 4),
        ("quantised:1", 300, 9),
        ("quantised:4", 10, 21),
        ("quantised:8", 10, 54),
        ("quantised:8", 16, 8 * 15),
        ("quantised:2", 17, 2 * 16),
        ("top-k:4", 10, 8 * (4 + 10)),
        ("top-k:4", 300, 8 * (8 + 10)),
    ],
)
def test_a_row_costs_what_the_reference_says(spec, classes, row_bits):
    codec = link_named(spec).codec
    symbols = symbols_of(spec, votes(1, classes, n=8))
    payload = codec.pack(symbols, classes)
    assert len(payload) == codec.size(8, classes) == row_bits
    assert (codec.unpack(payload, 8, classes) == symbols).all()


@pytest.mark.parametrize("spec", sorted(ROWS))
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_a_payload_of_another_length_is_refused(spec, change):
    codec = link_named(spec).codec
    with pytest.raises(ValueError, match=f"payload has .* bytes; {ROWS[spec][0]} expected"):
        codec.unpack(change(codec.pack(symbols_of(spec, votes(0, 5)), 5)), 7, 5)


@pytest.mark.parametrize("spec", sorted(ROWS))
@pytest.mark.parametrize("classes", [4, 10, 100, 1000])
def test_uniform_and_certain_rows_are_within_the_sum_tolerance(spec, classes):
    # Uniform is the worst case of rounding, every entry is off in the same direction; certain is that of the floor.
    certain = np.full((1, classes), -1e3)
    certain[0, 0] = 0.0
    for logits in (np.zeros((1, classes)), certain):
        codec = link_named(spec).codec
        log_probs = SoftLabels.from_logits(np.arange(1), logits).log_probs
        decoded = codec.values(codec.symbols(log_probs, np.arange(1)), classes)
        assert abs(np.exp(decoded.astype(np.float64)).sum() - 1) <= codec.sum_tolerance(classes)


@pytest.mark.parametrize("spec", sorted(ROWS))
@pytest.mark.parametrize("classes", [4, 5000])
def test_a_certain_site_has_no_veto(spec, classes):
    decoded = link_named(spec).codec.values(symbols_of(spec, votes(2, classes, scale=1e3)), classes)
    assert decoded.min() >= LOG_FLOOR * (1 + 2.0**-11)


@pytest.mark.parametrize("spec", sorted(ROWS))
@pytest.mark.parametrize("classes", [4, 10, 256, 257, 1000])
def test_symbols_stay_below_their_alphabets(spec, classes):
    codec = link_named(spec).codec
    alphabets, groups = codec.alphabets(classes), codec.groups(classes)
    symbols = symbols_of(spec, votes(3, classes, n=50))
    assert alphabets.min() >= 2
    assert alphabets.max() <= 256
    assert symbols.dtype == np.uint8
    assert symbols.shape[1] == len(alphabets) == len(groups)
    assert (symbols < alphabets).all()
    assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))


# 5.4: the tail of .15 and .05 is spread evenly
def test_top_k_gives_the_row_of_the_reference():
    codec = TopK(2)
    symbols = codec.symbols(np.log([[0.30, 0.15, 0.50, 0.05]]).astype(np.float32), np.array([0]))
    assert symbols[0, :2].tolist() == [0, 2]
    assert np.exp(codec.values(symbols, 4)) == pytest.approx(np.array([[0.3, 0.1, 0.5, 0.1]]), rel=1e-3)


@pytest.mark.parametrize("spec", ["quantised:1", "quantised:2", "quantised:3", "quantised:8"])
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_labels_that_were_quantised_once_do_not_move_again(spec, classes):
    symbols = symbols_of(spec, votes(5, classes, n=50))
    codec = link_named(spec).codec
    assert (codec.symbols(codec.values(symbols, classes), np.arange(50)) == symbols).all()


# uniform rows: quantised:1 gives one unit, quantised:2 three, top-k:3 three places
@pytest.mark.parametrize(("spec", "places"), [("quantised:1", 1), ("quantised:2", 3), ("top-k:3", 3)])
def test_ties_favour_no_class(spec, places):
    rows, classes = 4000, 8
    codec = link_named(spec).codec
    log_probs = np.full((rows, classes), -np.log(classes), np.float32)
    symbols = codec.symbols(log_probs, np.arange(rows))
    if spec == "top-k:3":  # the kept ones have the same value as the tail; the ids tell
        wins = np.bincount(symbols[:, :3].ravel(), minlength=classes)
    else:
        wins = (codec.values(symbols, classes) > -5).sum(axis=0)
    share = places / classes
    assert wins.sum() == rows * places
    # five standard deviations of a binomial
    assert np.abs(wins - rows * share).max() < 5 * np.sqrt(rows * share * (1 - share))


@pytest.mark.parametrize("spec", ["quantised:1", "quantised:2", "top-k:3"])
def test_ties_are_decided_by_the_row_and_not_by_its_place(spec):
    codec = link_named(spec).codec
    log_probs = np.full((50, 8), -np.log(8), np.float32)
    forwards = codec.symbols(log_probs, np.arange(50))
    assert (codec.symbols(log_probs, np.arange(50)[::-1])[::-1] == forwards).all()
    assert (codec.symbols(log_probs, np.arange(50) + 50) != forwards).any()


def test_rounding_noise_does_not_decide_a_tie():
    # .5 - 2^-40 against .5: float32 cannot tell, float64 could
    logits = np.array([[0.0, 2.0**-40], [2.0**-40, 0.0]])
    log_probs = SoftLabels.from_logits(np.arange(2), logits).log_probs
    first = Quantised(1).symbols(log_probs, np.array([3, 3]))
    assert first[0] == first[1]


@pytest.mark.parametrize("spec", LINKS)
@given(
    seed=st.integers(0, 10**6), n=st.integers(0, 40), classes=st.integers(4, 300), scale=st.sampled_from([0.1, 3, 50])
)
@settings(max_examples=25, deadline=None)
def test_a_link_returns_the_symbols_within_its_bytes(spec, seed, n, classes, scale):
    link, symbols = link_named(spec), symbols_of(spec, votes(seed, classes, n, scale))
    payload = link.encode(symbols, classes)
    assert (link.decode(payload, n, classes) == symbols).all()
    assert len(payload) <= link.most_bytes(n, classes) == link.codec.size(n, classes) + link.entropy
    assert link.entropy or len(payload) == link.most_bytes(n, classes)


# 20 rows of levels are 5 bits and 35 are 6: where all are equally common, coding a level of its own cannot do that.
@pytest.mark.parametrize(("spec", "classes", "row_bits"), [("quantised:2", 4, 5), ("quantised:2", 5, 6)])
def test_what_coding_makes_longer_is_packed_and_costs_one_byte_more(spec, classes, row_bits):
    link, plain = link_named(f"{spec}+entropy"), link_named(spec)
    count = link.codec.steps + 1
    every = np.array([row for row in itertools.product(range(count), repeat=classes - 1) if sum(row) < count], np.uint8)
    symbols = np.tile(every, (8, 1))
    payload = link.encode(symbols, classes)
    assert payload == b"\0" + plain.encode(symbols, classes)
    assert len(payload) == 1 + len(every) * row_bits == link.most_bytes(len(symbols), classes)
    assert (link.decode(payload, len(symbols), classes) == symbols).all()
    for broken, why in (
        (payload + b"\0", "at most"),
        (payload[:-1], "expected"),
        (b"\1" + payload[1:], "begin with a bit that is 0"),
        (b"\0" + b"\xff" * (len(payload) - 1), "are rows of levels"),
    ):
        with pytest.raises(ValueError, match=why):
            link.decode(broken, len(symbols), classes)


def test_what_could_be_coded_in_no_more_bytes_is_not_believed_packed():
    link, symbols = link_named("quantised:2+entropy"), np.tile(np.array([[3, 0, 0]], np.uint8), (80, 1))
    with pytest.raises(ValueError, match="packed where coding them takes no more"):
        link.decode(b"\0" + link.codec.pack(symbols, 4), 80, 4)


@pytest.mark.parametrize("spec", [spec for spec in LINKS if "+delta" in spec])
@given(seed=st.integers(0, 10**6), classes=st.sampled_from([4, 10, 256, 257, 300]))
@settings(max_examples=10, deadline=None)
def test_a_difference_is_undone_by_applying_it(spec, seed, classes):
    link = link_named(spec)
    old, new = symbols_of(spec, votes(seed, classes)), symbols_of(spec, votes(seed + 1, classes))
    difference = link.difference(new, old, classes)
    assert (link.apply(difference, old, classes) == new).all()
    assert (difference < link.codec.alphabets(classes)).all()
    assert not link.difference(old, old, classes).any()
    assert (link.difference(new, np.zeros_like(new), classes) == new).all()
    payload = link.encode_difference(new, old, classes)
    if len(payload) <= link.most_bytes(len(new), classes):
        assert (link.decode(payload, len(new), classes) == difference).all()


@given(
    spec=st.sampled_from(LINKS),
    classes=st.sampled_from([4, 5, 11, 300]),
    seed=st.integers(0, 10**6),
    changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(1, 255)), max_size=3),
    noise=st.none() | st.binary(max_size=60),
)
@settings(max_examples=500, deadline=None)
def test_bytes_are_refused_or_are_the_only_ones_for_their_symbols(spec, classes, seed, changes, noise):
    link = link_named(spec)
    payload = bytearray(noise or link.encode(symbols_of(spec, votes(seed, classes)), classes))
    if noise and not link.entropy:
        payload = bytearray(itertools.islice(itertools.cycle(noise), link.most_bytes(7, classes)))
    for at, change in changes:
        payload[at % len(payload)] ^= change
    try:
        symbols = link.decode(bytes(payload), 7, classes)
    except ValueError:
        return
    assert symbols.dtype == np.uint8
    assert (symbols < link.codec.alphabets(classes)).all()
    assert link.encode(symbols, classes) == payload
    try:
        values = link.codec.values(symbols, classes)
    except ValueError:
        return
    assert values.shape == (7, classes)
    assert values.dtype == np.float32


def test_whatever_a_float16_holds_is_handed_on_for_the_caller_to_refuse():
    # all of them: quiet and signalling NaN, infinities, positive logarithms
    patterns = np.arange(2**16).astype("<u2").view(np.uint8).reshape(-1, 2)
    for check, count in ((np.isnan, 2 * 1023), (np.isinf, 2)):
        expected = check(patterns.view("<f2"))
        assert expected.sum() == count
        assert (check(link_named("float16").codec.values(patterns, 1)) == expected).all()
        id_and_twice = np.concatenate([np.zeros((2**16, 1), np.uint8), patterns, patterns], axis=1)
        assert (check(link_named("top-k:1").codec.values(id_and_twice, 3)) == expected).all()


def test_a_float32_that_is_no_number_is_handed_on():
    quiet_and_signalling = np.array([[0, 0, 192, 127, 1, 0, 128, 127]], np.uint8)
    assert np.isnan(link_named("float32").codec.values(quiet_and_signalling, 2)).all()


@pytest.mark.parametrize(
    ("spec", "classes", "payload", "why"),
    [
        # 3 bits: label 5 of 5, then a filling that is not zero
        ("quantised:1", 5, [0b101_00000], "column 0 holds a symbol that is not below its alphabet of 5"),
        ("quantised:1", 5, [0b001_00001], "fill up a byte must be zero"),
        # 5 bits tell 32 numbers apart, of which 20 are rows
        ("quantised:2", 4, [20 << 3], "number 20; only 0 to 19"),
        ("top-k:1", 3, [3, 0, 0, 0, 0], "column 0 holds"),
    ],
)
def test_bytes_that_no_encoder_makes_are_refused(spec, classes, payload, why):
    with pytest.raises(ValueError, match=why):
        link_named(spec).decode(bytes(payload), 1, classes)


@pytest.mark.parametrize(
    ("spec", "classes", "row", "why"),
    [
        # 300 = 256 + 44: each byte is within its alphabet
        ("quantised:1", 300, [44, 1], "label 300 must be below 300"),
        ("quantised:2", 4, [2, 1, 1], "levels of a row sum to 4; 3 are there"),
        ("top-k:2", 4, [1, 1] + [0] * 6, "ascending, different and below 4"),
        ("top-k:2", 4, [2, 1] + [0] * 6, "ascending, different and below 4"),
        ("top-k:1", 300, [44, 1] + [0] * 4, "ascending, different and below 300"),
    ],
)
def test_symbols_that_no_encoder_makes_mean_nothing(spec, classes, row, why):
    with pytest.raises(ValueError, match=why):
        link_named(spec).codec.values(np.array([row], np.uint8), classes)


@pytest.mark.parametrize(
    ("spec", "classes", "why"),
    [
        ("quantised:1", 2**16 + 1, r"classes=65537 must be in \[2, 65536\] for quantised: use float16"),
        ("quantised:2", 1, r"classes=1 must be in \[2, 65536\]"),
        ("top-k:4", 4, "k=4 must be below the 4 classes: use float16"),
        ("top-k:4", 2**16 + 1, "classes=65537 must be at most 65536 for top-k: use float16"),
    ],
)
def test_classes_that_a_codec_cannot_carry_are_refused_everywhere(spec, classes, why):
    codec, row = link_named(spec).codec, np.zeros((1, 14), np.uint8)
    for call in (
        lambda: codec.alphabets(classes),
        lambda: codec.groups(classes),
        lambda: codec.size(1, classes),
        lambda: codec.symbols(np.zeros((1, classes), np.float32), np.array([0])),
        lambda: codec.values(row, classes),
        lambda: codec.unpack(b"", 1, classes),
    ):
        with pytest.raises(ValueError, match=why):
            call()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Quantised(0), r"bits=0 must be in \[1, 8\]"),
        (lambda: Quantised(9), "bits=9 .* use float16"),
        (lambda: TopK(0), r"k=0 must be in \[1, 65535\]"),
        (lambda: TopK(2**16), "k=65536"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(make, why):
    with pytest.raises(ValueError, match=why):
        make()
