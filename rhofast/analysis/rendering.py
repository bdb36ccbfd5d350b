"""Drawing clips: a contact sheet with all frames side by side, or an animation in which the clips play.

    sheet       title                       animation    title             title
                frame frame frame ...                    clip 1  clip 2    clip 1  clip 2
                caption of clip 1                        caption caption   caption caption
                frame frame frame ...
                caption of clip 2

What it is not: it knows no shards and no plans; those are words to it (show.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont

from rhofast.errors import ConfigError

SUFFIXES = (".png", ".gif", ".mp4")
_STILL, _MOVING = 112, 192  # narrower frames are enlarged by a whole factor: in a sheet, in an animation
_MARGIN, _GAP, _BAR = 12, 2, 4
_APART, _BETWEEN = 10, 24  # side by side: two clips of a group, two groups
_ASPECT = 1.6  # of an animation, about
_PLAY_S = 6.0  # an MP4 plays the clips over and over for at least so long: most players do not repeat
_PAPER, _INK, _FAINT, _ALERT = (255, 255, 255), (20, 20, 20), (100, 100, 100), (176, 32, 32)
_BLUE, _PALE = (37, 99, 168), (214, 218, 224)


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """One clip. frames: u8[T, H, W, 3]; caption: phrases, each kept on a line where it fits."""

    frames: npt.NDArray[np.uint8]
    caption: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The clips of one video. title: phrases; note: what is to catch the eye, or None."""

    title: tuple[str, ...]
    strips: tuple[Strip, ...]
    note: str | None = None


def check_suffix(path: Path) -> None:
    """Raises ConfigError unless `write_pictures` knows the format."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {path}: not a .png file, nor a .gif or .mp4")


def write_pictures(path: Path, groups: Sequence[Group], *, heading: Sequence[str], fps: float) -> tuple[int, int]:
    """Draw groups whose clips are all of one shape, as what the suffix of `path` says: a sheet (.png), or an animation
    (.gif, or .mp4 with H.264) of `fps` frames a second. Returns width and height. Raises ConfigError for another
    suffix, OSError where the file cannot be written."""
    check_suffix(path)
    if path.suffix.lower() == ".png":
        sheet = contact_sheet(groups, heading=heading)
        sheet.save(path)
        return sheet.size
    pictures = animation(groups, heading=heading)
    write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
    write(path, pictures, fps)
    return pictures[0].size


def contact_sheet(groups: Sequence[Group], *, heading: Sequence[str] = ()) -> Image.Image:
    """One row a clip, frames from left to right; the clips of a group one below the other."""
    t, height, width, _ = groups[0].strips[0].frames.shape
    factor = _enlarge(width, _STILL)
    width, height = width * factor, height * factor
    page = _Page(groups, heading, tile=(t * (width + _GAP) - _GAP, height), columns=1, abreast=False)
    for strip, (x, y) in zip(_strips(groups), page.places, strict=True):
        for number, frame in enumerate(strip.frames):
            page.image.paste(_tile(frame, factor), (x + number * (width + _GAP), y))
    return page.image


def animation(groups: Sequence[Group], *, heading: Sequence[str] = ()) -> list[Image.Image]:
    """T pictures on each of which every clip shows one frame, with a bar under it that tells which; their sides are
    even, as video wants them."""
    t, height, width, _ = groups[0].strips[0].frames.shape
    factor = _enlarge(width, _MOVING)
    tile = width * factor, height * factor + _BAR + 1
    across, down = len(groups[0].strips) * (tile[0] + _APART) + _BETWEEN, tile[1] + 5 * _line(11)
    columns = min(len(groups), max(1, round(math.sqrt(len(groups) * _ASPECT * down / across))))
    columns = -(-len(groups) // -(-len(groups) // columns))  # as many rows, evenly filled
    page = _Page(groups, heading, tile=tile, columns=columns, abreast=True)
    pictures = []
    for now in range(t):
        picture = page.image.copy()
        draw = ImageDraw.Draw(picture)
        for strip, (x, y) in zip(_strips(groups), page.places, strict=True):
            picture.paste(_tile(strip.frames[now], factor), (x, y))
            bar = y + tile[1] - _BAR
            for number in range(t):
                left, right = (x + tile[0] * edge // t for edge in (number, number + 1))
                draw.rectangle((left, bar, right - 2, bar + _BAR - 1), fill=_BLUE if number == now else _PALE)
        pictures.append(picture)
    return pictures


class _Page:
    """Paper with all words on it. image: even sides; places: left and top of each clip's pictures, in order."""

    def __init__(
        self, groups: Sequence[Group], heading: Sequence[str], *, tile: tuple[int, int], columns: int, abreast: bool
    ) -> None:
        """tile: width and height that a clip's pictures take; abreast: a group's clips stand side by side."""
        beside = len(groups[0].strips) if abreast else 1
        block = beside * (tile[0] + _APART) - _APART
        width = 2 * _MARGIN + columns * (block + _BETWEEN) - _BETWEEN
        words: list[tuple[int, int, str, int, tuple[int, int, int]]] = []
        self.places: list[tuple[int, int]] = []

        def write(x: int, y: int, phrases: Sequence[str], room: int, size: int, color: tuple[int, int, int]) -> int:
            """The y below the lines."""
            for line in _wrap(phrases, size, room):
                words.append((x, y, line, size, color))
                y += _line(size)
            return y

        top = write(_MARGIN, _MARGIN, heading, width - 2 * _MARGIN, 14, _INK)
        top += _line(14) // 2 if heading else 0
        for first in range(0, len(groups), columns):
            row = groups[first : first + columns]
            lefts = [_MARGIN + number * (block + _BETWEEN) for number in range(len(row))]
            below = []
            for x, group in zip(lefts, row, strict=True):
                y = write(x, top, group.title, block, 13, _INK)
                below.append(write(x, y, (group.note,) if group.note else (), block, 11, _ALERT))
            top = max(below) + 3
            below = []
            for left, group in zip(lefts, row, strict=True):
                x, y = left, top
                for strip in group.strips:
                    self.places.append((x, y))
                    end = write(x, y + tile[1] + 2, strip.caption, tile[0], 11, _FAINT)
                    below.append(end)
                    x, y = (x + tile[0] + _APART, y) if abreast else (x, end + 6)
            top = max(below) + _MARGIN
        self.image = Image.new("RGB", (width + width % 2, top + top % 2), _PAPER)
        draw = ImageDraw.Draw(self.image)
        for left, y, line, size, color in words:
            draw.text((left, y), line, fill=color, font=_font(size))


def _strips(groups: Sequence[Group]) -> list[Strip]:
    return [strip for group in groups for strip in group.strips]


def _tile(frame: npt.NDArray[np.uint8], factor: int) -> Image.Image:
    height, width, _ = frame.shape
    return Image.fromarray(frame).resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _enlarge(width: int, least: int) -> int:
    return max(1, -(-least // width))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib: it has the letters of most alphabets, for the names of classes."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _line(size: int) -> int:
    """Height of a line in pixels."""
    return size + 5


def _wrap(phrases: Sequence[str], size: int, room: int) -> list[str]:
    """Lines of phrases, broken between phrases, or between words where a phrase is longer than a line, or anywhere
    where a word is."""
    font = _font(size)

    def fits(text: str) -> bool:
        return font.getlength(text) <= room

    pieces = [(phrase, "   ") for phrase in phrases if fits(phrase)]
    if len(pieces) < len(phrases):
        pieces = []
        for phrase in phrases:
            words = [phrase] if fits(phrase) else phrase.split()
            pieces += [(word, " " if number else "   ") for number, word in enumerate(words)]
    lines: list[str] = []
    for piece, space in pieces:
        if lines and fits(lines[-1] + space + piece):
            lines[-1] += space + piece
            continue
        rest = piece
        while not fits(rest):
            cut = next(end for end in range(len(rest) - 1, 0, -1) if end == 1 or fits(rest[:end]))
            lines.append(rest[:cut])
            rest = rest[cut:]
        lines.append(rest)
    return lines


def _write_gif(path: Path, pictures: Sequence[Image.Image], fps: float) -> None:
    """All pictures with one palette, so that what stands still stays as it is, and is stored once."""
    samples = [np.asarray(picture)[::4, ::4].reshape(-1, 3) for picture in pictures]
    colors = np.concatenate(samples)[None]
    palette = Image.fromarray(colors).quantize(256, method=Image.Quantize.MEDIANCUT)
    shown = [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=round(1000 / fps), loop=0, optimize=False)


def _write_mp4(path: Path, pictures: Sequence[Image.Image], fps: float) -> None:
    """H.264 as browsers play it: 4:2:0, BT.709, limited range, the index in front."""
    repeats = max(1, math.ceil(_PLAY_S * fps / len(pictures)))
    path.open("wb").close()  # PyAV's own errors do not name the file
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "medium"}
        stream.thread_count = 1
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 1, 1, 1, 1
        frames = [
            av.VideoFrame.from_image(picture).reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            for picture in pictures
        ]
        for number in range(repeats * len(frames)):
            frame = frames[number % len(frames)]
            frame.pts = number
            frame.time_base = 1 / stream.codec_context.framerate
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
