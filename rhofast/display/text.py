r"""Any text made safe to show: on one line of a terminal, in HTML, in a plot.

Names of classes, files and keys come from the disks of strangers. Such a text can hold line breaks, escape sequences
that rewrite the terminal, marks that turn the direction of writing, characters without width, bytes that were not UTF-8
(as lone surrogates), markup, or a million letters. What cannot be shown as itself is shown as the escape that Python
writes for it (`\n`, `\x1b`, `\u202e`, `\udce9`). What is stored is never changed here.
"""

import html
import re
from collections.abc import Callable

# Printable by their Unicode category, yet drawn as nothing: fillers, joiners and the selectors of rare variants. The
# two selectors that choose between the text and the emoji form of a character (U+FE0E, U+FE0F) stay.
_INVISIBLE = frozenset(
    (
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0),
        *range(0xFE00, 0xFE0E),
        *range(0xE0100, 0xE01F0),
    )
)
_ELLIPSIS = "..."

# What pydantic says about a value, and how all other errors say it.
_PLAIN_WORDS = (
    (r"^Value error, ", ""),
    (r", unable to parse .*", ""),
    (r"^(Input|String|List|Tuple|Dictionary|Value) should ", "must "),
    (r"\ba valid (tuple|list|array)\b", "a list"),
    (r"\ba valid (?=[aeiou])", "an "),
    (r"\ba valid ", "a "),
    (r"\bgreater than or equal to\b", "at least"),
    (r"\bless than or equal to\b", "at most"),
)

LINE = 4_000
"""Characters of a printed line: far more than any that people wrote, far less than a hostile name."""


def printable(text: str, limit: int = 200, has_glyph: Callable[[str], bool] | None = None) -> str:
    r"""Return a text as one line that is safe to print and no longer than a limit.

    Control characters, line breaks, marks of direction, characters without width, unassigned and private characters and
    lone surrogates are written as escapes. A text that is too long loses its middle, between whole characters and
    escapes. The result is unchanged if it is given again.

    Args:
        text: Any text.
        limit: Largest number of characters of the result, at least 16.
        has_glyph: Whether a character beyond ASCII can be drawn; those that cannot are escaped as well.

    Returns:
        The line. The text itself if it is short and has nothing to escape.
    """
    if len(text) <= limit:
        escaped = text if _is_plain(text) else "".join(_escaped(one, has_glyph) for one in text)
        if len(escaped) <= limit:
            return escaped
    room = limit - len(_ELLIPSIS)
    head = _fitting(text[:limit], (room + 1) // 2, has_glyph)
    tail = _fitting(text[: -limit - 1 : -1], room // 2, has_glyph)
    return "".join([*head, _ELLIPSIS, *reversed(tail)])


def plain_words(message: str) -> str:
    """Return pydantic's message about a value in the words of all other errors, such as `must be at least 1`."""
    for pattern, words in _PLAIN_WORDS:
        message = re.sub(pattern, words, message)
    return message[:1].lower() + message[1:]


def html_text(text: str, limit: int = 200) -> str:
    """Return a text as `printable` does, escaped for the text and the quoted attributes of HTML.

    Args:
        text: Any text.
        limit: Largest number of characters that are shown, at least 16.

    Returns:
        Text without markup; longer than the limit where characters have become entities.
    """
    return html.escape(printable(text, limit), quote=True)


def plot_text(text: str, limit: int = 200) -> str:
    """Return a text as `printable` does, in which Matplotlib finds no mathematics.

    Args:
        text: Any text.
        limit: Largest number of characters that are drawn, at least 16.

    Returns:
        The line with each dollar sign escaped, as Matplotlib draws it.
    """
    return printable(text, limit).replace("$", r"\$")


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _escaped(one: str, has_glyph: Callable[[str], bool] | None) -> str:
    """Return a character, or its escape if it does not show as itself."""
    if one.isprintable() and ord(one) not in _INVISIBLE and (has_glyph is None or one.isascii() or has_glyph(one)):
        return one
    return one.encode("unicode_escape").decode("ascii")


def _fitting(text: str, room: int, has_glyph: Callable[[str], bool] | None) -> list[str]:
    """Return the first characters of a text, escaped, that take no more than `room` characters together."""
    pieces: list[str] = []
    for one in text:
        piece = _escaped(one, has_glyph)
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    return pieces
