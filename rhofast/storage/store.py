"""A folder of a store: whole files as streams, many spans of bytes at once, and what lies in it.

Every failure is a `RequestError`: nothing else leaves a folder, whatever a library raises. Nothing is tried again here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Span = tuple[int, int]  # first byte and size


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a folder of a store.

    Attributes:
        name: Its name, without those of the folders above it.
        is_folder: Whether it is a folder: what lies in it begins with its name and a slash.
        size: Size of a file in bytes; None if the store does not say.
    """

    name: str
    is_folder: bool
    size: int | None = None


class StoreFolder(ABC):
    """A folder of a store. Thread-safe.

    Attributes:
        url: Its address, without a slash at its end.
    """

    url: str

    @abstractmethod
    @contextmanager
    def stream(self, name: str, *, begin: int = 0) -> Iterator[tuple[Iterator[bytes], int]]:
        """Read a file in one pass.

        Args:
            name: Name of the file in the folder.
            begin: Position of the first byte to read.

        Yields:
            (chunks of the file, the position of their first byte): 0 where the store can begin nowhere else.

        Raises:
            RequestError: The file, or the rest of it, cannot be read; chunks raise it, too.
        """

    @abstractmethod
    async def spans(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Read spans of a file, side by side. A span that reaches beyond the file's end is short.

        Raises:
            RequestError: One of them cannot be read.
        """

    @abstractmethod
    def state(self, name: str) -> tuple[int, str]:
        """Return the size of a file and what the store says of its version, which may be nothing.

        Raises:
            RequestError: The store does not say.
        """

    @abstractmethod
    def put(self, name: str, path: Path) -> None:
        """Write a file of this machine into the folder, as a whole or not at all.

        Raises:
            RequestError: It cannot be written.
        """

    @abstractmethod
    def find(self, name: str) -> Entry | None:
        """Return what there is under a name; None if there is nothing.

        Raises:
            RequestError: The store does not say.
        """

    @abstractmethod
    def entries(self, name: str) -> list[Entry]:
        """Return what lies in a folder, by name; nothing if there is no such folder.

        Args:
            name: Name of a folder in this one; empty: this one.

        Raises:
            RequestError: The store does not say; MISSING: there is no such bucket.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file; it need not be there.

        Raises:
            RequestError: It cannot be deleted.
        """

    def create(self, name: str) -> None:  # noqa: B027 - most stores have no folders that could be created
        """Create a folder and those above it, where a store has folders without files; never a bucket.

        Raises:
            RequestError: It cannot be created.
        """

    def renew(self) -> bool:
        """Forget the credentials in use, which may have expired; return whether others may be found."""
        return False
