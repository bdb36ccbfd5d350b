r"""Fonts for names in any script: of those that this machine has, each character is drawn with the first that has it.

Matplotlib ships DejaVu Sans, which has Latin, Greek, Cyrillic, Arabic and more. For Chinese, Japanese, Korean,
Devanagari or emoji the fonts that are installed are searched. A character that none of them has is drawn as its escape,
such as `\u8dd1`, in place of an empty box.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from rhofast.display.text import plot_text, printable

_MAX_FONTS = 400  # fonts that are searched
_BOXES = "Last Resort"  # a font of Matplotlib's that has a box for every character
_REGULAR = range(300, 501)  # weights of fonts, in the numbers of CSS


def drawn_text(text: str, limit: int = 200) -> str:
    """Return a text as `printable` does, in which characters that no font has are escapes too.

    Args:
        text: Any text.
        limit: Largest number of characters that are drawn, at least 16.
    """
    return printable(text, limit, has_glyph)


def plot_names(names: Sequence[str], limit: int = 200) -> tuple[list[str], list[str]]:
    """Return names as Matplotlib can draw them.

    Args:
        names: Any texts.
        limit: Largest number of characters of each, at least 16.

    Returns:
        (the texts, the families of fonts that they need: the argument `fontfamily` of Matplotlib's functions).
    """
    texts = [plot_text(drawn_text(name, limit), limit) for name in names]
    files = dict.fromkeys(_font_of(one) for text in texts for one in text if not one.isascii())
    return texts, [_fonts()[file] for file in {_default(): None, **files} if file is not None]


def font_runs(text: str) -> list[tuple[Path, str]]:
    """Return a text as pieces of one font each: (file of the font, piece), in order."""
    pieces = groupby(text, key=lambda one: _font_of(one) or _default())
    return [(file, "".join(run)) for file, run in pieces]


def has_glyph(character: str) -> bool:
    """Return whether a font of this machine has a character."""
    return _font_of(character) is not None


@cache
def _font_of(character: str) -> Path | None:
    return next((file for file in _fonts() if ord(character) in _characters(file)), None)


@cache
def _characters(file: Path) -> frozenset[int]:
    """Return the characters of a font; none if it cannot be drawn at every size, or cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(file))
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _default() -> Path:
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _fonts() -> dict[Path, str]:
    """Return the family of each regular font by its file: DejaVu Sans first, then those without serifs."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {entry.fname for entry in fontManager.ttflist}
    for file in findSystemFonts():  # installed after Matplotlib made its list
        if file not in known:
            try:
                fontManager.addfont(file)
            except (OSError, RuntimeError):
                continue
    regular: dict[str, tuple[bool, str, Path]] = {}
    for entry in fontManager.ttflist:
        if _BOXES in entry.name:
            continue
        if entry.style == "normal" and entry.variant == "normal" and _weight(entry.weight) in _REGULAR:
            regular.setdefault(entry.name, ("Sans" not in entry.name, entry.name, Path(entry.fname)))
    ordered = sorted(regular.values())[:_MAX_FONTS]
    return {_default(): "DejaVu Sans", **{file: name for _, name, file in ordered if name != "DejaVu Sans"}}


def _weight(weight: int | str) -> int:
    from matplotlib.font_manager import weight_dict

    return weight if isinstance(weight, int) else weight_dict.get(weight, 0)
