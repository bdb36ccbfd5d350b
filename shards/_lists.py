"""Text files with one entry per line: their lines, and the fields of a line. Not a recipe.

A file is read as often as needed and never kept, since it may have millions of lines.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _walk import VIDEO_SUFFIXES

SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "none": ""}
LONGEST_LINE = 1 << 16
CLASSES_BYTES = 4 << 20  # largest JSON file of class names
ENCODINGS = (  # by the mark at the beginning of the file; the marks of UTF-32 begin with those of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_SUFFIX = "|".join(sorted(map(re.escape, VIDEO_SUFFIXES), key=len, reverse=True))
VIDEO_IN_TEXT = re.compile(rf"(?:{_SUFFIX})(?=[\"\s,;|]|$)", re.IGNORECASE)
_ANY_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,4}$")


def problem(message: str, remedy: str) -> ValueError:
    """Return an error with a remedy, which is shown as its hint."""
    error = ValueError(message)
    error.add_note(remedy)
    return error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without the line's end) for each line of a text file that is not blank.

    The file is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Bytes that are no UTF-8 are kept as surrogates, since
    names of files may consist of any bytes.

    Raises:
        ValueError: The file is none of text: it is no regular file, has NUL characters or too long a line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        head = file.read(4)
    encoding = next((name for mark, name in ENCODINGS if head.startswith(mark)), "utf-8-sig")
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    number = 0
    try:
        with path.open(encoding=encoding, errors=errors, newline=None) as file:
            while text := file.readline(LONGEST_LINE + 1):
                number += 1
                if "\0" in text:
                    raise ValueError(
                        f"{path}:{number}: a NUL character; this is not a list of videos, or it is damaged"
                    )
                if len(text) > LONGEST_LINE:
                    raise ValueError(f"{path}:{number}: field larger than {LONGEST_LINE} characters")
                text = text.rstrip("\n").lstrip("\ufeff")  # of files that were put one behind another
                if text and not text.isspace():
                    yield number, text
    except UnicodeError as error:
        raise ValueError(f"{path}:{number + 1}: not {encoding.upper()}: {error}") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, stripped text) for each line of a text file that is not blank; raises as `lines`."""
    for number, text in lines(path):
        yield number, text.strip()


def entry_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) for each line that is neither blank nor a comment (`# ...`); raises as `lines`."""
    for number, text in lines(path):
        if not re.match(r"\s*#(\s|$)", text):
            yield number, text


def ends_in_video(text: str) -> bool:
    """Return whether a path or address ends in the suffix of a video."""
    if "://" in text:
        text = re.split(r"[?#]", text, maxsplit=1)[0]
    return text[text.rfind(".") :].lower() in VIDEO_SUFFIXES


def fields_of(text: str, mark: str) -> list[str]:
    """Return the unquoted fields of a line.

    Args:
        text: The line.
        mark: The separator, as in SEPARATORS. With a space, a path may contain spaces if it has a suffix.

    Raises:
        ValueError: Quotes do not match.
    """
    try:
        if mark == "":
            text = text.strip()
            return next(csv.reader([text], delimiter="\0", strict=True)) if text.startswith('"') else [text]
        if mark == " ":
            return _space_fields(text.strip())
        return [field.strip() for field in next(csv.reader([text], delimiter=mark, skipinitialspace=True, strict=True))]
    except csv.Error as error:
        raise ValueError(f"quotes do not match (an entry is one line): {error}") from None


def _space_fields(text: str) -> list[str]:
    def parse(rest: str) -> list[str]:
        fields = next(csv.reader([rest.replace("\t", " ")], delimiter=" ", skipinitialspace=True, strict=True))
        return [field for field in fields if field]

    if text.startswith('"'):
        return parse(text)
    if ends_in_video(text):
        return [text]
    words = list(re.finditer(r"\S+", text))
    for is_path in (ends_in_video, _ANY_SUFFIX.search) if len(words) > 2 else (ends_in_video,):
        for word in reversed(words[:-1]):
            if is_path(word[0]):
                return [text[: word.end()], *parse(text[word.end() :].strip())]
    return parse(text)


def read_json(path: Path, *, most: int, unique: bool = False) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.
        most: Largest size in bytes. A small file can become large in memory, and takes long with `unique`.
        unique: Whether a name that occurs twice in one object is an error.

    Raises:
        ValueError: The file is not JSON, or too large.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ValueError(f"{path}: {twice[:80]!r} occurs twice in one object")
        return content

    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.stat().st_size > most:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes, which is more than {most:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once if unique else None)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON of this data set: too deeply nested") from None


def names_by_number(path: Path, found: Any) -> list[str]:
    """Return the names of classes by number.

    Args:
        path: The file in which they stand, for messages.
        found: A list of names, or an object with numbers by name; the numbers may be written as text.

    Raises:
        ValueError: It is neither, a name or number occurs twice, or a number is missing.
    """
    if isinstance(found, list) and not any(isinstance(name, list | dict) for name in found):
        for name, count in Counter(map(str, found)).items():
            if count > 1:
                raise ValueError(f"{path}: class {name[:80]!r} occurs twice")
        found = {str(name): number for number, name in enumerate(found)}
    if found == {}:
        raise ValueError(f"{path}: names no classes")
    try:
        numbered = {int(str(number)): str(name).strip().strip('"') for name, number in found.items()}
    except (AttributeError, ValueError):
        raise ValueError(f"{path}: expected the names of classes, each once, with whole numbers") from None
    if len(numbered) != len(found) or sorted(numbered) != list(range(len(found))):
        raise ValueError(f"{path}: the numbers of the classes are not 0 to {len(found) - 1}, each once")
    if len(set(numbered.values())) != len(numbered):
        raise ValueError(f"{path}: the name of a class occurs twice")
    return [numbered[number] for number in range(len(numbered))]
