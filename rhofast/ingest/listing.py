"""The listing of a data set's videos, checked as a whole before any video is transcoded, and kept on disk.

A listing may be larger than memory, and a mistake in its last line must show before the first video is transcoded, not
weeks later. So the records of a recipe go into a temporary SQLite database, which deletes itself. It also finds keys
that occur twice. Memory does not grow with the number of records.
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
    """The records of a data set, in their order; a context manager that frees its disk space at the end."""

    def __init__(
        self,
        records: Iterable[VideoRecord],
        *,
        stored: Iterable[str] = (),
        classes: Iterable[str] = (),
        on_count: Callable[[int], None] | None = None,
    ) -> None:
        """Read all records.

        Args:
            records: The records, as a recipe yields them.
            stored: Keys of samples that are stored already; their records are skipped.
            classes: Names of the labels that are known already.
            on_count: Called from time to time with the number of records read.

        Raises:
            IngestError: There are no records, a key is invalid or occurs twice, or a label has two names.
        """
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE stored (key TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute(
            "CREATE TABLE records (number INTEGER PRIMARY KEY, key TEXT UNIQUE, path BLOB, label INTEGER, name BLOB)"
        )
        self._names: dict[int, str] = dict(enumerate(classes))
        self.skipped = 0
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
            hint = "check the folder or list, and the options of the recipe (rhofast recipes NAME)"
            raise IngestError("the source has no videos", hint=hint)
        self.listed = count

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Delete the database."""
        self._db.close()

    def __len__(self) -> int:
        """Return the number of records, without the skipped ones."""
        return self.listed - self.skipped

    def __contains__(self, key: object) -> bool:
        return self._db.execute("SELECT 1 FROM records WHERE key = ?", (key,)).fetchone() is not None

    def __iter__(self) -> Iterator[VideoRecord]:
        for key, path, label, name in self._db.execute("SELECT key, path, label, name FROM records ORDER BY number"):
            label_name = None if name is None else os.fsdecode(name)
            yield VideoRecord(key=key, path=as_path(os.fsdecode(path)), label=label, label_name=label_name)

    def class_names(self) -> list[str]:
        """Return the class names by label; a label without a name gets its number. The list is empty without labels."""
        return [self._names.get(label, str(label)) for label in range(max(self._names, default=-1) + 1)]

    def _insert(self, record: VideoRecord) -> None:
        if not record.key or len(record.key) > _KEY_LENGTH or not set(record.key) <= _KEY_CHARACTERS:
            raise IngestError(
                f"{record.path}: key {record.key!r} is not 1 to {_KEY_LENGTH} letters, digits, '_' or '-'",
                hint="correct the key in the recipe",
            )
        if record.label is not None:
            label_name = record.label_name if record.label_name is not None else str(record.label)
            if record.label < 0 or self._names.setdefault(record.label, label_name) != label_name:
                known = self._names.get(record.label)
                message = f"{record.path}: label {record.label} is named {label_name!r} here and {known!r} before"
                raise IngestError(message, hint="correct the labels in the recipe or list")
        if self._db.execute("SELECT 1 FROM stored WHERE key = ?", (record.key,)).fetchone():
            self.skipped += 1
            return
        name = None if record.label_name is None else os.fsencode(record.label_name)
        row = (record.key, os.fsencode(str(record.path)), record.label, name)
        try:
            self._db.execute("INSERT INTO records (key, path, label, name) VALUES (?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise IngestError(
                f"{record.path}: key {record.key!r} occurs twice", hint="every video needs its own key"
            ) from None
