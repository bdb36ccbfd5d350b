"""How the tars of remote sets are read, if the configuration leaves it open: as a whole, or by range requests.

Whole tars pay if they are fetched once and kept. By ranges a run fetches only what it uses, but again in every epoch.
So a run that would fetch more than the sets in all, and whose cache holds them, reads them through the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rhofast.config.schema import ClipConfig
from rhofast.data.codecs import build_codec
from rhofast.data.format.dataset_json import DatasetInfo

_UNKNOWN_GROUP = 250  # frames, of a `copy` set: encoders' default


@dataclass(frozen=True, slots=True)
class RemoteChoice:
    """How tars are read.

    Attributes:
        ranges: Whether only needed bytes are fetched, by range requests.
        reason: Why, in one sentence.
    """

    ranges: bool
    reason: str


def used_share(info: DatasetInfo, clips: ClipConfig) -> float:
    """Return about which share of a set's bytes one pass with random clips needs, in (0, 1].

    Whole groups of pictures are needed, and the groups of clips are taken to be distinct.

    Args:
        info: The set.
        clips: Options of the clips.
    """
    codecs = [(build_codec(settings), settings) for settings in info.codecs]
    # Nobody counted which sample has which codec, so those of the longest groups count.
    group = max(1 if codec.pictures else int(settings.get("gop") or _UNKNOWN_GROUP) for codec, settings in codecs)
    frames = info.num_frames / info.num_samples
    rate = info.num_frames / info.seconds if info.seconds else clips.fps
    stride = max(1.0, clips.frame_stride * rate / clips.fps)
    if clips.rule == "segments":
        stride = max(1.0, frames / clips.num_frames)
    # A clip of T frames needs a group for each, or all groups from its first to its last.
    needed = min(clips.num_frames * group, (clips.num_frames - 1) * stride + group)
    return min(1.0, clips.num_clips * needed / frames)


def choose_remote(
    sets: Sequence[tuple[DatasetInfo, int]], *, cache_bytes: int, clips: ClipConfig | None, passes: float | None
) -> RemoteChoice:
    """Choose how the tars of sets are read that share a cache.

    Args:
        sets: At least one set, with the bytes of the shards of which samples are used, tars and indices.
        cache_bytes: Limit of the cache.
        clips: Options of the clips; None if they are not known, and then all bytes may be needed.
        passes: How often the samples are read; None if that is not known, and then often.
    """
    total = sum(size for _, size in sets)
    has = f"{len(sets)} remote sets have" if len(sets) > 1 else "the set has"
    has += f" {total / 1e9:.3g} GB"
    held = f"data.cache_gb={cache_bytes / 1e9:g}"
    if total > cache_bytes:
        return RemoteChoice(True, f"{has}, more than {held}")
    if passes is None:
        return RemoteChoice(False, f"{has}, which {held} holds")
    share = 1.0
    if clips is not None:
        share = sum(used_share(info, clips) * size for info, size in sets) / max(1, total)
    reads = f"{passes:g} pass{'' if passes == 1 else 'es'} of about {share:.0%} of the bytes"
    if share * passes > 1:
        return RemoteChoice(False, f"{has}, which {held} holds, and {reads} would fetch more")
    return RemoteChoice(True, f"{has}, and {reads} fetch no more")
