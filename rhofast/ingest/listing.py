"""The list of a data set's videos, checked as a whole before any work begins, and kept on disk.

A list may be longer than memory, and a mistake on its last line must show before the first video is transcoded, not
weeks later. So the records of a recipe go into a temporary database (SQLite's, deleted by itself), which also finds a
key that comes twice; memory does not grow with their number.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from rhofast.data.types import VideoRecord
from rhofast.errors import IngestError
from rhofast.storage.files import as_path

_KEY_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_KEY_LENGTH = 80


class Listing:
    """The records, in their order. A context manager: its disk space is given back at the end."""

    def __init__(
        self,
        records: Iterable[VideoRecord],
        *,
        stored: Iterable[str] = (),
        classes: Iterable[str] = (),
        on_count: Callable[[int], None] | None = None,
    ) -> None:
        """Read all records. stored: keys whose records are passed over; classes: names of the labels that are given
        already. on_count: called now and then with how many records were read.

        Raises IngestError: no records, a bad or repeated key, labels at odds.
        """
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE stored (key TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute(
            "CREATE TABLE records (number INTEGER PRIMARY KEY, key TEXT UNIQUE, path BLOB, label INTEGER, name BLOB)"
        )
        self._names: dict[int, str] = dict(enumerate(classes))
        self.passed_over = 0
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO stored VALUES (?)", ((key,) for key in stored))
        count = 0
        try:
            for number, record in enumerate(records):
                self._insert(record)
                count = number + 1
                if on_count is not None and count % 64 == 0:
                    on_count(count)
        except BaseException:
            self.close()
            raise
        if not count:
            self.close()
            raise IngestError("the source has no videos", hint="check the folder or list, and the recipe's options")
        self.listed = count

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def __len__(self) -> int:
        """How many records there are, without those passed over."""
        return self.listed - self.passed_over

    def __contains__(self, key: object) -> bool:
        return self._db.execute("SELECT 1 FROM records WHERE key = ?", (key,)).fetchone() is not None

    def __iter__(self) -> Iterator[VideoRecord]:
        for key, path, label, name in self._db.execute("SELECT key, path, label, name FROM records ORDER BY number"):
            label_name = None if name is None else os.fsdecode(name)
            yield VideoRecord(key=key, path=as_path(os.fsdecode(path)), label=label, label_name=label_name)

    def class_names(self) -> list[str]:
        """Names by label, with numbers where there are none; empty without labels."""
        return [self._names.get(label, str(label)) for label in range(max(self._names, default=-1) + 1)]

    def _insert(self, record: VideoRecord) -> None:
        if not record.key or len(record.key) > _KEY_LENGTH or not set(record.key) <= _KEY_CHARACTERS:
            raise IngestError(
                f"{record.path}: key {record.key!r} is not 1 to {_KEY_LENGTH} letters, digits, '_' or '-'",
                hint="mend the recipe",
            )
        if record.label is not None:
            label_name = record.label_name if record.label_name is not None else str(record.label)
            if record.label < 0 or self._names.setdefault(record.label, label_name) != label_name:
                known = self._names.get(record.label)
                raise IngestError(f"{record.path}: label {record.label} is {label_name!r} here and {known!r} elsewhere")
        if self._db.execute("SELECT 1 FROM stored WHERE key = ?", (record.key,)).fetchone():
            self.passed_over += 1
            return
        name = None if record.label_name is None else os.fsencode(record.label_name)
        row = (record.key, os.fsencode(str(record.path)), record.label, name)
        try:
            self._db.execute("INSERT INTO records (key, path, label, name) VALUES (?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise IngestError(
                f"{record.path}: key {record.key!r} comes twice", hint="every video needs its own key"
            ) from None
