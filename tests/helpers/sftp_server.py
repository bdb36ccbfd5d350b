"""An sftp server of one folder, in threads of this process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko

USER, PASSWORD = "me", "secret"


class SftpServer:
    """The server.

    Attributes:
        root: The folder.
        key: Its host key.
        port: Where it listens.
        logins: The passwords that were tried.
        silent: Whether it takes connections and answers nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.key, self.port = root, paramiko.ECDSAKey.generate(), 0
        self.logins: list[str] = []
        self.silent = False
        self._open: list[paramiko.Transport | socket.socket] = []

    @property
    def url(self) -> str:
        return f"sftp://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Take connections, at the same port as before."""
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, args=(self._socket,))
        self._thread.start()

    def end(self) -> None:
        """End all connections and refuse new ones."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for one in self._open:
            one.close()
        self._open.clear()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            if self.silent:
                self._open.append(connection)
                continue
            transport = paramiko.Transport(connection)
            self._open.append(transport)
            transport.add_server_key(self.key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files, self.root)
            transport.start_server(event=threading.Event(), server=_Logins(self))


@contextmanager
def serving_sftp(root: Path) -> Iterator[SftpServer]:
    server = SftpServer(root)
    server.listen()
    try:
        yield server
    finally:
        server.end()


class _Logins(paramiko.ServerInterface):
    def __init__(self, server: SftpServer) -> None:
        self._server = server

    def check_auth_password(self, username: str, password: str) -> int:
        self._server.logins.append(password)
        is_right = (username, password) == (USER, PASSWORD)
        return int(paramiko.AUTH_SUCCESSFUL if is_right else paramiko.AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)


class _File(paramiko.SFTPHandle):
    def __init__(self, path: str, flags: int) -> None:
        super().__init__(flags)
        is_written = bool(flags & (os.O_WRONLY | os.O_RDWR))
        self.readfile = self.writefile = os.fdopen(os.open(path, flags, 0o644), "wb" if is_written else "rb")

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


class _Files(paramiko.SFTPServerInterface):
    def __init__(self, server: _Logins, root: Path) -> None:
        self._root = root

    def _do(self, call: Callable[..., Any], *paths: str) -> Any:
        """Return what a call comes to, of paths in the folder; None is success."""
        try:
            done = call(*(f"{self._root}{self.canonicalize(path)}" for path in paths))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)
        return paramiko.SFTP_OK if done is None else done

    def stat(self, path: str) -> Any:
        return self._do(lambda path: paramiko.SFTPAttributes.from_stat(Path(path).stat()), path)

    lstat = stat

    def open(self, path: str, flags: int, attr: Any) -> Any:
        return self._do(lambda path: _File(path, flags), path)

    def list_folder(self, path: str) -> Any:
        def entries(path: str) -> list[Any]:
            return [paramiko.SFTPAttributes.from_stat(one.stat(), one.name) for one in Path(path).iterdir()]

        return self._do(entries, path)

    def remove(self, path: str) -> Any:
        return self._do(os.remove, path)

    def mkdir(self, path: str, attr: Any) -> Any:
        return self._do(os.mkdir, path)

    def rename(self, oldpath: str, newpath: str) -> Any:
        return self._do(os.rename, oldpath, newpath)

    def posix_rename(self, oldpath: str, newpath: str) -> Any:
        return self._do(os.replace, oldpath, newpath)
