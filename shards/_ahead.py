"""Read several slow sources at once, and yield what is in them in their order. Not a recipe.

The next thing in a source can often be asked for only when the last one has come, as the headers of a remote tar. Each
request then waits for the store, so only reading several sources side by side makes it fast.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

SourceT = TypeVar("SourceT")
ItemT = TypeVar("ItemT")

_WAIT_S = 0.2  # after which a full queue is looked at again: nobody may want it any more
_END = object()


def read_ahead(
    sources: Iterable[SourceT], read: Callable[[SourceT], Iterator[ItemT]], *, at_once: int, held: int
) -> Iterator[tuple[SourceT, Iterator[ItemT]]]:
    """Yield each source with the items in it, while the next sources are read already.

    Args:
        sources: The sources, which are taken one by one as there is room.
        read: Yields the items of a source; it is called in threads.
        at_once: Number of sources that are read side by side.
        held: Items of a source that are kept at most until they are wanted; then its reading waits.

    Yields:
        (source, its items), in the order of the sources. The items of one must be taken to their end before the next
        one is. An error of `read` is raised in its place among the items.
    """
    left, stopped = iter(sources), threading.Event()
    pending: deque[tuple[SourceT, queue.Queue[Any]]] = deque()

    def put(items: queue.Queue[Any], item: Any) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=_WAIT_S)
                return True
            except queue.Full:
                continue
        return False

    def fill(source: SourceT, items: queue.Queue[Any]) -> None:
        try:
            for item in read(source):
                if not put(items, (item, None)):
                    return
            put(items, (_END, None))
        except Exception as error:  # noqa: BLE001 - raised where the items are taken
            put(items, (_END, error))

    def start(count: int) -> None:
        for source in islice(left, count):
            items: queue.Queue[Any] = queue.Queue(held)
            pending.append((source, items))
            threading.Thread(target=fill, args=(source, items), daemon=True).start()

    try:
        start(at_once)
        while pending:
            source, items = pending.popleft()
            yield source, _taken(items)
            start(1)
    finally:
        stopped.set()


def _taken(items: queue.Queue[Any]) -> Iterator[Any]:
    while True:
        item, error = items.get()
        if error is not None:
            raise error
        if item is _END:
            return
        yield item
