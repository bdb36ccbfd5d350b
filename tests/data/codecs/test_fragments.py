"""Which fragment of a member each packet lies in."""

from __future__ import annotations

import io
import struct

import pytest

from rhofast.data.codecs.fragments import groups_of


def fragmented(*sizes: int) -> io.BytesIO:
    """Return a file with one fragment for each size of media data."""
    content = b""
    for size in sizes:
        content += struct.pack(">I4s", 8, b"moof") + struct.pack(">I4s", 8 + size, b"mdat") + bytes(size)
    return io.BytesIO(content)


def test_packets_are_counted_by_the_fragment_in_which_they_lie() -> None:
    offsets, groups = groups_of(fragmented(40, 60), [16, 30, 72, 90, 120])
    assert (offsets.tolist(), groups.tolist()) == ([0, 0, 56, 132], [0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("positions", "says"),
    [([16, 30], "without packets"), ([16, 72, 30], "another order"), ([-1, 16, 72], "outside")],
)
def test_packets_that_do_not_fill_the_fragments_in_order_are_refused(positions: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        groups_of(fragmented(40, 60), positions)
