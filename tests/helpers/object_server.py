"""Stores of objects on this machine, as obstore speaks to them: the XML API of gs (and s3), and the Blob service of az.

Only what obstore uses: GET with Range, HEAD, PUT, DELETE, lists with a delimiter in pages, and uploads in parts, which
become an object only when they are completed. A test may turn chosen requests into faults.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

DATE = "Sun, 01 Nov 2026 10:00:00 GMT"
ISO = "2026-11-01T10:00:00.000Z"
ACCOUNT = "account"
_KEY = "a2V5" * 8


@dataclass
class ObjectServer:
    """What the stores hold, and what happens to requests.

    Attributes:
        objects: Contents by `bucket/key`.
        buckets: Names of buckets, which az calls containers.
        page: Names in one page of a list.
        fault: Returns (status, headers, body) for a request (method, target) that goes wrong, "cut" for a connection
            that is reset, or None.
        accepted: What the credentials of a request must contain; others have expired.
        requests: How often each method was used.
        parts: Parts of uploads that are not complete.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    buckets: set[str] = field(default_factory=set)
    page: int = 1000
    fault: Callable[[str, str], Any] = lambda method, target: None
    accepted: str = ""
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    parts: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the variables with which s3://, gs:// and az:// mean this server."""
        account = folder / "service_account.json"
        keys = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        account.write_text(json.dumps({"gcs_base_url": self.url, "disable_oauth": True, **keys}))
        return {
            "GOOGLE_SERVICE_ACCOUNT": str(account),
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.url}/{ACCOUNT}",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: ObjectServer

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that has given up
            super().handle()

    def answer(self, status: int, body: bytes = b"", /, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def error(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.answer(status, b"" if self.command == "HEAD" else body, x_ms_error_code=code)

    def any(self) -> None:
        store, parts = self.store, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store.requests[self.command] += 1
        fault = store.fault(self.command, self.path)
        if fault == "cut":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if fault is not None:
            status, headers, said = fault
            self.answer(status, said, **headers)
            return
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = unquote(parts.path).lstrip("/")
        is_azure = path.partition("/")[0] == ACCOUNT
        path = path.removeprefix(f"{ACCOUNT}/") if is_azure else path
        bucket, _, key = path.partition("/")
        if store.accepted not in self.headers.get("Authorization", ""):
            self.error(400, "ExpiredToken")
        elif bucket not in store.buckets:
            self.error(404, "ContainerNotFound" if is_azure else "NoSuchBucket")
        elif "delete" in query:
            names = [name.decode() for name in re.findall(rb"<Key>([^<]+)</Key>", body)]
            for name in names:
                store.objects.pop(f"{bucket}/{unescape(name)}", None)
            done = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            self.answer(200, f"<DeleteResult>{done}</DeleteResult>".encode())
        elif query.get("comp") == "batch":
            self.azure_delete(body)
        elif not key:
            (self.azure_list if is_azure else self.xml_list)(bucket, query)
        elif self.command in ("GET", "HEAD"):
            self.read(path)
        elif self.command == "DELETE":
            store.objects.pop(path, None)
            self.answer(202 if is_azure else 204)
        else:
            (self.azure_write if is_azure else self.xml_write)(path, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = any  # noqa: N815

    def read(self, path: str) -> None:
        content = self.store.objects.get(path)
        if content is None:
            self.error(404, "NoSuchKey")
            return
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Last_Modified": DATE, "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or self.headers.get("x-ms-range") or "")
        status, size = 200, len(content)
        if asked and self.command == "GET":
            begin, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
            content, status, headers["Content_Range"] = content[begin:end], 206, f"bytes {begin}-{end - 1}/{size}"
        is_head = self.command == "HEAD"
        self.answer(status, b"" if is_head else content, length=len(content), x_ms_blob_type="BlockBlob", **headers)

    def page(self, bucket: str, prefix: str, delimiter: str, after: str) -> tuple[list[str], list[str], str]:
        """Return keys, common prefixes, and where the next page begins."""
        keys, folders = [], dict[str, None]()
        for path in sorted(self.store.objects):
            name = path.partition("/")[2]
            if not path.startswith(f"{bucket}/{prefix}") or name <= after:
                continue
            inside = name[len(prefix) :]
            if delimiter and delimiter in inside:
                folders[prefix + inside.partition(delimiter)[0] + delimiter] = None
            else:
                keys.append(name)
            if len(keys) + len(folders) >= self.store.page:
                return keys, list(folders), f"{name}\uffff" if folders else name
        return keys, list(folders), ""

    def xml_list(self, bucket: str, query: dict[str, str]) -> None:
        keys, folders, following = self.page(
            bucket, query.get("prefix", ""), query.get("delimiter", ""), query.get("continuation-token", "")
        )
        parts = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.store.objects[f'{bucket}/{key}'])}</Size>"
            f"<LastModified>{ISO}</LastModified><ETag>x</ETag></Contents>"
            for key in keys
        ]
        parts += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        if following:
            parts.append(f"<NextContinuationToken>{escape(following)}</NextContinuationToken>")
        text = f"<ListBucketResult><IsTruncated>{str(bool(following)).lower()}</IsTruncated>{''.join(parts)}"
        self.answer(200, f"{text}</ListBucketResult>".encode())

    def azure_list(self, container: str, query: dict[str, str]) -> None:
        keys, folders, following = self.page(
            container, query.get("prefix", ""), query.get("delimiter", ""), query.get("marker", "")
        )
        parts = [
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{DATE}</Last-Modified><Etag>x</Etag>"
            f"<Content-Length>{len(self.store.objects[f'{container}/{key}'])}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
            for key in keys
        ]
        parts += [f"<BlobPrefix><Name>{escape(folder)}</Name></BlobPrefix>" for folder in folders]
        text = f"<EnumerationResults><Blobs>{''.join(parts)}</Blobs><NextMarker>{escape(following)}</NextMarker>"
        self.answer(200, f"{text}</EnumerationResults>".encode())

    def xml_write(self, path: str, query: dict[str, str], body: bytes) -> None:
        store = self.store
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        if "uploads" in query:
            number = str(len(store.parts))
            store.parts[number] = {}
            self.answer(200, f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>".encode())  # fmt: skip  # noqa: E501
        elif "partNumber" in query:
            store.parts[query["uploadId"]][query["partNumber"]] = body
            self.answer(200, ETag=etag)
        elif "uploadId" in query:
            sent = store.parts.pop(query["uploadId"])
            order = re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)
            store.objects[path] = b"".join(sent[number.decode()] for number in order)
            self.answer(200, f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>".encode())  # fmt: skip  # noqa: E501
        else:
            store.objects[path] = body
            self.answer(200, ETag=etag)

    def azure_delete(self, body: bytes) -> None:
        """Delete several objects; the request and the answer are texts of requests and answers."""
        answers = []
        for number, place in enumerate(re.findall(rb"DELETE ([^ ?]+)", body)):
            self.store.objects.pop(unquote(urlsplit(place.decode()).path).removeprefix(f"/{ACCOUNT}/"), None)
            head = f"--end\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
            answers.append(f"{head}HTTP/1.1 202 Accepted\r\nx-ms-request-id: {number}\r\n\r\n")
        self.answer(202, f"{''.join(answers)}--end--\r\n".encode(), Content_Type="multipart/mixed; boundary=end")

    def azure_write(self, path: str, query: dict[str, str], body: bytes) -> None:
        store = self.store
        if query.get("comp") == "block":
            store.parts.setdefault(path, {})[query["blockid"]] = body
        elif query.get("comp") == "blocklist":
            sent = store.parts.pop(path)
            order = re.findall(rb"<(?:Uncommitted|Latest)>([^<]+)<", body)
            assert all(b64decode(block) for block in order)
            store.objects[path] = b"".join(sent[block.decode()] for block in order)
        else:
            store.objects[path] = body
        self.answer(201, ETag='"x"', Last_Modified=DATE)


@contextmanager
def serving(*buckets: str) -> Iterator[ObjectServer]:
    """Run a server in threads of this process."""
    store = ObjectServer(buckets=set(buckets))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"store": store}))
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
