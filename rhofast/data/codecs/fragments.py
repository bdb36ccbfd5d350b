"""What the codecs `h264`, `hevc` and `remux` share: closed groups of pictures in the fragments of an MP4.

    member   ftyp moov | moof mdat | moof mdat | ...
    units    0 header  | 1 group   | 2 group   | ...     the header holds no frame

A group starts with a key frame and needs no other group, so the header and any groups, put together, are a whole file
again.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from rhofast.data.codecs.codec import Codec, Part, by_frame
from rhofast.data.codecs.containers import Picture, checksums, fragment_starts
from rhofast.data.codecs.part_decoding import Source, decode_wanted
from rhofast.data.types import Units
from rhofast.data.units import frames_in


class FragmentCodec(Codec):
    """Closed groups of pictures, each in one fragment.

    Attributes:
        streams: Video codecs of its streams, by their FFmpeg names.
    """

    streams: ClassVar[tuple[str, ...]]

    def find_fault(self, unit: int, piece: memoryview, width: int, height: int) -> str | None:
        """Return why a unit does not begin as the header or a fragment of an MP4 does, or None."""
        kind = b"moof" if unit else b"ftyp"
        return None if piece[4:8] == kind else "not a piece of a fragmented MP4"

    def units_for(self, units: Units, num_frames: int, frames: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Return the header (row 0) and the groups of the wanted frames."""
        groups = np.unique(np.searchsorted(units.frame, frames, side="right") - 1)
        return np.concatenate([[0], groups]) if len(groups) else groups

    def decode(self, part: Part) -> dict[int, Picture]:
        """Decode the wanted frames on the host, from the file that header and groups make."""
        wanted, num_frames = renumbered(part)
        decoded = decode_wanted(self.source_of(part), num_frames, wanted)
        return by_frame(part, [decoded.get(number) for number in wanted.tolist()])

    def source_of(self, part: Part) -> Source:
        """Return the file that header and groups make; the header says everything, so nothing is probed."""
        return Source(part.joined(), (part.width, part.height), codecs=self.streams, probe=False)


def renumbered(part: Part) -> tuple[npt.NDArray[np.int32], int]:
    """Number the wanted frames in the file that consists of the units that were read.

    Returns:
        The numbers of the wanted frames in that file, i32[F], and the number of its frames.
    """
    counts = frames_in(part.units, part.num_frames)[part.rows]
    firsts = part.units.frame[part.rows]
    place = np.searchsorted(firsts, part.frames, side="right") - 1
    wanted = part.frames - firsts[place] + (np.cumsum(counts) - counts)[place]
    return wanted.astype(np.int32), int(counts.sum())


def groups_of(file: BinaryIO, positions: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the fragments of a member and the packets in each.

    Args:
        file: The member.
        positions: Position of each packet in the file, in the order of decoding.

    Returns:
        Where the header and each of the G fragments begin and where the last one ends, i64[G + 2], and the number of
        the fragment of each packet, i64[N].

    Raises:
        ValueError: There are no fragments, one without packets, or packets in another order.
    """
    starts = fragment_starts(file)
    if not starts:
        raise ValueError("the stored member has no fragments")
    groups = np.searchsorted(starts, positions, side="right") - 1
    if (groups < 0).any() or (np.bincount(groups, minlength=len(starts)) == 0).any():
        raise ValueError("the stored member has packets outside its fragments, or fragments without packets")
    if (np.diff(groups) < 0).any():
        raise ValueError("the stored member's packets are in another order than its fragments")
    return np.array([0, *starts, file.seek(0, io.SEEK_END)], dtype=np.int64), groups


def group_units(
    file: BinaryIO, offsets: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], means: npt.NDArray[np.float64]
) -> Units:
    """Return the units of a member: its header and its groups.

    Args:
        file: The member.
        offsets: Where the header and each group begin and where the last one ends, i64[G + 2].
        counts: Frames per group, i64[G].
        means: Mean color of the key frame of each group, f64[G, 3] in 0..255.
    """
    return Units(
        frame=np.concatenate([[0], np.cumsum(counts) - counts]).astype(np.int32),
        offset=offsets[:-1],
        size=np.diff(offsets).astype(np.int32),
        crc=checksums(file, offsets),
        rgb=np.concatenate([np.zeros((1, 3)), means]).astype(np.float32),
    )
