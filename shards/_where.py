"""Conditions on the fields of a sample, such as `motion_score > 0.3 and aesthetic_score >= 4`. Not a recipe.

    text --words--> tree of functions --one sample's fields--> true or false

A condition is read by this file alone; nothing of it is ever run as code. It knows fields (`a`, `a.b`, `a.0`), numbers,
texts in quotes, true, false, null, the comparisons < <= > >= == != and `in (..., ...)`, and `and`, `or`, `not` and
parentheses, with the precedence of Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from _lists import problem

Value = Callable[[Mapping[str, Any], str], Any]  # of (fields, where they stand)

_WORD = re.compile(
    r"""\s*(?:(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<text>'[^']*'|"[^"]*")|"""
    r"""(?P<mark><=|>=|==|!=|[<>(),])|(?P<name>[A-Za-z_][\w-]*(?:\.[\w-]+)*)|(?P<end>$))"""
)
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_CONSTANTS = {"true": True, "false": False, "null": None}
_WORDS = {"and", "or", "not", "in"}
_LONGEST, _DEEPEST = 10_000, 50
_SHOWN = 80


class Where:
    """A condition, ready to be asked of many samples."""

    def __init__(self, text: str, aliases: Mapping[str, str] | None = None) -> None:
        """Read a condition.

        Args:
            text: The condition.
            aliases: Fields by shorter names that stand for them.

        Raises:
            ValueError: It cannot be understood.
        """
        self.text, self._aliases = text, aliases or {}
        if len(text) > _LONGEST:
            raise problem(f"where: longer than {_LONGEST:,} characters", "write a shorter condition")
        self._words, self._depth = _words(text), 0
        self._next()
        self._holds = self._either()
        if self._kind != "end":
            raise self._unexpected()

    def __call__(self, fields: Mapping[str, Any], where: str) -> bool:
        """Return whether the condition holds.

        Args:
            fields: The fields of a sample.
            where: Where they stand, for the error.

        Raises:
            ValueError: A field that is compared is not there, or cannot be compared.
        """
        return _truth(self._holds(fields, where), where)

    def _next(self) -> None:
        self._kind, self._word, self._place = next(self._words)

    def _take(self, *words: str) -> str | None:
        """Return the current word and go on, if it is one of these."""
        if self._kind not in ("name", "mark") or self._word not in words:
            return None
        word = self._word
        self._next()
        return word

    def _unexpected(self) -> ValueError:
        what = (
            "it ends too early" if self._kind == "end" else f"unexpected {self._word!r} at character {self._place + 1}"
        )
        return problem(f"where={self.text[:_SHOWN]!r}: {what}", "write, for example, where='a > 0.3 and b.c == \"x\"'")

    def _either(self) -> Value:
        terms = [self._both()]
        while self._take("or"):
            terms.append(self._both())
        if len(terms) == 1:
            return terms[0]
        return lambda fields, where: any(_truth(term(fields, where), where) for term in terms)

    def _both(self) -> Value:
        terms = [self._not()]
        while self._take("and"):
            terms.append(self._not())
        if len(terms) == 1:
            return terms[0]
        return lambda fields, where: all(_truth(term(fields, where), where) for term in terms)

    def _not(self) -> Value:
        if not self._take("not"):
            return self._comparison()
        self._deeper()
        term = self._not()
        self._depth -= 1
        return lambda fields, where: not _truth(term(fields, where), where)

    def _comparison(self) -> Value:
        first = self._operand()
        if self._take("in"):
            return self._one_of(first)
        tests: list[tuple[str, Value]] = []
        while mark := self._take("<", "<=", ">", ">=", "==", "!="):
            tests.append((mark, self._operand()))
        if not tests:
            return first

        def holds(fields: Mapping[str, Any], where: str) -> bool:
            left = first(fields, where)
            for mark, operand in tests:
                right = operand(fields, where)
                if not _compare(mark, left, right, where):
                    return False
                left = right
            return True

        return holds

    def _one_of(self, first: Value) -> Value:
        choices: list[Value] = []
        if not self._take("("):
            raise self._unexpected()
        while True:
            choices.append(self._operand())
            if not self._take(","):
                break
        if not self._take(")"):
            raise self._unexpected()
        return lambda fields, where: any(
            _compare("==", first(fields, where), choice(fields, where), where) for choice in choices
        )

    def _operand(self) -> Value:
        kind, word = self._kind, self._word
        if kind == "mark" and word == "(":
            self._next()
            self._deeper()
            inner = self._either()
            self._depth -= 1
            if not self._take(")"):
                raise self._unexpected()
            return inner
        if kind not in ("number", "text", "name") or word in _WORDS:
            raise self._unexpected()
        self._next()
        if kind == "name" and word not in _CONSTANTS:
            name = self._aliases.get(word, word)
            return lambda fields, where: _field(fields, name)
        value = float(word) if kind == "number" else word[1:-1] if kind == "text" else _CONSTANTS[word]
        return lambda fields, where: value

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise problem(f"where={self.text[:_SHOWN]!r}: nested too deeply", "write a plainer condition")


class _Missing:
    """A field that a sample does not have; `== null` is true of it, and anything else is an error."""

    def __init__(self, name: str, known: list[str]) -> None:
        self.name, self.known = name, known


def _words(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield (kind, word, place in the text) of each word, at last that of the end."""
    place = 0
    while True:
        match = _WORD.match(text, place)
        if match is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            raise problem(
                f"where={text[:_SHOWN]!r}: character {place + 1}: {text[place : place + 10]!r} is not understood",
                "compare with < <= > >= == != and put texts in quotes",
            )
        kind = str(match.lastgroup)
        yield kind, match[kind], match.start(kind)
        if kind == "end":
            return
        place = match.end()


def _field(fields: Mapping[str, Any], name: str) -> Any:
    """Return a field by its name, `a.b` or `a.0`."""
    value: Any = fields
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _Missing(name, sorted(map(str, value)) if isinstance(value, Mapping) else [])
    return value


def _compare(mark: str, left: Any, right: Any, where: str) -> bool:
    if mark in ("==", "!="):
        if left is not None and right is not None:  # a misspelled name would leave out everything, or nothing
            for side in (left, right):
                _check_there(side, where)
        left, right = (None if isinstance(side, _Missing) else side for side in (left, right))
        same = left == right and isinstance(left, bool) == isinstance(right, bool)
        return same if mark == "==" else not same
    for side in (left, right):
        _check_there(side, where)
    numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        raise problem(
            f"{where}: {repr(left)[:_SHOWN]} {mark} {repr(right)[:_SHOWN]}: neither two numbers nor two texts",
            "name a field inside an object with a dot: a.b",
        )
    return bool(_ORDER[mark](left, right))


def _check_there(value: Any, where: str) -> None:
    """Raise ValueError for a field that is not there, or is null."""
    if isinstance(value, _Missing):
        known = f", only {', '.join(value.known)[:300]}" if value.known else ""
        raise problem(
            f"{where}: there is no field {value.name!r}{known}",
            f"where not all have it: ({value.name} != null and ...)",
        )
    if value is None:
        raise problem(f"{where}: a field that is compared is null", "where it may be: (NAME != null and ...)")


def _truth(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    _check_there(value, where)
    raise problem(f"{where}: {str(value)[:_SHOWN]!r} is neither true nor false", "compare it with something")
