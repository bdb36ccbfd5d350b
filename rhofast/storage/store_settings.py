"""Check what the environment says of object stores, since the library that asks them ends in a panic over some of it.

Which variables name servers is what obstore reads. A value that may be secret is not shown.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from rhofast.storage.address import is_server, redacted
from rhofast.storage.request_error import Kind, RequestError

_PREFIXES = {"s3": ("AWS_",), "gs": ("GOOGLE_",), "az": ("AZURE_", "IDENTITY_", "MSI_")}
_SERVERS = frozenset({
    "AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_METADATA_ENDPOINT", "AZURE_AUTHORITY_HOST",
    "AZURE_ENDPOINT", "AZURE_IDENTITY_ENDPOINT", "AZURE_MSI_ENDPOINT", "AZURE_STORAGE_AUTHORITY_HOST",
    "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL", "IDENTITY_ENDPOINT", "MSI_ENDPOINT",
})  # fmt: skip
_NAMES = frozenset({
    "AWS_DEFAULT_REGION", "AWS_REGION", "AZURE_AUTHORITY_ID", "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_TENANT_ID", "AZURE_TENANT_ID",
})  # fmt: skip  # parts of an address
_GOOGLE_FILES = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS")
_GOOGLE_ADDRESSES = ("gcs_base_url", "token_uri")
_SHOWN = 80  # characters of a value


def check_settings(kind: str) -> None:
    """Check the variables of a kind of store.

    Args:
        kind: `s3`, `gs` or `az`; other kinds have no variables.

    Raises:
        RequestError: One of them is malformed; the text names it.
    """
    for name, value in sorted(os.environ.items()):
        if not name.startswith(_PREFIXES.get(kind, ("\0",))) or not value:
            continue
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
            raise _malformed(f"{name} holds a line break or another control character")
        if name in _SERVERS:
            check_server(name, value)
        elif name in _NAMES:
            check_name(name, value)
    if kind == "gs":
        for name in _GOOGLE_FILES:
            _check_google_file(name, os.environ.get(name, ""))


def check_server(name: str, value: str) -> None:
    """Raise RequestError if a setting, which is named so, is not the address of a web server."""
    if not is_server(value):
        raise _malformed(f"{name}={redacted(value)[:_SHOWN]!r} is no address of a server")


def check_name(name: str, value: str) -> None:
    """Raise RequestError if a setting, which is named so, cannot be part of the address of a server."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", value):
        raise _malformed(f"{name}={value[:_SHOWN]!r} holds other characters than letters, digits and '._-'")


def _check_google_file(name: str, path: str) -> None:
    """Check the addresses in a file of credentials; whether it is one shows when it is used."""
    try:
        said = json.loads(Path(path).read_bytes()) if path else {}
    except (OSError, ValueError):
        return
    for key in _GOOGLE_ADDRESSES if isinstance(said, Mapping) else ():
        if isinstance(value := said.get(key), str):
            check_server(f"{key} in {name}={path}", value)


def _malformed(text: str) -> RequestError:
    return RequestError(Kind.DENIED, text)
