"""Draw clips: a contact sheet with all frames side by side, or an animation in which the clips play.

    sheet       title                       animation    title             title
                frame frame frame ...                    clip 1  clip 2    clip 1  clip 2
                caption of clip 1                        caption caption   caption caption
                frame frame frame ...
                caption of clip 2

Titles and captions are plain text here; replay.py and neighbors.py write them. They may hold any characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont

from rhofast.display.fonts import drawn_text, font_runs
from rhofast.errors import ConfigError
from rhofast.storage.files import replacing

SUFFIXES = (".png", ".gif", ".webp", ".mp4")
_SHEET_WIDTH, _ANIMATION_WIDTH = 112, 192  # narrower frames are enlarged by an integer factor
_MARGIN, _GAP, _BAR = 12, 2, 4
_CLIP_GAP, _VIDEO_GAP = 10, 24  # in an animation: between two clips of a video, between two videos
_ASPECT = 1.6  # approximate aspect ratio of an animation
_MIN_PLAY_S = 6.0  # an MP4 repeats the clips for at least this long, because most players do not loop
_BACKGROUND, _TEXT, _MUTED, _ALERT = (255, 255, 255), (20, 20, 20), (100, 100, 100), (176, 32, 32)
_PHRASE = 240  # characters of a phrase that are drawn
_BLUE, _PALE = (37, 99, 168), (214, 218, 224)


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnClip:
    """One clip with its caption.

    Attributes:
        frames: u8[T, H, W, 3].
        caption: Phrases. Each one stays on one line where it fits.
    """

    frames: npt.NDArray[np.uint8]
    caption: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnVideo:
    """The clips of one video.

    Attributes:
        title: Phrases.
        clips: The clips.
        note: A highlighted sentence, or None.
    """

    title: tuple[str, ...]
    clips: tuple[DrawnClip, ...]
    note: str | None = None


def check_suffix(path: Path) -> None:
    """Raise ConfigError unless `write_pictures` supports the suffix of the file."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {path}: the suffix must be .png, .gif, .webp or .mp4")


def write_pictures(path: Path, videos: Sequence[DrawnVideo], *, heading: Sequence[str], fps: float) -> tuple[int, int]:
    """Write a contact sheet (.png) or an animation (.gif, .webp, or .mp4 with H.264).

    Args:
        path: The file.
        videos: Videos whose clips all have the same shape.
        heading: Phrases at the top.
        fps: Frames per second of an animation.

    Returns:
        (width, height) in pixels.

    Raises:
        ConfigError: If the suffix is not supported.
        OSError: If the file cannot be written.
    """
    check_suffix(path)
    suffix = path.suffix.lower()
    with replacing(path, suffix=suffix) as aside:
        if suffix == ".png":
            sheet = contact_sheet(videos, heading=heading)
            sheet.save(aside)
            return sheet.size
        pictures = animation(videos, heading=heading)
        {".gif": _write_gif, ".webp": _write_webp, ".mp4": _write_mp4}[suffix](aside, pictures, fps)
    return pictures[0].size


def contact_sheet(videos: Sequence[DrawnVideo], *, heading: Sequence[str] = ()) -> Image.Image:
    """Draw one row per clip, with its frames from left to right. The clips of a video are below each other.

    Args:
        videos: Videos whose clips all have the same shape.
        heading: Phrases at the top.

    Returns:
        The sheet.
    """
    t, height, width, _ = videos[0].clips[0].frames.shape
    factor = _enlarge(width, _SHEET_WIDTH)
    width, height = width * factor, height * factor
    layout = _Layout(videos, heading, tile=(t * (width + _GAP) - _GAP, height), columns=1, side_by_side=False)
    for clip, (x, y) in zip(_all_clips(videos), layout.places, strict=True):
        for number, frame in enumerate(clip.frames):
            layout.image.paste(_tile(frame, factor), (x + number * (width + _GAP), y))
    return layout.image


def animation(videos: Sequence[DrawnVideo], *, heading: Sequence[str] = ()) -> list[Image.Image]:
    """Draw T pictures, on each of which every clip shows one frame, with a bar below that marks which one.

    Args:
        videos: Videos whose clips all have the same shape.
        heading: Phrases at the top.

    Returns:
        T pictures with even width and height, as video encoders require.
    """
    t, height, width, _ = videos[0].clips[0].frames.shape
    factor = _enlarge(width, _ANIMATION_WIDTH)
    tile = width * factor, height * factor + _BAR + 1
    across, down = len(videos[0].clips) * (tile[0] + _CLIP_GAP) + _VIDEO_GAP, tile[1] + 5 * _line(11)
    columns = min(len(videos), max(1, round(math.sqrt(len(videos) * _ASPECT * down / across))))
    columns = -(-len(videos) // -(-len(videos) // columns))  # the same number of rows, evenly filled
    layout = _Layout(videos, heading, tile=tile, columns=columns, side_by_side=True)
    pictures = []
    for now in range(t):
        picture = layout.image.copy()
        draw = ImageDraw.Draw(picture)
        for clip, (x, y) in zip(_all_clips(videos), layout.places, strict=True):
            picture.paste(_tile(clip.frames[now], factor), (x, y))
            bar = y + tile[1] - _BAR
            for number in range(t):
                left, right = (x + tile[0] * edge // t for edge in (number, number + 1))
                draw.rectangle((left, bar, right - 2, bar + _BAR - 1), fill=_BLUE if number == now else _PALE)
        pictures.append(picture)
    return pictures


class _Layout:
    """An image with all text on it, and the positions of the clips.

    Attributes:
        image: The image, with even width and height.
        places: Left and top of each clip, in order.
    """

    def __init__(
        self,
        videos: Sequence[DrawnVideo],
        heading: Sequence[str],
        *,
        tile: tuple[int, int],
        columns: int,
        side_by_side: bool,
    ) -> None:
        """Place the text and the clips.

        Args:
            videos: The videos.
            heading: Phrases at the top.
            tile: Width and height of the frames of a clip.
            columns: Videos per row.
            side_by_side: Whether the clips of a video are next to each other instead of below each other.
        """
        beside = len(videos[0].clips) if side_by_side else 1
        block = beside * (tile[0] + _CLIP_GAP) - _CLIP_GAP
        width = 2 * _MARGIN + columns * (block + _VIDEO_GAP) - _VIDEO_GAP
        words: list[tuple[int, int, str, int, tuple[int, int, int]]] = []
        self.places: list[tuple[int, int]] = []

        def write(x: int, y: int, phrases: Sequence[str], room: int, size: int, color: tuple[int, int, int]) -> int:
            """Add phrases at (x, y) and return the y below them."""
            for line in _wrap([drawn_text(phrase, _PHRASE) for phrase in phrases], size, room):
                words.append((x, y, line, size, color))
                y += _line(size)
            return y

        top = write(_MARGIN, _MARGIN, heading, width - 2 * _MARGIN, 14, _TEXT)
        top += _line(14) // 2 if heading else 0
        for first in range(0, len(videos), columns):
            row = videos[first : first + columns]
            lefts = [_MARGIN + number * (block + _VIDEO_GAP) for number in range(len(row))]
            below = []
            for x, video in zip(lefts, row, strict=True):
                y = write(x, top, video.title, block, 13, _TEXT)
                below.append(write(x, y, (video.note,) if video.note else (), block, 11, _ALERT))
            top = max(below) + 3
            below = []
            for left, video in zip(lefts, row, strict=True):
                x, y = left, top
                for clip in video.clips:
                    self.places.append((x, y))
                    end = write(x, y + tile[1] + 2, clip.caption, tile[0], 11, _MUTED)
                    below.append(end)
                    x, y = (x + tile[0] + _CLIP_GAP, y) if side_by_side else (x, end + 6)
            top = max(below) + _MARGIN
        self.image = Image.new("RGB", (width + width % 2, top + top % 2), _BACKGROUND)
        draw = ImageDraw.Draw(self.image)
        for left, y, line, size, color in words:
            _draw_line(draw, left, y, line, size, color)


def _draw_line(
    draw: ImageDraw.ImageDraw, left: float, y: int, line: str, size: int, color: tuple[int, int, int]
) -> None:
    """Draw a line, each character with the first font that has it, on one baseline."""
    baseline = y + _font(size).getmetrics()[0]
    for file, run in font_runs(line):
        draw.text((left, baseline), run, fill=color, font=_font(size, file), anchor="ls")
        left += _font(size, file).getlength(run)


def _all_clips(videos: Sequence[DrawnVideo]) -> list[DrawnClip]:
    return [clip for video in videos for clip in video.clips]


def _tile(frame: npt.NDArray[np.uint8], factor: int) -> Image.Image:
    height, width, _ = frame.shape
    return Image.fromarray(frame).resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _enlarge(width: int, least: int) -> int:
    return max(1, -(-least // width))


@cache
def _font(size: int, file: Path | None = None) -> ImageFont.FreeTypeFont:
    """Return a font of this machine; without a file that of ASCII."""
    return ImageFont.truetype(file or font_runs("a")[0][0], size)


def _length(text: str, size: int) -> float:
    """Return the width of a line in pixels."""
    return sum(_font(size, file).getlength(run) for file, run in font_runs(text))


def _line(size: int) -> int:
    """Return the height of a line in pixels."""
    return size + 5


def _wrap(phrases: Sequence[str], size: int, room: int) -> list[str]:
    """Break phrases into lines that fit.

    Lines break between phrases, between words where a phrase is longer than a line, and anywhere where a word is
    longer.

    Args:
        phrases: The phrases.
        size: Font size.
        room: Width in pixels.

    Returns:
        The lines.
    """

    def fits(text: str) -> bool:
        return _length(text, size) <= room

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
    """Write a GIF with one palette for all pictures, so that still parts do not flicker and are stored once."""
    samples = [np.asarray(picture)[::4, ::4].reshape(-1, 3) for picture in pictures]
    colors = np.concatenate(samples)[None]
    palette = Image.fromarray(colors).quantize(256, method=Image.Quantize.MEDIANCUT)
    quantized = [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    duration = round(1000 / fps)
    quantized[0].save(path, save_all=True, append_images=quantized[1:], duration=duration, loop=0, optimize=False)


def _write_webp(path: Path, pictures: Sequence[Image.Image], fps: float) -> None:
    """Write a WebP, which has all colors and about a fifth of the bytes of a GIF."""
    duration = round(1000 / fps)
    more = list(pictures[1:])
    pictures[0].save(path, "WEBP", save_all=True, append_images=more, duration=duration, loop=0, quality=80)


def _write_mp4(path: Path, pictures: Sequence[Image.Image], fps: float) -> None:
    """Write H.264 that browsers play: 4:2:0, BT.709, limited range, index at the beginning."""
    repeats = max(1, math.ceil(_MIN_PLAY_S * fps / len(pictures)))
    path.open("wb").close()  # errors of PyAV do not name the file
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
