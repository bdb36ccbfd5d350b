"""Looking at clips: contact sheets of exactly what training sees at an address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from rhofast.config import AugmentSection, ClipSection
from rhofast.data.index import ShardSet
from rhofast.data.pipeline import DecodePipeline
from rhofast.data.plan import training_plan
from rhofast.data.reader import Reader
from rhofast.data.types import AugmentPlan, ClipPlan
from rhofast.errors import ConfigError

_TILE = 112  # frames smaller than this are enlarged by a whole factor
_MARGIN, _GAP, _LINE = 12, 2, 17
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One clip as a row of a sheet: frames u8[T, H, W, 3], and the line under it."""

    frames: npt.NDArray[np.uint8]
    caption: str


def choose_samples(shards: ShardSet, count: int) -> list[int]:
    """`count` samples, evenly spread over a set."""
    return [int(sample) for sample in np.unique(np.linspace(0, len(shards) - 1, count).astype(int))]


def find_keys(shards: ShardSet, keys: Sequence[str]) -> list[int]:
    """The samples with these keys, in their order. Raises ConfigError for a key that is not in the set."""
    wanted = dict.fromkeys(keys, -1)
    for number in range(len(shards.info.shards)):
        index = shards.index(number)
        for row in range(len(index)):
            if index.key(row) in wanted:
                wanted[index.key(row)] = int(shards.starts[number]) + row
    missing = [key for key, sample in wanted.items() if sample < 0]
    if missing:
        raise ConfigError(f"{shards.root}: no sample has the key {missing[0]!r}")
    return list(wanted.values())


def show_clips(
    shards: ShardSet,
    *,
    clips: ClipSection,
    augment: AugmentSection,
    samples: Sequence[int],
    seed: int,
    epoch: int,
) -> Image.Image:
    """A contact sheet of the augmented clips that training makes of these samples in an epoch. Raises SampleError."""
    reader = Reader(shards)
    numbers = np.array(samples, dtype=np.int64)
    rows = [reader.locate(sample) for sample in samples]
    clip_plan, augment_plan = training_plan(rows, numbers, clips, augment, seed=seed, epoch=epoch)
    read = [reader.read(*one) for one in zip(samples, clip_plan.frames, rows, strict=True)]
    decoded = not reader.codec.pictures
    pipeline = DecodePipeline(
        augment, max_pictures=clip_plan.frames.size, color=True, blur=True, threads=2, decoded=decoded
    )
    frames = displayable(pipeline.run(read, clip_plan, augment_plan), augment)
    classes = shards.info.classes
    groups = []
    for b, row in enumerate(rows):
        label = "" if row.label is None else f"   {classes[row.label]}"
        strips = [
            Strip(frames=frames[b, p], caption=plan_caption(clip_plan, augment_plan, b, p))
            for p in range(frames.shape[1])
        ]
        groups.append((f"{row.key}{label}   {row.num_frames} frames, {row.fps:g} fps", strips))
    return contact_sheet(groups)


def displayable(pixels: torch.Tensor, augment: AugmentSection) -> npt.NDArray[np.uint8]:
    """Normalized pixels [B, P, C, T, H, W] as u8[B, P, T, H, W, C]."""
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (augment.mean, augment.std))
    restored = (pixels.cpu().float() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.asarray(restored.permute(0, 1, 3, 4, 5, 2).contiguous().numpy())


def plan_caption(clips: ClipPlan, augment: AugmentPlan, b: int, p: int) -> str:
    """The numbers of one clip's plan, on one line."""
    frames = clips.frames[b, p]
    left, top, width, height = (int(value) for value in augment.crop[b, p])
    parts = [f"frames {' '.join(map(str, frames))}", f"crop {width}x{height}+{left}+{top}"]
    if augment.flip[b, p]:
        parts.append("flipped")
    if augment.blur[b, p] > 0:
        parts.append(f"blur {augment.blur[b, p]:.1f}")
    return "   ".join(parts)


def contact_sheet(groups: Sequence[tuple[str, Sequence[Strip]]]) -> Image.Image:
    """One row a clip, frames from left to right; each group (title, strips) is the clips of one video."""
    factor = max(1, -(-_TILE // max(strip.frames.shape[1] for _, strips in groups for strip in strips)))
    title_font, font = ImageFont.load_default(15), ImageFont.load_default(12)
    width = height = 0
    for title, strips in groups:
        height += _LINE + 8
        width = max(width, int(title_font.getlength(title)))
        for strip in strips:
            h, w = (size * factor for size in strip.frames.shape[1:3])
            width = max(width, strip.frames.shape[0] * (w + _GAP) - _GAP, int(font.getlength(strip.caption)))
            height += h + _LINE + 6
        height += _MARGIN
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height + _MARGIN), _PAPER)
    draw, y = ImageDraw.Draw(sheet), _MARGIN
    for title, strips in groups:
        draw.text((_MARGIN, y), title, fill=_INK, font=title_font)
        y += _LINE + 8
        for strip in strips:
            _, h, w = strip.frames.shape[:3]
            for number, frame in enumerate(strip.frames):
                tile = Image.fromarray(frame).resize((w * factor, h * factor), Image.Resampling.NEAREST)
                sheet.paste(tile, (_MARGIN + number * (w * factor + _GAP), y))
            y += h * factor + 3
            draw.text((_MARGIN, y), strip.caption, fill=_FAINT, font=font)
            y += _LINE + 3
        y += _MARGIN
    return sheet
