"""Settings of object stores that are malformed: one error that names the setting, and no panic of the library."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rhofast.data.sources import open_shards
from rhofast.errors import ShardMissingError
from rhofast.storage.address import is_server
from rhofast.storage.object_store import ObjectFolder
from rhofast.storage.request_error import Kind, RequestError

pytest.importorskip("obstore")

DEAD = "http://127.0.0.1:1"
KEYS = {
    "s3": {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_ENDPOINT_URL": DEAD},
    "az": {
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
        "AZURE_STORAGE_ENDPOINT": DEAD,
    },
    "gs": {},
}
NO_SERVERS = [
    "nonsense",
    "http://",
    "http://a b",
    "ftp://host",
    "http://[::1",
    "http://host:99999",
    'http://h"o',
    "http://hö",
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine says how to reach a store."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "IDENTITY_", "MSI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def refusal(scheme: str, said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> RequestError:
    """Return why nothing can be read there with these settings."""
    for name, value in {**KEYS[scheme], **said}.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(RequestError) as caught, ObjectFolder(f"{scheme}://bucket/set", 2.0).stream("a"):
        pass
    return caught.value


@pytest.mark.parametrize("value", NO_SERVERS)
@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("s3", "AWS_ENDPOINT_URL"),
        ("s3", "AWS_ENDPOINT_URL_S3"),
        ("az", "AZURE_STORAGE_ENDPOINT"),
        ("az", "AZURE_AUTHORITY_HOST"),
        ("az", "IDENTITY_ENDPOINT"),
    ],
)
def test_a_setting_that_is_no_server_is_named(
    scheme: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = refusal(scheme, {name: value}, monkeypatch)
    assert found.kind is Kind.DENIED and found.text == f"{name}={value!r} is no address of a server"
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("key", ["gcs_base_url", "token_uri"])
def test_a_file_of_credentials_that_names_no_server_is_named(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True, key: "not a server"}
    (tmp_path / "account.json").write_text(json.dumps(account))
    found = refusal("gs", {"GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "account.json")}, monkeypatch)
    assert found.kind is Kind.DENIED and found.text.startswith(f"{key} in GOOGLE_SERVICE_ACCOUNT=")


@pytest.mark.parametrize(
    ("scheme", "said", "words"),
    [
        ("s3", {"AWS_REGION": "us east"}, "AWS_REGION='us east' holds other characters"),
        ("s3", {"AWS_SECRET_ACCESS_KEY": "hunter2\n"}, "AWS_SECRET_ACCESS_KEY holds a line break"),
        ("s3", {"AWS_SESSION_TOKEN": "hunter2\r"}, "AWS_SESSION_TOKEN holds a line break"),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "a b"}, "AZURE_STORAGE_ACCOUNT_NAME='a b' holds other characters"),
        ("az", {"AZURE_STORAGE_ACCOUNT_KEY": "!!"}, "Invalid Access Key"),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": ""}, "Account must be specified"),
        ("az", {"AZURE_TENANT_ID": "a b", "AZURE_CLIENT_ID": "x", "AZURE_CLIENT_SECRET": "y"}, "AZURE_TENANT_ID='a b'"),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT": "/no/such/file"}, "/no/such/file"),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": "junk"}, "Unable to decode"),
    ],
)
def test_another_malformed_setting_is_one_line_without_secrets(
    scheme: str, said: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = refusal(scheme, said, monkeypatch)
    assert found.kind is Kind.DENIED and words in found.text and "\n" not in found.text
    assert "hunter2" not in found.text and "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("garbage[", "Unable to parse config file"),
        ("[default]\nregion=us east\n", "region='us east' holds other characters"),
        ("[default]\ncredential_process=/no/such/program\n", "No such file or directory: /no/such/program"),
        ("[default]\nrole_arn=arn:aws:iam::1:role/x\nsource_profile=other\n", 'source_profile "other"'),
    ],
)
def test_a_malformed_configuration_of_s3_is_no_missing_file(
    config: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("botocore")
    (tmp_path / "config").write_text(config)
    no_keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""} if "region" not in config else {}
    found = refusal("s3", {"AWS_CONFIG_FILE": str(tmp_path / "config"), **no_keys}, monkeypatch)
    assert found.kind is Kind.DENIED and words in found.text and "\n" not in found.text


def test_a_setting_of_another_store_is_no_fault_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("s3", {"AZURE_STORAGE_ENDPOINT": "nonsense"}, monkeypatch).kind is Kind.AWAY


def test_the_command_names_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a b")
    with pytest.raises(ShardMissingError, match="AWS_ENDPOINT_URL='http://a b' is no address"):
        open_shards("s3://bucket/set")


@pytest.mark.parametrize("text", ["http://host", "https://host:8080/a/b", "http://[::1]:9000", "http://127.0.0.1:1/x/"])
def test_addresses_of_servers_are_known(text: str) -> None:
    assert is_server(text) and not any(map(is_server, NO_SERVERS))
