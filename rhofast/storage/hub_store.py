"""Folders of the Hugging Face Hub: `hf://datasets/ORGANIZATION/NAME/folder`, or `NAME@revision`.

What lies there is asked through the file system of huggingface_hub. Contents come from the address of each file, by
obstore: the file system would look up every file among all of its folder, for each request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from urllib.parse import quote

from rhofast.storage.fsspec_store import FsspecFolder, as_faults
from rhofast.storage.hub import hub_headers
from rhofast.storage.object_store import ObjectFolder, serves
from rhofast.storage.request_error import Kind, RequestError
from rhofast.storage.store import Span


class HubFolder(FsspecFolder):
    """A folder of a repository of the hub, or of several; see `StoreFolder`.

    Args:
        url: Its address.
        timeout_s: Limit on a connection, and on each wait for more of an answer, in seconds.

    Raises:
        DependencyError: fsspec or obstore is not installed.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(url, timeout_s)
        self._endpoint = str(self._store.endpoint).rstrip("/")
        self._contents = self._opened() if serves(self._endpoint) else None

    def _opened(self) -> ObjectFolder:
        return ObjectFolder(self._endpoint, self._timeout_s, headers=hub_headers())

    def _place(self, name: str) -> tuple[ObjectFolder, str] | None:
        """Return the endpoint, and the name of a file there; None if obstore cannot ask for it."""
        if self._contents is None:
            return None
        with as_faults():
            found = self._store.resolve_path(self._path(name))  # asks once whether the repository is there
        if not hasattr(found, "repo_id"):
            return self._contents, f"buckets/{found.bucket_id}/resolve/{found.path}"
        kind = "" if found.repo_type == "model" else f"{found.repo_type}s/"
        if quote(found.revision, safe="") != found.revision:
            return None
        return self._contents, f"{kind}{found.repo_id}/resolve/{found.revision}/{found.path_in_repo}"

    @contextmanager
    def stream(self, name: str, *, begin: int = 0) -> Iterator[tuple[Iterator[bytes], int]]:
        """Read a file in one pass; see `StoreFolder`."""
        place = self._place(name)
        with ExitStack() as stack:
            try:
                if place is None:
                    raise RequestError(Kind.PASSING, "no Content-Length")
                folder, inside = place
                found = stack.enter_context(folder.stream(inside, begin=begin))
            except RequestError as fault:
                if "Content-Length" not in fault.text:
                    raise
                found = stack.enter_context(super().stream(name, begin=begin))
            yield found

    async def spans(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Read spans of a file; see `StoreFolder`."""
        place = self._place(name)
        if place is None:
            return await super().spans(name, spans)
        folder, inside = place
        return await folder.spans(inside, spans)

    def renew(self) -> bool:
        """Have the next requests use the token that is then there; see `StoreFolder`."""
        if self._contents is not None:
            self._contents = self._opened()
        return True
