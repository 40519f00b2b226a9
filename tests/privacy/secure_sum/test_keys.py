"""The standards' own vectors, and masks that are packed, cut and sealed as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.keys import (
    agreed,
    check_public,
    derived,
    digest,
    identity_key,
    is_signed,
    private_key,
    public_key,
    sealed,
    signed,
    unsealed,
)
from privacy.secure_sum.masks import packed, packed_size, stream, unpacked, word_type

hexed = bytes.fromhex


def test_agreement_is_that_of_rfc_7748_section_6_1():
    alice = hexed("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = hexed("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_key(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert agreed(private_key(alice), public_key(bob)).hex() == shared
    assert agreed(private_key(bob), public_key(alice)).hex() == shared


def test_derivation_is_that_of_rfc_5869_appendix_a_1():
    derived_42 = derived(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert derived_42.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")


def test_signatures_are_those_of_rfc_8032_section_7_1():
    private = hexed("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert identity_key(private).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert signed(private, b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_a_mask_is_the_key_stream_of_rfc_8439_appendix_a_1():
    told = hexed("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37")
    assert stream(bytes(32), 12, 20).tobytes() == told
    assert stream(bytes(32), 6, 33).tobytes() == told
    # The first four bytes 76 b8 e0 ad, the lowest first.
    assert stream(bytes(32), 1, 32).tolist() == [0xADE0B876]


def test_only_the_whole_truth_opens_a_signature_or_a_seal():
    private, key = bytes(range(32)), bytes(32)
    assert is_signed(identity_key(private), b"text", signed(private, b"text"))
    assert not is_signed(identity_key(private), b"texT", signed(private, b"text"))
    assert not is_signed(identity_key(b"\1" * 32), b"text", signed(private, b"text"))
    assert not is_signed(b"no key", b"text", signed(private, b"text"))
    cipher = sealed(key, b"share", b"bound")
    assert unsealed(key, cipher, b"bound") == b"share"
    flipped = bytes([cipher[0] ^ 1]) + cipher[1:]
    for wrong in ((b"\1" * 32, cipher, b"bound"), (key, flipped, b"bound"), (key, cipher, b""), (key, b"", b"bound")):
        with pytest.raises(SecureSumError, match="sealed: a share that was not sealed for this client"):
            unsealed(*wrong)


@pytest.mark.parametrize("low_order", [0, 1, 2**255 - 19, 2**255 - 20])
def test_keys_with_which_everybody_agrees_on_the_same_are_refused(low_order):
    with pytest.raises(SecureSumError, match="key: a public key with which nothing secret"):
        check_public(low_order.to_bytes(32, "little"))


def test_a_digest_says_where_its_parts_end():
    assert digest(b"p", b"ab", b"c") != digest(b"p", b"a", b"bc") != digest(b"pa", b"", b"bc")


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 53), numbers=st.lists(st.integers(0, 2**53 - 1), max_size=40))
def test_packed_numbers_are_their_binary_digits_one_after_another(bits, numbers):
    words = np.array([number % 2**bits for number in numbers], word_type(bits))
    digits = "".join(f"{int(word):0{bits}b}" for word in words)
    payload = packed(words, bits)
    assert len(payload) == packed_size(len(numbers), bits)
    assert "".join(f"{byte:08b}" for byte in payload) == digits.ljust(8 * len(payload), "0")
    assert unpacked(payload, len(numbers), bits).tolist() == words.tolist()


def test_only_the_low_bits_of_a_word_are_packed():
    assert packed(np.array([0xFFFFFF01], np.uint32), 2) == packed(np.array([1], np.uint32), 2)


def test_packed_numbers_with_bits_behind_the_end_or_of_another_length_are_refused():
    assert unpacked(b"\xe0", 1, 3).tolist() == [7]
    with pytest.raises(SecureSumError, match="malformed: bits behind the end"):
        unpacked(b"\xe1", 1, 3)
    for payload in (b"", b"\xe0\x00"):
        with pytest.raises(SecureSumError, match="bytes where 1 numbers of 3 bits are due"):
            unpacked(payload, 1, 3)
