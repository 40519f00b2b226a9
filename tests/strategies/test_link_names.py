"""A link has one spelling, and every other one is refused with the way out."""

import pytest

from strategies.codecs import link_named
from strategies.codecs.quantised import Quantised
from strategies.codecs.top_k import TopK


def test_a_link_is_read_from_its_spelling():
    link = link_named("top-k:4+delta+entropy")
    assert (link.spec, link.codec, link.delta, link.entropy) == ("top-k:4+delta+entropy", TopK(4), True, True)
    assert link_named("quantised:1+entropy").codec == Quantised(1)
    assert not link_named("float16").entropy


def test_an_unknown_codec_lists_the_known_ones():
    for spec in ("float8", "", "+entropy", "float16 ", "Float16"):
        with pytest.raises(KeyError, match=r"unknown codec .*; known: float16, float32, quantised, top-k"):
            link_named(spec)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("float16+delta", r"saves nothing.* write float16\+delta\+entropy"),
        ("float16:3+entropy", r"takes no number: write float16\+entropy"),
        ("quantised+entropy", r"needs its bits: write quantised:NUMBER\+entropy"),
        ("top-k", "needs its k: write top-k:NUMBER"),
        ("quantised:9", r"bits=9 must be in \[1, 8\]"),
        ("top-k:99999", "k=99999"),
        # one meaning has one spelling
        ("float16+entropy+delta", "must be spelt NAME"),
        ("float16+entropy+entropy", "must be spelt NAME"),
        ("float16+zip", "must be spelt NAME"),
        ("quantised:01", "must be spelt NAME"),
        ("quantised:0", r"bits=0 must be in \[1, 8\]"),
        ("quantised:", "must be spelt NAME"),
        ("quantised:1 +entropy", "must be spelt NAME"),
        ("quantised:\N{ARABIC-INDIC DIGIT ONE}", "must be spelt NAME"),
        ("top-k:1000000", "must be spelt NAME"),
        ("float16+entropy\n", "must be spelt NAME"),
    ],
)
def test_another_spelling_is_refused(spec, why):
    with pytest.raises(ValueError, match=why):
        link_named(spec)
