"""A folder of a store: whole files as streams, and many spans of bytes at once.

Every failure is a `RequestError`: nothing else leaves a folder, whatever a library raises. Nothing is tried again here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Span = tuple[int, int]  # first byte and size


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

    def renew(self) -> None:  # noqa: B027 - most stores have nothing to renew
        """Forget the credentials in use, which may have expired, and find some anew."""
