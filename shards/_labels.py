"""Labels as other tools write them, numbers or names of classes, as class numbers. Not a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _lists import problem
from csv_list import class_names

_LONGEST = 80  # characters of a label in a message


class Classes:
    """The classes of a data set, by number and by name.

    Attributes:
        names: Name of each number; empty if numbers have no names.
    """

    def __init__(self, names_file: Path | None, names: Sequence[str] = (), unlabeled: str | None = None) -> None:
        """Read the names of the classes.

        Args:
            names_file: A text file with one name per line from class 0 on, or a JSON file; None: no file.
            names: The names that are known without a file; empty: labels are numbers.
            unlabeled: The label that means none; None: there is no such label.

        Raises:
            ValueError: The file does not name each class once.
        """
        self._unlabeled = unlabeled
        self._file = names_file or "the source"
        self.names = list(names) if names_file is None else class_names(names_file)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def label(self, where: str, value: Any) -> tuple[int | None, str | None]:
        """Return the number and the name of a class; the name is None if it is not known.

        Args:
            where: Where the label stands, for the error.
            value: The label: a number, or text that is a number or a name; None: there is no label.

        Raises:
            ValueError: There is no such class.
        """
        if value is None or (self._unlabeled is not None and str(value).strip() == self._unlabeled):
            return None, None
        if isinstance(value, str):
            return self._of_text(where, value.strip())
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, list):
            raise problem(f"{where}: label {_shown(value)} is a list", "recipe records takes several labels of a video")
        if not isinstance(value, int) or isinstance(value, bool):
            raise problem(f"{where}: label {_shown(value)} is neither a whole number nor a name", "correct the label")
        if value < 0:
            raise problem(
                f"{where}: label {value} is below 0", "leave it out where there is none, or --option unlabeled=-1"
            )
        if self.names and value >= len(self.names):
            raise problem(
                f"{where}: label {value}, but {self._file} names {len(self.names)} classes", "complete the file"
            )
        return value, self.names[value] if self.names else None

    def _of_text(self, where: str, text: str) -> tuple[int, str | None]:
        if text in self._numbers:
            return self._numbers[text], text
        if re.fullmatch(r"-?[0-9]{1,18}", text):
            number, name = self.label(where, int(text))
            assert number is not None
            return number, name
        if not text:
            raise problem(f"{where}: the label is empty", "correct it; if that means no label: --option unlabeled=")
        if self.names:
            raise problem(f"{where}: class {_shown(text)} is not in {self._file}", "add it, or correct the label")
        raise problem(
            f"{where}: label {_shown(text)} is a name, whose number is not known",
            "name the classes in a file, one per line: --option classes=FILE",
        )


def _shown(value: Any) -> str:
    return repr(value)[:_LONGEST]
