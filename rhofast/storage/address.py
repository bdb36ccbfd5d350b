"""Addresses such as `s3://bucket/folder`: check each one that a user gives, and show none with its secrets.

Credentials belong into the environment. An address with a user name or a password is refused. The query of a web
address may hold a signature, so an address is stored and shown without its query.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from rhofast.errors import ConfigError

_WEB = ("http", "https")
_AZURE = ("abfs", "abfss")  # their addresses name the container before an "@": it is no user
# Web servers, stores of objects, hubs, and servers of files. Other schemes of fsspec read through another source
# (archives, caches, code hosts), or reach this machine's files under another name.
_STORES = frozenset({
    "abfs", "abfss", "adl", "az", "gcs", "gs", "hdfs", "hf", "ftp", "http", "https", "memory", "oci", "oss", "s3",
    "s3a", "sftp", "smb", "ssh", "tos", "webhdfs",
})  # fmt: skip
_SERVERS = ("ftp", "hdfs", "sftp", "smb", "ssh", "webhdfs")  # besides web servers; what follows is host and port
_SHOWN = 500  # characters of an address in an error
_LONGEST = 16_384  # characters; signed addresses with a session token have some 2,000
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
# An address within a text. pathlib makes one slash of the two, if an address was taken for a path.
_ADDRESS = re.compile(
    r"""(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*(?=://)|\b(?:https?|s3a?|gcs?|gs|az|abfss?|hf|s?ftp|ssh)(?=:/[^/]))"""
    r"""(?P<mark>://?)(?P<rest>[^\s'"<>`]*)"""
)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # of a host name
# Parameters by which a web address is signed, or carries a key; compared in lower case.
_SECRETS = frozenset({
    "access_token", "accesstoken", "api-key", "api_key", "apikey", "auth", "authorization", "awsaccesskeyid",
    "credential", "expires", "googleaccessid", "hmac", "jwt", "key-pair-id", "ossaccesskeyid", "passwd",
    "password", "policy", "pwd", "secret", "security-token", "sig", "sign", "signature", "token",
    "x-oss-signature",
})  # fmt: skip
_AZURE_SAS = frozenset({
    "se", "sig", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr", "srt", "ss", "st", "sv",
})  # fmt: skip
_SIGNED_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-ms-", "x-cos-", "q-sign", "q-key", "q-ak", "q-signature")
_SECRET_VALUE = re.compile(
    r"(?i)(?P<name>[?&](?:x-(?:amz|goog|oss|ms|cos)-[a-z-]+|awsaccesskeyid|googleaccessid|key-pair-id|"
    r"[a-z_-]*(?:signature|token|secret|password|passwd|api_?key)|sig))=(?!=)[^&\s'\"<>,;)]+"
)


def is_address(text: str) -> bool:
    """Return whether a text is an address (`scheme://...`) rather than a path."""
    head, mark, _ = text.partition("://")
    return bool(mark) and "/" not in head


def is_remote(text: str) -> bool:
    """Return whether a text is the address of something that is not on this machine's disks."""
    return is_address(text) and text.partition("://")[0].lower() != "file"


def check_address(text: str, option: str, *, signed: bool = False) -> str:
    """Return a path or an address that a user gave, once it is known to be well formed and to hold no secret.

    Args:
        text: A path of this machine, or an address.
        option: What the error names: the option, or the file and line, that holds the address.
        signed: Whether a web address may have a query, which may be a signature. True for a source to read once, False
            for a folder of shards, whose address is stored.

    Returns:
        The text; the scheme of an address in lower case.

    Raises:
        ConfigError: The address holds a user name, a password or a query that is not allowed, is malformed, or has a
            scheme that nothing reads. The message does not repeat the secret.
    """
    if "\0" in text:
        raise ConfigError(f"{option}={redacted(text)[:_SHOWN]!r}: holds a NUL character")
    if not is_address(text):
        return text
    scheme, _, rest = text.partition("://")
    # An option is shown with its value; a place, such as `list.csv:3`, is followed by what stands there.
    shown = f"{option}{': ' if re.search(r'[:/ ]', option) else '='}{redacted(text)[:_SHOWN]}"
    if _has_user(scheme.lower(), rest):
        raise ConfigError(
            f"{shown}: the address holds a user name or a password",
            hint="remove it; give credentials in the environment, as fsspec documents for that store",
        )
    if reason := _malformed(text, scheme, rest):
        raise ConfigError(f"{shown}: {reason}", hint="write scheme://host/path; encode odd characters as %XX")
    scheme = scheme.lower()
    if "::" in rest:
        raise ConfigError(f"{shown}: '::' is not supported", hint="use a host name, and a single plain address")
    if scheme == "file" and urlsplit(f"file://{rest}").netloc not in ("", "localhost"):
        raise ConfigError(f"{shown}: file:// with a host", hint="write file:///folder, with three slashes")
    if scheme != "file" and scheme not in _STORES:
        raise ConfigError(
            f"{shown}: {scheme}:// is not supported",
            hint="use a path, file://, https://, hf:// or an object store such as s3://, or mount or copy the files",
        )
    if not signed and ("?" in rest or "#" in rest):
        raise ConfigError(
            f"{shown}: the address has a query or a fragment",
            hint="give the plain address of a folder; give credentials in the environment",
        )
    return f"{scheme}://{rest}"


def is_server(text: str) -> bool:
    """Return whether a text is the address of a web server, or of a folder of one, as every library takes it."""
    scheme, mark, rest = text.partition("://")
    is_web = bool(mark) and scheme.lower() in _WEB
    return is_web and re.fullmatch(r"[!#$%&-;=?-\[\]_a-z~]+", rest) is not None and not _malformed(text, scheme, rest)


def redacted(text: str) -> str:
    """Return a text fit to be printed or stored: addresses in it lose user, password, query and fragment.

    Args:
        text: An address, a path, or any text that may contain addresses, such as the error message of a library.
    """
    if ":/" not in text:
        return _SECRET_VALUE.sub(r"\g<name>=...", text) if "=" in text else text
    if is_address(text) and _SCHEME.fullmatch(text.partition("://")[0]) and "\n" not in text:
        scheme, _, rest = text.partition("://")
        user = _user_end(scheme.lower(), rest)
        # A user or a password may hold spaces and quotes, which end an address within a sentence.
        if user and ": " not in rest[:user]:
            text = f"{scheme}://{rest[user:]}"
    return _SECRET_VALUE.sub(r"\g<name>=...", _ADDRESS.sub(_plain, text))


def identity(text: str) -> str:
    """Return an address without what signs it, so that an address that is signed again has the same identity.

    Other parameters of the query stay, since they may tell two sources apart (`?id=1`). The result is for digests; it
    is not fit to be shown.

    Args:
        text: A path or an address.
    """
    if not is_address(text) or "?" not in text or text.partition("://")[0].lower() not in _WEB:
        return text
    head, _, query = text.partition("#")[0].partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    azure = any(name.lower() == "sig" for name, _ in pairs)
    kept = [(name, value) for name, value in pairs if not _signs(name.lower(), azure=azure)]
    return f"{head}?{urlencode(kept)}" if kept else head


def _signs(name: str, *, azure: bool) -> bool:
    """Return whether a parameter of a query is part of a signature or a key."""
    return name in _SECRETS or name.startswith(_SIGNED_PREFIXES) or (azure and name in _AZURE_SAS)


def _plain(match: re.Match[str]) -> str:
    """Return a matched address without user, password, query and fragment."""
    scheme, mark, rest = match["scheme"], match["mark"], match["rest"]
    rest = rest[_user_end(scheme.lower(), rest) :]
    cut = re.search(r"[?#]" if scheme.lower() in _WEB else r"\?", rest)
    if cut is None:
        return f"{scheme}{mark}{rest}"
    # Punctuation behind the address belongs to the sentence around it.
    tail = re.search(r"[)\],;:.!]*$", rest[cut.start() :])
    return f"{scheme}{mark}{rest[: cut.start()]}{tail[0] if tail else ''}"


def _has_user(scheme: str, rest: str) -> bool:
    return _user_end(scheme, rest) > 0


def _user_end(scheme: str, rest: str) -> int:
    """Return how many characters of what follows `scheme://` are a user and a password, with the '@'.

    A password with a slash, a question mark or a number sign ends the host too early. What is left of it then is no
    port, and so shows that there is an '@' to look for.
    """
    netloc = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in netloc:
        return 0 if scheme in _AZURE and ":" not in netloc else netloc.rindex("@") + 1
    host, colon, port = netloc.rpartition(":")
    is_port = scheme in (*_WEB, *_SERVERS) and port.isdigit()
    if colon and "@" in rest and not is_port and not host.startswith("["):
        return rest.rindex("@") + 1
    return 0


def _malformed(text: str, scheme: str, rest: str) -> str:
    """Return what is wrong with the form of an address; an empty text if nothing is."""
    if not _SCHEME.fullmatch(scheme):
        return f"{scheme[:40]!r} is not a scheme"
    if len(text) > _LONGEST:
        return f"longer than {_LONGEST} characters"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        return "holds a control character"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "holds bytes that are not UTF-8"
    if scheme.lower() == "file":
        return ""
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        return " ".join(str(error).split()) or "malformed"
    if not host:
        return "has no host or bucket"
    if scheme.lower() not in _WEB:
        if scheme.lower() == "hf":
            return _malformed_hub(rest)
        return "holds a port" if port is not None and scheme.lower() in ("s3", "s3a", "gs", "gcs") else ""
    if port == 0:
        return "port 0"
    return "" if parts.netloc.startswith("[") or _is_host(host) else f"{host[:80]!r} is not a host name"


def _malformed_hub(rest: str) -> str:
    """Return what is wrong with what follows `hf://`; an empty text if nothing is."""
    kind = rest.partition("/")[0] in ("datasets", "models", "spaces", "buckets")
    names = [name for name in rest.split("/")[kind : 2 + kind] if name]
    return "" if len(names) == 2 else "names no repository: write hf://datasets/ORGANIZATION/NAME/folder"


def _is_host(host: str) -> bool:
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        return False
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.removesuffix(".").split("."))
