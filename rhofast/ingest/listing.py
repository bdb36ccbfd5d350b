"""The listing of a data set's videos, checked as a whole before any video is transcoded, and kept on disk.

A listing may be larger than memory, and a mistake in its last line must show before the first video is transcoded, not
weeks later. So the records of a recipe go into a temporary SQLite database, which deletes itself. It also finds keys
that occur twice. Memory does not grow with the number of records.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from operator import index
from types import TracebackType

from rhofast.data.inside import ByteRange, Inside, ParquetCell
from rhofast.data.types import PassedOver, TimedLabel, VideoRecord
from rhofast.errors import IngestError
from rhofast.ingest.annotations import check_extra, check_labels, check_segment
from rhofast.ingest.recipes import TAKE_FOLDERS
from rhofast.ingest.segments import record_key, window_key
from rhofast.ingest.stored_names import shown_source, stored_name
from rhofast.storage.address import redacted
from rhofast.storage.store_path import as_path

MAX_CLASSES = 1_000_000
_FEW_CLASSES = 10_000  # more than these must occur, one in a hundred, or the labels are no class numbers
_CHECK = "check the folder or list, and the options of the recipe (rhofast recipes NAME)"
_COLUMNS = "key, path, inside, label, name, start, end, labels, extra, place"
_INSERT = f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_KEY_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_KEY_LENGTH = 80
_REASONS = 1_000  # reasons, with suffixes, that are counted one by one


class Listing:
    """The records of a data set, in their order; a context manager that frees its disk space at the end.

    Attributes:
        listed: Number of records.
        skipped: Number of them that are stored already.
        segment: Where the first record stands that is a segment of a file; empty without any.
    """

    def __init__(
        self,
        records: Iterable[VideoRecord],
        *,
        stored: Iterable[str] = (),
        known: Mapping[int, str] | None = None,
        classes: Iterable[str] = (),
        windows: bool = False,
        passed_over: PassedOverCount | None = None,
        on_count: Callable[[int], None] | None = None,
    ) -> None:
        """Read all records.

        Args:
            records: The records, as a recipe yields them.
            stored: Keys of samples that are stored already; their records are skipped.
            known: Names of the labels of samples that are stored already.
            classes: Names of all classes by number, as the recipe knows them, also of those without a record.
            windows: Whether a record becomes several samples, whose keys are made of its own.
            passed_over: What the recipe does not list, for the message that there are no records.
            on_count: Called from time to time with the number of records read.

        Raises:
            IngestError: There are no records, one is invalid, a key occurs twice, a label has two names, or a name has
                two labels.
        """
        self.listed = self.skipped = 0
        self.segment = ""
        self._windows = windows
        self._classes = _Classes(known or {}, classes)
        self._db = sqlite3.connect("", isolation_level=None)
        try:
            self._create(stored)
            for record in records:
                self._insert(record)
                self.listed += 1
                if on_count is not None and self.listed % 64 == 0:
                    on_count(self.listed)
            if not self.listed:
                raise IngestError(
                    f"the source has no videos{passed_over or ''}", hint=passed_over.remedy() if passed_over else _CHECK
                )
            self._classes.check()
        except sqlite3.OperationalError as error:
            self.close()
            raise IngestError(
                f"the listing cannot be kept in the temporary folder: {error}",
                hint="name a folder on another disk: export SQLITE_TMPDIR=FOLDER",
            ) from None
        except BaseException:
            self.close()
            raise

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

    def __contains__(self, key: str) -> bool:
        """Return whether a record, or a window of one, has a key."""
        keys = (key, record_key(key) if self._windows else key)
        return self._db.execute("SELECT 1 FROM records WHERE key IN (?, ?)", keys).fetchone() is not None

    def __iter__(self) -> Iterator[VideoRecord]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM records ORDER BY number")
        for key, path, inside, label, name, start, end, labels, extra, place in rows:
            yield VideoRecord(
                key=key,
                path=as_path(os.fsdecode(path), signed=True),
                inside=None if inside is None else _read_inside(inside),
                label=label,
                label_name=name,
                start=start,
                end=end,
                labels=None if labels is None else [TimedLabel(*each) for each in json.loads(labels)],
                extra=None if extra is None else json.loads(extra),
                where=os.fsdecode(place),
            )

    def class_names(self) -> list[str]:
        """Return the class names by label; a label without a name gets its number. The list is empty without labels."""
        return self._classes.names()

    def _create(self, stored: Iterable[str]) -> None:
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE stored (key TEXT PRIMARY KEY) WITHOUT ROWID",
            "CREATE TABLE records (number INTEGER PRIMARY KEY, key TEXT UNIQUE, path BLOB, inside TEXT,"
            " label INTEGER, name TEXT, start REAL, end REAL, labels TEXT, extra TEXT, place BLOB)",
            "BEGIN",
        ):
            self._db.execute(statement)
        keys = map(record_key, stored) if self._windows else stored
        self._db.executemany("INSERT OR IGNORE INTO stored VALUES (?)", ((key,) for key in keys))

    def _insert(self, record: VideoRecord) -> None:
        where = _where(record)
        longest = _KEY_LENGTH - (len(window_key("", 10**7 - 1)) if self._windows else 0)
        if not record.key or len(record.key) > longest or not set(record.key) <= _KEY_CHARACTERS:
            raise IngestError(
                f"{where}: key {record.key[:100]!r} is not 1 to {longest} ASCII letters, digits, '_' or '-'",
                hint="correct the key, or have keys made (csv_list, parquet: --option key_column=none)",
            )
        label_name = _stored(where, record.label_name)
        label = None if record.label is None else self._classes.add(where, record.label, label_name)
        (start, end), labels = check_segment(where, record), check_labels(where, record)
        if not self.segment and (start, end) != (None, None):
            self.segment = where
        for each in labels:
            self._classes.add(where, each.label, self._classes.name_of(each.label))
        extra, inside = check_extra(where, record), _written_inside(where, record.inside)
        if self._db.execute("SELECT 1 FROM stored WHERE key = ?", (record.key,)).fetchone():
            self.skipped += 1
            return
        path = str(record.path)
        if "\0" in path:
            raise IngestError(f"{where}: the path {redacted(path)!r} has a NUL character")
        try:
            place = os.fsencode(record.where)
            written = json.dumps(labels) if labels else None
            row = (record.key, os.fsencode(path), inside, label, label_name, start, end, written, extra, place)
        except UnicodeEncodeError:
            raise IngestError(f"{where}: the path is not text: {redacted(path)!r}") from None
        try:
            self._db.execute(_INSERT, row)
        except sqlite3.IntegrityError:
            raise self._twice(where, record.key) from None

    def _twice(self, where: str, key: str) -> IngestError:
        path, inside, place = self._db.execute(
            "SELECT path, inside, place FROM records WHERE key = ?", (key,)
        ).fetchone()
        before = redacted(os.fsdecode(place or path))
        if inside is not None and not place:
            before = f"{before}: {_read_inside(inside).name}"
        return IngestError(
            f"{where}: key {key!r} occurs twice, first in {before}",
            hint="list every video once; every video needs its own key",
        )


class PassedOverCount:
    """Counts what a recipe finds and does not list: by reason, and other files by suffix.

    Attributes:
        counts: The number of things by reason.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, found: PassedOver) -> None:
        """Count one thing."""
        reason = found.reason
        if reason == "other files":
            reason = f"other files ({found.path.suffix.lower() or 'no suffix'})"
        if reason not in self.counts and len(self.counts) >= _REASONS:
            reason = found.reason
        self.counts[reason] += 1

    def remedy(self) -> str:
        """Return what to do if nothing else was found."""
        names = [name for suffix, name in TAKE_FOLDERS.items() if self.counts[f"other files ({suffix})"]]
        return f"for a folder of such files: --recipe {names[0]}" if names else _CHECK

    def __str__(self) -> str:
        shown = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common(5))
        return f"; passed over: {shown}" if shown else ""


class _Classes:
    """The names of the labels that occur, and of those that the recipe knows."""

    def __init__(self, known: Mapping[int, str], classes: Iterable[str]) -> None:
        self._names: dict[int, str] = {}
        self._labels: dict[str, int] = {}
        declared = {label: str(_stored("the recipe", name)) for label, name in enumerate(classes)}
        for label, name in [*known.items(), *declared.items()]:
            self._agree("the set" if label not in declared else "the recipe", label, name)
        self._declared = len(declared)
        self._found = set(known)
        self._largest = (max(known, default=-1), "the set")

    def add(self, where: str, label: int, name: str | None) -> int:
        """Check the label of a record and return it; raises IngestError if it cannot be a class number."""
        try:
            label = index(label)
        except TypeError:
            raise IngestError(f"{where}: label {label!r} is not a whole number") from None
        if not 0 <= label < MAX_CLASSES:
            raise IngestError(
                f"{where}: label {label} is not in [0, {MAX_CLASSES:,})",
                hint="number the classes from 0, or give them names (csv_list: --option labels=names)",
            )
        self._agree(where, label, str(label) if name is None else name)
        self._found.add(label)
        if label > self._largest[0]:
            self._largest = (label, where)
        return label

    def name_of(self, label: int) -> str | None:
        """Return the name of a label, as far as it is known already."""
        return self._names.get(label)

    def check(self) -> None:
        """Raise IngestError if the labels of all records together are no class numbers."""
        largest, where = self._largest
        count = largest + 1
        if count > max(_FEW_CLASSES, self._declared, 100 * len(self._found)):
            raise IngestError(
                f"{where}: label {largest} makes {count:,} classes, of which only {len(self._found):,} occur",
                hint="number the classes from 0, or give them names (csv_list: --option labels=names or classes=FILE)",
            )
        for label in range(count if self._found else 0):
            if label not in self._names and (other := self._labels.get(str(label))) is not None:
                raise IngestError(
                    f"label {other} has the name {str(label)!r}, which is the number of another class",
                    hint="give all classes names, or none of them",
                )

    def names(self) -> list[str]:
        """Return the names by label; without a label in any record the list is empty."""
        count = max(self._names) + 1 if self._found else 0
        return [self._names.get(label, str(label)) for label in range(count)]

    def _agree(self, where: str, label: int, name: str) -> None:
        """Note the name of a label; raises IngestError if the label has another name, or the name another label."""
        known = self._names.setdefault(label, name)
        other = self._labels.setdefault(name, label)
        if known != name:
            message = f"{where}: label {label} is named {name!r} here and {known!r} before"
        elif other != label:
            message = f"{where}: labels {other} and {label} have one name, {name!r}"
        else:
            return
        raise IngestError(message, hint="correct the labels in the recipe or list")


def _stored(where: str, name: str | None) -> str | None:
    """Return the name of a class as it is stored; raises IngestError if it is not text, or empty."""
    if name == "":
        raise IngestError(f"{where}: the name of the class is empty", hint="name the class, or leave the name out")
    try:
        return None if name is None else stored_name(name)
    except ValueError:
        raise IngestError(f"{where}: the name of the class is not text: {name!r}") from None


def _where(record: VideoRecord) -> str:
    """Return where a record stands; raises IngestError if it is none."""
    if not isinstance(record, VideoRecord) or not isinstance(record.key, str):
        raise IngestError(f"the recipe yields {str(record)[:80]!r}, which is not a VideoRecord with a key")
    if record.label_name is not None and not isinstance(record.label_name, str):
        raise IngestError(f"{record.path}: the name of the class, {record.label_name!r}, is not text")
    inside = record.inside
    if inside is not None and not (isinstance(inside, ByteRange | ParquetCell) and isinstance(inside.name, str)):
        raise IngestError(f"{record.path}: inside={inside!r} is not a place in a file", hint="correct the recipe")
    source = shown_source(record)
    return f"{record.where}: {source}" if record.where else source


def _written_inside(where: str, inside: Inside | None) -> str | None:
    """Return the place of a video in its file as JSON; raises IngestError if it is none."""
    if inside is None:
        return None
    kind, numbers = type(inside).__name__, [getattr(inside, name, 0) for name in ("offset", "size", "row")]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise IngestError(f"{where}: inside={inside!r} is not a place in a file", hint="correct the recipe")
    return json.dumps([kind, asdict(inside)])


def _read_inside(written: str) -> Inside:
    """Return the place that `_written_inside` has written."""
    kind, values = json.loads(written)
    return ByteRange(**values) if kind == ByteRange.__name__ else ParquetCell(**values)
