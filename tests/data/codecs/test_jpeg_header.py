"""Only a baseline 4:2:0 JPEG of the size that the index says passes the parse check before the decoders."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rhofast.data.codecs.jpeg import find_fault
from tests.helpers.shards import HEIGHT, WIDTH, JpegCodec, encode_mjpeg, frame_pixels

PIXELS = frame_pixels(3, 5)


def encode(form: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    sink = BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(sink, form, **options)
    return sink.getvalue()


WHOLE = encode(subsampling=2)


def resized(width: int, height: int) -> bytes:
    """The same file whose frame header says another size."""
    at = WHOLE.index(b"\xff\xc0") + 5
    return WHOLE[:at] + struct.pack(">HH", height, width) + WHOLE[at + 4 :]


def test_what_the_codec_and_other_encoders_store_passes() -> None:
    content = encode_mjpeg([PIXELS] * 3)
    units = JpegCodec().index_member(BytesIO(content)).units
    for offset, size in zip(units.offset.tolist(), units.size.tolist(), strict=True):
        assert find_fault(memoryview(content)[offset : offset + size], WIDTH, HEIGHT) is None
    assert find_fault(WHOLE, WIDTH, HEIGHT) is None
    assert find_fault(encode(subsampling=2, optimize=True, exif=b"Exif\0\0" + bytes(500)), WIDTH, HEIGHT) is None


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (b"", "not a whole JPEG"),
        (b"\xff\xd8\xff\xd9", "not a whole JPEG"),
        (WHOLE[:-1], "not a whole JPEG"),
        (encode("PNG"), "not a whole JPEG"),
        (encode("TIFF"), "not a whole JPEG"),
        (encode("BMP"), "not a whole JPEG"),
        (encode("JPEG2000"), "not a whole JPEG"),
        (encode("JPEG2000", no_jp2=True), "not a whole JPEG"),
        (b"\xff\xd8" + encode("JPEG2000")[:200] + b"\xff\xd9", "not a baseline"),
        (encode(subsampling=0), "not a baseline"),
        (encode(subsampling=2, progressive=True), "not a baseline"),
        (encode(mode="L"), "not a baseline"),
        (encode(mode="CMYK"), "not a baseline"),
        (resized(16384, 16384), "a picture of 16384x16384, not 64x48"),
        (resized(HEIGHT, WIDTH), "a picture of 48x64, not 64x48"),
        (resized(0, 0), "a picture of 0x0, not 64x48"),
        (WHOLE[: WHOLE.index(b"\xff\xda")] + b"\xff\xd9", "not a baseline"),
        (WHOLE[:2] + WHOLE[WHOLE.index(b"\xff\xda") :], "not a baseline"),
        (WHOLE[:2] + b"\xff\xe0\xff\xff" + WHOLE[2:], "not a baseline"),
        (WHOLE[:2] + b"\xff\xe0\x00\x00" + WHOLE[2:], "not a baseline"),
        (WHOLE.replace(b"\xff\xc0", b"\xff\xc1", 1), "not a baseline"),
        (WHOLE.replace(b"\xff\xc4", b"\xff\xc5", 4), "not a baseline"),
    ],
)
def test_anything_else_is_refused_by_name(picture: bytes, fault: str) -> None:
    assert (find_fault(memoryview(picture), WIDTH, HEIGHT) or "passes").startswith(fault)


def test_no_cut_and_no_flipped_byte_of_a_header_is_an_exception() -> None:
    rng = np.random.default_rng(0)
    for end in range(len(WHOLE)):
        find_fault(memoryview(WHOLE)[:end], WIDTH, HEIGHT)
        find_fault(WHOLE[:end] + b"\xff\xd9", WIDTH, HEIGHT)
    for _ in range(2000):
        spoiled = bytearray(WHOLE)
        spoiled[int(rng.integers(2, 700)) % len(spoiled)] = int(rng.integers(256))
        find_fault(bytes(spoiled), WIDTH, HEIGHT)
