"""Names are stored as UTF-8 without loss, whatever bytes they were."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.ingest.stored_names import original_name, stored_name, stored_path

pieces = st.lists(st.sampled_from([b"\xe9", b"%", b"E", b"9", b"25", "é".encode(), "跑".encode(), b"\n", b"\xff"]))


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        *[(os.fsdecode(b"caf\xe9"), "caf%E9"), ("café", "café"), ("跑步", "跑步"), ("100%", "100%"), ("a\nb", "a\nb")],
        *[("50%25", "50%2525"), ("%zz %", "%zz %"), (os.fsdecode(b"%\xe9"), "%%E9"), ("", "")],
    ],
)
def test_only_what_is_not_utf8_is_escaped(name: str, stored: str) -> None:
    assert stored_name(name) == stored


@given(st.one_of(st.binary(), pieces.map(b"".join)))
def test_every_name_can_be_had_back(name: bytes) -> None:
    stored = stored_name(os.fsdecode(name))
    assert stored.encode("utf-8").decode() == stored
    assert os.fsencode(original_name(stored)) == name


def test_a_surrogate_that_is_no_byte_is_not_text() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        stored_name("a\ud800")


def test_the_escapes_of_an_address_stay() -> None:
    assert stored_path("https://a.org/my%20clip.mp4") == "https://a.org/my%20clip.mp4"
    assert stored_path("/videos/my%20clip.mp4") == "/videos/my%2520clip.mp4"
