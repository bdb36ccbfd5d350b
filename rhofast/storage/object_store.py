"""Folders of the stores that obstore knows: s3, gs, az, http and https. The only place that knows it by name.

Credentials and endpoints are found where the store's own tools find them: in the environment and, for s3, wherever
botocore looks (profiles, single sign-on, roles), if it is installed, which s3fs brings.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rhofast.errors import DependencyError
from rhofast.storage.address import redacted
from rhofast.storage.fsspec_store import FsspecFolder
from rhofast.storage.loop_thread import wait_for
from rhofast.storage.network import CHUNK, words
from rhofast.storage.request_error import Kind, RequestError, request_error
from rhofast.storage.store import Entry, Span, StoreFolder
from rhofast.storage.store_settings import check_name, check_server, check_settings

Result = TypeVar("Result")

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfs", "abfss": "abfss"}
_SCHEMES |= {"http": "http", "https": "https"}
# What a configuration of fsspec may say of s3, and the option of obstore that says the same.
_FSSPEC_S3 = {"endpoint_url": "endpoint", "key": "access_key_id", "secret": "secret_access_key", "token": "token"}
_CREDENTIALS_LIFE = timedelta(minutes=5)  # after which botocore is asked again
_AT_ONCE = 10  # spans of one call that obstore asks for side by side; it asks for more one after another
_FOR_EVER = timedelta(days=30)  # a stream may last; each wait within it has a limit
_PARTS, _PART = 4, 8 << 20  # parts of an upload that are under way at once, and their least bytes
_MOST_PARTS = 9_000  # of one object: s3 takes 10,000
_SLOWEST = 100_000  # bytes per second; a slower upload is given up
_PART_RETRIES = 5

_process: int | None = None  # the process in which obstore's threads run


def serves(url: str) -> bool:
    """Return whether a folder is opened through obstore in this process."""
    scheme = urlsplit(url).scheme
    if scheme not in _SCHEMES or (_process is not None and _process != os.getpid()):
        return False
    options = _fsspec_options(scheme)
    return not options or (_SCHEMES[scheme] == "s3" and options.keys() <= {*_FSSPEC_S3, "anon"})


def _fsspec_options(scheme: str) -> dict[str, Any]:
    """Return what the configuration of fsspec says of a kind of store."""
    try:
        from fsspec.config import conf
    except ImportError:
        return {}
    return dict(conf.get("s3" if scheme == "s3a" else scheme, {}))


class ObjectFolder(StoreFolder):
    """A folder that obstore opens.

    Args:
        url: Its address.
        timeout_s: Limit on a connection, and on each wait for more of an answer, in seconds.
        headers: Headers of each request to a web server; they do not follow it to another one.

    Raises:
        DependencyError: obstore is not installed.
        RequestError: The configuration of the store is wrong, or there are no credentials.
    """

    def __init__(self, url: str, timeout_s: float, *, headers: Mapping[str, str] | None = None) -> None:
        global _process
        try:
            import obstore
        except ImportError:
            raise DependencyError(
                f"{redacted(url)}: obstore is not installed", hint="pip install 'rhofast[s3]'"
            ) from None
        _process = os.getpid()
        self.url, self._timeout_s, self._obstore = url, timeout_s, obstore
        self._store: Any = None
        self._headers = headers
        self._whole_only = False  # the server ignores range requests
        self._is_web = urlsplit(url).scheme in ("http", "https")  # which has pages in place of folders

    def renew(self) -> bool:
        """Have the next request open the store anew, with the credentials that are then there."""
        self._store = None
        return not self._is_web

    def _opened(self) -> Any:
        """Return the store, which is opened when it is first used: credentials may be missing."""
        if self._store is None:
            try:
                self._store = _open(self.url, self._timeout_s, headers=self._headers)
            except Exception as error:  # noqa: BLE001 - of obstore, botocore, or what the environment holds
                fault = request_error(error)
                if fault.kind in (Kind.AWAY, Kind.BUSY):
                    raise fault from None
                # Nothing was asked for yet, so this is no fault of a file. Settings may be corrected during a run.
                place = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
                said = fault.text if type(error).__module__.startswith("obstore") else words(error)
                raise RequestError(Kind.DENIED, f"{said}{place}") from None
        return self._store

    @contextmanager
    def stream(self, name: str, *, begin: int = 0) -> Iterator[tuple[Iterator[bytes], int]]:
        """Read a file in one pass; see `StoreFolder`."""
        try:
            found = self._get(name, 0 if self._whole_only else begin)
        except RequestError as fault:
            if (
                "Content-Length" in fault.text and self._headers is None
            ):  # a web server that makes its answer as it goes
                with FsspecFolder(self.url, self._timeout_s).stream(name, begin=begin) as opened:
                    yield opened
                return
            if fault.kind is not Kind.NO_RANGES:
                raise
            self._whole_only = True
            found = self._get(name, 0)
        encoding = found.attributes.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise RequestError(Kind.FINAL, f"stored or sent compressed (Content-Encoding: {encoding})")
        yield self._chunks(found), found.range[0]

    def _get(self, name: str, begin: int) -> Any:
        store = self._opened()
        options = {"range": {"offset": begin}} if begin else {}
        try:
            return wait_for(_called(self._obstore.get_async, store, name, options=options), 2 * self._timeout_s)
        except Exception as error:  # noqa: BLE001
            raise request_error(error) from None

    def _chunks(self, found: Any) -> Iterator[bytes]:
        chunks = found.stream(min_chunk_size=CHUNK)

        async def following() -> bytes:
            try:
                return bytes(await chunks.__anext__())
            except StopAsyncIteration:
                return b""

        while True:
            try:
                chunk = wait_for(following(), 2 * self._timeout_s)
            except Exception as error:  # noqa: BLE001
                raise request_error(error) from None
            if not chunk:
                return
            yield chunk

    async def spans(self, name: str, spans: Sequence[Span]) -> list[memoryview]:
        """Read spans of a file; see `StoreFolder`."""
        store = self._opened()
        groups = [spans[first : first + _AT_ONCE] for first in range(0, len(spans), _AT_ONCE)]
        try:
            asked = [self._ask(store, name, group) for group in groups]
            found = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)
        except Exception as error:  # noqa: BLE001
            raise request_error(error) from None
        return [memoryview(content) for contents in found for content in contents]

    def _ask(self, store: Any, name: str, spans: Sequence[Span]) -> Any:
        """Return the contents of spans, to be awaited."""
        return self._obstore.get_ranges_async(
            store, name, starts=[begin for begin, _ in spans], lengths=[size for _, size in spans], coalesce=0
        )

    def state(self, name: str) -> tuple[int, str]:
        """Return size and version of a file; see `StoreFolder`."""
        store = self._opened()
        try:
            found = wait_for(_called(self._obstore.head_async, store, name), 4 * self._timeout_s)
        except Exception as error:  # noqa: BLE001
            raise request_error(error) from None
        changed = found["last_modified"]  # the beginning of time, if the store does not say
        return int(found["size"]), str(found.get("e_tag") or (changed if changed.timestamp() else ""))

    def put(self, name: str, path: Path) -> None:
        """Write a file of this machine into the folder; see `StoreFolder`.

        A large file travels in parts, which the store joins when all are there; each is sent again if it fails.
        """
        size = path.stat().st_size
        part = max(_PART, -(-size // _MOST_PARTS))
        try:
            # A request is answered when its part has come, side by side with others.
            store = _open(self.url, self._timeout_s, wait_s=self._timeout_s + _PARTS * part / _SLOWEST, again=True)
            options = {"chunk_size": part, "max_concurrency": _PARTS}
            wait_for(_called(self._obstore.put_async, store, name, path, **options))
        except Exception as error:  # noqa: BLE001
            raise request_error(error) from None

    def find(self, name: str) -> Entry | None:
        """Return what there is under a name; see `StoreFolder`."""
        if self._is_web:
            return FsspecFolder(self.url, self._timeout_s).find(name)
        last = name.rpartition("/")[2]
        if name:
            try:
                return Entry(last, False, self.state(name)[0])
            except RequestError as fault:
                if fault.kind is not Kind.MISSING:
                    raise
        store = self._opened()

        async def has_any() -> bool:
            async for chunk in self._obstore.list(store, name or None, chunk_size=1):
                return bool(chunk)
            return False

        try:
            found = wait_for(has_any())
        except Exception as error:  # noqa: BLE001
            raise request_error(error) from None
        return Entry(last, True) if found or not name else None

    def entries(self, name: str) -> list[Entry]:
        """Return what lies in a folder; see `StoreFolder`."""
        if self._is_web:
            return FsspecFolder(self.url, self._timeout_s).entries(name)
        store = self._opened()
        try:
            found = wait_for(_called(self._obstore.list_with_delimiter_async, store, name or None))
        except Exception as error:  # noqa: BLE001
            raise request_error(error) from None
        # An object with the name of the folder marks an empty one.
        objects = ((one["path"], one["size"]) for one in found["objects"] if one["path"] != name)
        every = [Entry(path.rpartition("/")[2], True) for path in found["common_prefixes"]]
        return sorted([*every, *(Entry(path.rpartition("/")[2], False, size) for path, size in objects)], key=_name)

    def delete(self, name: str) -> None:
        """Delete a file; see `StoreFolder`."""
        store = self._opened()
        try:
            wait_for(_called(self._obstore.delete_async, store, name), 4 * self._timeout_s)
        except Exception as error:  # noqa: BLE001
            fault = request_error(error)
            if fault.kind is not Kind.MISSING:
                raise fault from None


def _name(entry: Entry) -> str:
    return entry.name


async def _called(function: Callable[..., Awaitable[Result]], *arguments: Any, **options: Any) -> Result:
    """Return what a function of obstore comes to: the call itself wants a running loop."""
    return await function(*arguments, **options)


def _open(
    url: str,
    timeout_s: float,
    *,
    wait_s: float | None = None,
    again: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Open the store of an address; raise whatever obstore and botocore raise.

    Args:
        url: The address.
        timeout_s: Limit on a connection, in seconds.
        wait_s: Limit on each wait for more of an answer, in seconds; None: the same.
        again: Whether a request that fails is made again here, with the pauses of obstore.
        headers: Headers of each request to a web server.
    """
    from obstore.store import from_url

    scheme, mark, rest = url.partition("://")
    kind = _SCHEMES[scheme]
    check_settings("az" if kind.startswith("abfs") else kind)
    waits = {"connect_timeout": timedelta(seconds=timeout_s), "read_timeout": timedelta(seconds=wait_s or timeout_s)}
    options: dict[str, Any] = {
        "client_options": {**waits, "timeout": _FOR_EVER, "allow_http": True, "default_headers": dict(headers or {})},
        "retry_config": {"max_retries": _PART_RETRIES if again else 0},  # who asks knows when to ask again
    }
    if kind == "s3":
        options |= _s3_options(scheme)
    return from_url(f"{kind}{mark}{rest}", **options)


def _s3_options(scheme: str) -> dict[str, Any]:
    """Return how to reach s3: as the configuration of fsspec says, else as botocore finds out."""
    said = _fsspec_options(scheme)
    options = {_FSSPEC_S3[name]: value for name, value in said.items() if name in _FSSPEC_S3}
    if "endpoint" in options:
        check_server("endpoint_url of fsspec", str(options["endpoint"]))
    if said.get("anon"):
        return {**options, "skip_signature": True}
    try:
        from botocore.session import get_session
    except ImportError:
        return options
    session = get_session()
    if region := session.get_config_variable("region"):
        check_name("region", region)
        options["region"] = region
    if "endpoint" not in options and (endpoint := os.environ.get("AWS_ENDPOINT_URL_S3")):
        options["endpoint"] = endpoint
    if "access_key_id" in options:
        return options
    if session.get_credentials() is None:
        raise RequestError(Kind.DENIED, "Unable to locate credentials")
    return {**options, "credential_provider": _ask_botocore}


def _ask_botocore() -> dict[str, Any]:
    """Return the credentials that botocore finds now; obstore asks again when they are five minutes old."""
    from botocore.session import get_session

    found = get_session().get_credentials()
    if found is None:
        raise RequestError(Kind.DENIED, "Unable to locate credentials")
    keys = found.get_frozen_credentials()
    if not all(one is None or one.isprintable() for one in (keys.access_key, keys.secret_key, keys.token)):
        raise RequestError(Kind.DENIED, "the credentials hold a line break or another control character")
    return {
        "access_key_id": keys.access_key,
        "secret_access_key": keys.secret_key,
        "token": keys.token,
        "expires_at": datetime.now(UTC) + _CREDENTIALS_LIFE,
    }
