"""Addresses: what is refused, and that nothing shown or stored holds a secret."""

from pathlib import Path

import pytest

from rhofast.config.load import load_config
from rhofast.errors import ConfigError
from rhofast.storage.address import check_address, identity, is_address, is_remote, redacted
from rhofast.storage.store_path import as_path

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "/data/set",
        "relative/a@b:c?d#e",
        "./https://not/an/address",
        "file:///data/what%3F",
        "s3://bucket/folder with space/a@b",
        "s3://bucket/",
        "http://127.0.0.1:8080/set",
        "https://host.example./set/@name/x.mp4",
        "https://münchen.example/set",
        "abfss://container@account.dfs.core.windows.net/set",
        "hf://datasets/organization/name@main/set",
        "hf://organization/name",
        "sftp://host:22/set",
    ],
)
def test_a_plain_address_or_path_is_returned_unchanged(text: str) -> None:
    assert check_address(text, "data.train") == text
    assert redacted(text) == text and identity(text) == text


def test_a_scheme_is_written_in_lower_case() -> None:
    assert check_address("HTTPS://host/Set", "OUT") == "https://host/Set"
    assert is_remote("S3://bucket/x") and not is_remote("FILE:///x") and not is_address("/a://b")


@pytest.mark.parametrize(
    ("text", "shown", "said"),
    [
        (f"https://user:{SECRET}@host/set", "https://host/set", "user name or a password"),
        (f"https://{SECRET}@host/set", "https://host/set", "user name or a password"),
        (f"s3://AKIA:{SECRET}/+x@bucket/set", "s3://bucket/set", "user name or a password"),
        (f"https://us er:{SECRET}'\"x@host/set", "https://host/set", "user name or a password"),
        (f"https://user:a#b?{SECRET}@host/set", "https://host/set", "user name or a password"),
        (f"HTTP://user:{SECRET}@@host:80/set", "HTTP://host:80/set", "user name or a password"),
        (f"https://host/set?X-Amz-Signature={SECRET}", "https://host/set", "query"),
        (f"https://host/set#{SECRET}", "https://host/set", "fragment"),
        (f"nosuch://host/set?{SECRET}", "nosuch://host/set", "nosuch:// is not supported"),
        ("simplecache::https://host/set", "simplecache::https://host/set", "not a scheme"),
        ("https://host/zip::x", "https://host/zip::x", "'::' is not supported"),
        *(
            (f"{scheme}://host/a.mp4", f"{scheme}://host/a.mp4", f"{scheme}:// is not supported")
            for scheme in (
                "webdav",
                "github",
                "simplecache",
                "jlab",
                "data",
                "zip",
                "local",
            )
        ),
        ("hf://datasets/name", "hf://datasets/name", "names no repository"),
        ("hf://name", "hf://name", "names no repository"),
        (f"sftp://user:{SECRET}@host:22/set", "sftp://host:22/set", "user name or a password"),
        ("zip:///etc/passwd", "zip:///etc/passwd", "no host"),
        ("local:///etc/passwd", "local:///etc/passwd", "no host"),
        ("https:///set", "https:///set", "no host"),
        ("http://[host/set", "http://[host/set", "IPv6"),
        ("http://host:http/set", "http://host:http/set", "Port"),
        ("http://host:99999/set", "http://host:99999/set", "Port"),
        ("http://a..b/set", "http://a..b/set", "not a host name"),
        (f"http://{'a' * 64}.org/set", f"http://{'a' * 64}.org/set", "not a host name"),
        ("http://-/set", "http://-/set", "not a host name"),
        ("s3://bucket:80/set", "s3://bucket:80/set", "port"),
        ("http://host/a\nb", r"http://host/a\nb", "control character"),
        ("http://host/\udce9", r"http://host/\udce9", "UTF-8"),
        ("file://data/set", "file://data/set", "three slashes"),
        ("http://host/" + 20_000 * "a", "", "longer than 16384"),
        (" https://host/set", " https://host/set", "not a scheme"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_without_its_secret(text: str, shown: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_address(text, "data.train")
    assert caught.value.message.startswith(f"data.train={shown}") and SECRET not in str(caught.value)
    assert len(caught.value.message) < 700


def test_a_source_may_be_signed_and_is_shown_without_its_query() -> None:
    text = f"https://host/a.mp4?Expires=1&Signature={SECRET}"
    assert check_address(text, "list.csv:3", signed=True) == text
    assert str(as_path(text, signed=True)) == text
    assert redacted(text) == "https://host/a.mp4"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            f"cannot read https://u:{SECRET}@h/x?{SECRET}=1: 403, message='x'",
            "cannot read https://h/x: 403, message='x'",
        ),
        (f"URL('https://h/x.mp4?sig={SECRET}') and s3://u:{SECRET}@b/y", "URL('https://h/x.mp4') and s3://b/y"),
        (f"(see https://h/x?{SECRET}).", "(see https://h/x)."),
        (
            f"exceeded with url: /x?a=1&X-Amz-Signature={SECRET}",
            "exceeded with url: /x?a=1&X-Amz-Signature=...",
        ),
        (f"https:/user:{SECRET}@host/x: no such folder", "https:/host/x: no such folder"),
        ("http://127.0.0.1:80/x: no answer for a@b", "http://127.0.0.1:80/x: no answer for a@b"),
        ("no address: a/b, c@d, e?f", "no address: a/b, c@d, e?f"),
    ],
)
def test_addresses_in_the_words_of_a_library_are_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_an_address_that_is_signed_again_has_the_same_identity() -> None:
    once = "https://h/get?id=1&X-Amz-Date=20260101&X-Amz-Signature=aa"
    assert identity(once) == identity(once.replace("aa", "bb")) == "https://h/get?id=1"
    assert identity("https://h/get?id=2") != identity("https://h/get?id=1")
    azure = "https://h/c/x.mp4?sv=2022&se=2026&sp=r&sig=abc"
    assert identity(azure) == "https://h/c/x.mp4" and identity("https://h/x?sp=r") == "https://h/x?sp=r"


@pytest.mark.parametrize("key", ["data.train", "data.test", "out", "data.cache"])
def test_no_config_takes_an_address_with_a_password(key: str, tmp_path: Path) -> None:
    for address in (f"https://user:{SECRET}@host/set", f"s3://{SECRET}@bucket/set"):
        with pytest.raises(ConfigError) as caught:
            load_config(None, [f"{key}={address}"])
        assert key in str(caught.value) and SECRET not in str(caught.value)


def test_a_folder_of_this_machine_is_no_address() -> None:
    with pytest.raises(ConfigError, match="out='s3://bucket/runs': must be a path on this machine"):
        load_config(None, ["out=s3://bucket/runs"])
