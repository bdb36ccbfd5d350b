"""What an error of a store means, whatever library raised it: obstore, fsspec and the packages below it, or the system.

Libraries of stores raise errors of many families, and new versions raise others. So all of them are taken for what
they say: a status code, a type, a text. One that says nothing known is taken for trouble that may pass.
"""

from __future__ import annotations

import errno
import re
from enum import Enum
from socket import gaierror

from rhofast.storage.network import is_final, is_missing, words

_STATUS = re.compile(r"non-2xx status code: (\d{3})([^\n:]*)")
# What obstore says first, before the reason.
_PREAMBLE = re.compile(r"^Generic \w+ error: (Error performing [A-Z]+ .* in [0-9.]+\w+ - (HTTP error: )?)?")
_WRONG_RANGE = re.compile(
    r"(Content-Range|Content-Length) header (not present|missing)|Requested .*, got", re.IGNORECASE
)
_TRY_LATER = (408, 425)
_CONNECTING = ("Connect", "dns error", "ConnectionRefused")
# Of aiohttp, botocore and httpx.
_CONNECTION_ERRORS = {"ClientConnectorError", "ClientConnectorDNSError", "EndpointConnectionError", "ConnectError"}
_CONNECTION_ERRORS |= {"ConnectTimeout", "ConnectTimeoutError", "ConnectionTimeoutError", "NoValidConnectionsError"}
# Of botocore and of obstore: the store was not even asked, or does not know who asks.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "UnauthenticatedError", "PermissionDeniedError"}
# Of paramiko.
_NO_CREDENTIALS |= {"AuthenticationException", "BadAuthenticationType", "BadHostKeyException"}
_NO_CREDENTIALS |= {"PasswordRequiredException"}
_NO_METHODS = "No authentication methods available"
_EXPIRED = re.compile(r"ExpiredToken|InvalidToken|RequestTimeTooSkewed|TokenRefreshRequired|expired", re.IGNORECASE)


class Kind(Enum):
    """What can be done about a request that failed."""

    MISSING = "there is no such object"
    DENIED = "whoever asks may not read it, or is not known"
    BUSY = "the store asks for patience"
    AWAY = "nobody answers there: no network, no name server, no server"
    PASSING = "another attempt may help"
    NO_RANGES = "the server sends whole files only"
    FINAL = "another attempt cannot help"


class RequestError(Exception):
    """Why a request to a store failed.

    Attributes:
        kind: What can be done about it.
        text: What is wrong, in one line without secrets.
        wait_s: Seconds that the store asked to wait, or 0.
    """

    def __init__(self, kind: Kind, text: str, *, wait_s: float = 0.0) -> None:
        """Create an error from its parts."""
        super().__init__(text)
        self.kind, self.text, self.wait_s = kind, text, wait_s


def request_error(error: BaseException) -> RequestError:
    """Return what an error of any library means."""
    if isinstance(error, RequestError):
        return error
    if type(error).__module__.startswith("obstore"):
        return _of_obstore(error)
    if type(error).__name__ == "RustPanic":
        return RequestError(Kind.DENIED, "obstore ends in a panic, as over malformed settings in the environment")
    if is_missing(error):
        # The hub does not tell who may not see a repository that it is there.
        is_hidden = type(error.__cause__).__name__ in ("RepositoryNotFoundError", "GatedRepoError")
        said = "no such repository, or a private one (credentials: HF_TOKEN)" if is_hidden else "no such file"
        return RequestError(Kind.MISSING, said)
    status, text = _status(error), words(error)
    is_unknown = type(error).__name__ in _NO_CREDENTIALS or str(error) == _NO_METHODS
    if status in (401, 403) or is_unknown or isinstance(error, PermissionError):
        return RequestError(Kind.DENIED, text)
    if status in (429, 503):
        return RequestError(Kind.BUSY, text, wait_s=_wait_s(error))
    if not status and (
        type(error).__name__ in _CONNECTION_ERRORS or isinstance(error, ConnectionRefusedError | gaierror)
    ):
        return RequestError(Kind.AWAY, text)
    # aiohttp gives a garbled answer a status, too, which `is_final` knows.
    is_answer = getattr(error, "status", None) is None and 300 <= status < 500 and status not in _TRY_LATER
    if is_final(error) or is_answer:
        return RequestError(Kind.FINAL, text)
    return RequestError(Kind.PASSING, text, wait_s=_wait_s(error))


def short_answer(received: int, size: int) -> RequestError:
    """Return the error of an answer that has not as many bytes as it should."""
    return RequestError(Kind.PASSING, f"received {received} of {size} bytes")


def _of_obstore(error: BaseException) -> RequestError:
    text = str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    name = type(error).__name__
    if found:
        said = f"{status}{found[2].rstrip()}"
        # What S3 and its likes say in the body.
        if code := re.search(r"<Code>(\w{1,60})</Code>(?:\s*<Message>([^<]{1,200})</Message>)?", text):
            said += f" ({code[1]}: {code[2]})" if code[2] else f" ({code[1]})"
        said = words(OSError(errno.EIO, said))
        if status in (404, 410):
            return RequestError(Kind.MISSING, "no such file")
        if status in (401, 403) or _EXPIRED.search(text):
            return RequestError(Kind.DENIED, said)
        if status in (429, 503):
            return RequestError(Kind.BUSY, said)
        final = 300 <= status < 500 and status not in _TRY_LATER
        return RequestError(Kind.FINAL if final else Kind.PASSING, said)
    if _WRONG_RANGE.search(text):
        return RequestError(Kind.NO_RANGES, f"the server answers range requests wrongly: {_first_line(text)}")
    if name == "NotSupportedError":
        return RequestError(Kind.NO_RANGES, "the server ignores range requests")
    if name in _NO_CREDENTIALS:
        return RequestError(Kind.DENIED, _first_line(text))
    if "TimedOut" in text or "operation timed out" in text:
        return RequestError(Kind.PASSING, "timed out")
    if "request or response body" in text:
        return RequestError(Kind.PASSING, "the answer broke off")
    if any(word in text for word in _CONNECTING):
        return RequestError(Kind.AWAY, f"Cannot connect: {_cause(text)}")
    if name in ("InvalidPathError", "UnknownConfigurationKeyError", "AlreadyExistsError"):
        return RequestError(Kind.FINAL, _first_line(text))
    return RequestError(Kind.PASSING, _first_line(text))


def _first_line(text: str) -> str:
    """Return the reason in the first line of an error of obstore; what follows are its parts, for who debugs it."""
    return words(OSError(errno.EIO, _PREAMBLE.sub("", text.partition("\n")[0])))


def _cause(text: str) -> str:
    """Return the innermost reason that an error of obstore gives, from the parts that it lists."""
    found = re.findall(r'(?:message|error): "([^"\n]+)"', text) or re.findall(r"kind: (\w+)", text)
    return words(OSError(errno.EIO, found[-1])) if found else _first_line(text)


def _status(error: BaseException) -> int:
    """Return the HTTP status code that an error of fsspec's packages carries; 0 if it carries none."""
    status = getattr(error, "status", None)
    answer = getattr(error, "response", None)
    if status is None and isinstance(answer, dict):  # of botocore
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status is None:  # of requests and httpx
        status = getattr(answer, "status_code", None)
    return status if isinstance(status, int) else 0


def _wait_s(error: BaseException) -> float:
    asked = str((getattr(error, "headers", None) or {}).get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else 0.0
