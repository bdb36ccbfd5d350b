"""Servers of files that paramiko connects to, for fsspec: whom to trust, how long to wait, and how to ask at once.

fsspec trusts whatever host answers, and sends it the password. Here a host must have the key that known_hosts has of
it, as with ssh, unless the configuration of fsspec says otherwise (host_key_policy).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
_WAITS = ("timeout", "banner_timeout", "auth_timeout", "channel_timeout")
_RSA = "ssh-rsa"  # in known_hosts; the same keys sign in other ways


def ssh_options(address: str, timeout_s: float, configured: dict[str, Any]) -> dict[str, Any]:
    """Return options of fsspec's file system for sftp.

    Args:
        address: Any address of the server.
        timeout_s: Limit on a connection, and on each wait for more of an answer, in seconds.
        configured: The options that fsspec is configured with.
    """
    import paramiko

    # Otherwise a connection that fails prints a traceback.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    parts, known = urlsplit(address), paramiko.HostKeys()
    port = parts.port or configured.get("port", 22)
    host = f"[{parts.hostname}]:{port}" if port != 22 else parts.hostname
    for file in _KNOWN_HOSTS:
        with suppress(OSError):
            known.load(str(Path(file).expanduser()))

    class Transport(paramiko.Transport):  # type: ignore[misc]
        def start_client(self, *arguments: Any, **options: Any) -> None:
            offered, ours = self.get_security_options(), known.lookup(host) or {}
            kinds = {*ours, *(one for one in offered.key_types if _RSA in ours and one.startswith("rsa-"))}
            offered.key_types = sorted(offered.key_types, key=lambda kind: kind not in kinds)
            super().start_client(*arguments, **options)
            if "host_key_policy" not in configured and not known.check(host, self.get_remote_server_key()):
                self.close()
                what = "is another one than in" if ours else "is not in"
                advice = "compare its fingerprint, and log in once with ssh"
                raise PermissionError(f"the key of host {host} {what} {_KNOWN_HOSTS[0]}: {advice}")

        def open_session(self, *arguments: Any, **options: Any) -> Any:
            channel = super().open_session(*arguments, **options)
            channel.settimeout(timeout_s)
            return channel

    return {"transport_factory": Transport, **{name: timeout_s for name in _WAITS if name not in configured}}


def read_at_once(file: Any, begin: int, size: int) -> bytes:
    """Read a span of a file of paramiko, which asks for 32 kB and waits for them, but for a vector at once."""
    return b"".join(file.readv([(begin, size)]))
