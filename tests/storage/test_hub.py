"""The hub of weights: names, what each of its errors becomes, and what stands in an upload's way."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from rhofast.errors import ConfigError, RhofastError, StoreError
from rhofast.storage.hub import Repository, check_token, local_weights, open_repository, parse_repository, upload


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("ada/video", "ada/video", None),
        ("hf://ada/video", "ada/video", None),
        ("hf://ada-l/slow_r50.v2@v1.0", "ada-l/slow_r50.v2", "v1.0"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
    ],
)
def test_a_repository_has_a_user_and_a_name(text: str, name: str, revision: str | None) -> None:
    assert parse_repository(text, where="--hub") == Repository(name=name, revision=revision)


@pytest.mark.parametrize(
    "text",
    [
        *("", "video", "a/b/c", "/b", "a/", "a/../b", "a/b--c", "a/b..c", "a/b.git", "a/-b", "a/b.", "a b/c"),
        *("hf://a/b?x=1", "hf://datasets/a/b", "a/" + "b" * 95, "a/b@", "a/b@../x", "a/b@-x", "a/b@x y"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--hub="):
        parse_repository(text, where="--hub")


def test_a_file_and_a_folder_need_no_hub(tmp_path: Path) -> None:
    assert local_weights(tmp_path / "absent.safetensors") == tmp_path / "absent.safetensors"
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        local_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert local_weights(str(tmp_path)) == tmp_path / "model.safetensors"


def answer(status: int) -> Any:
    return SimpleNamespace(headers={}, request=None, status_code=status)


FAILURES: list[tuple[Exception, type[RhofastError], str]] = [
    (errors.GatedRepoError("x", response=answer(403)), StoreError, "grants access to those who ask.*hf auth login"),
    (errors.RepositoryNotFoundError("x", response=answer(404)), StoreError, "no such repository, or it is private"),
    (errors.RevisionNotFoundError("x", response=answer(404)), ConfigError, "no revision 'v9'"),
    (errors.RemoteEntryNotFoundError("x", response=answer(404)), ConfigError, r"has no model\.safetensors"),
    (errors.LocalEntryNotFoundError("x"), StoreError, "cannot be reached, and the cache does not have it"),
    (errors.OfflineModeIsEnabled("x"), StoreError, "HF_HUB_OFFLINE is set"),
    (errors.HfHubHTTPError("x", response=answer(401)), StoreError, "refuses the token.*HF_TOKEN"),
    (errors.HfHubHTTPError("x", response=answer(403), server_message="read only"), StoreError, "token: read only"),
    (errors.HfHubHTTPError("x", response=answer(503)), StoreError, "status 503.*try again later"),
    (errors.HTTPError("no route\nmore"), StoreError, "cannot be reached: no route .check the network"),  # type: ignore[attr-defined]
    (TimeoutError(), StoreError, "cannot be reached: TimeoutError"),
]


@pytest.mark.parametrize(("error", "kind", "said"), FAILURES, ids=[type(case[0]).__name__ for case in FAILURES])
def test_each_error_is_one_line(
    error: Exception, kind: type[RhofastError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(kind, match=f"hf://ada/video@v9: .*{said}") as caught:
        local_weights("hf://ada/video@v9")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fail)
    with pytest.raises(kind, match=said):
        open_repository(Repository(name="ada/video", revision="v9"), private=False, overwrite=False)
    with pytest.raises(kind, match=said):
        upload(Repository(name="ada/video", revision="v9"), Path(), "message")


@pytest.mark.parametrize(
    ("files", "overwrite", "accepted"),
    [
        ([], False, True),
        ([".gitattributes", "LICENSE"], False, True),
        (["README.md"], False, False),
        (["pytorch_model.bin"], False, False),
        (["config.json", "model.safetensors"], True, True),
    ],
)
def test_what_others_have_put_there_stays(
    files: list[str], overwrite: bool, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def note(name: str, result: Any = None) -> None:
        def method(self: Any, *args: Any, **options: Any) -> Any:
            calls.append((name, args, options))
            return result

        monkeypatch.setattr(huggingface_hub.HfApi, name, method)

    note("create_repo")
    note("create_branch")
    note("list_repo_files", files)
    repository = Repository(name="ada/video", revision="trial")
    if accepted:
        open_repository(repository, private=True, overwrite=overwrite)
    else:
        with pytest.raises(ConfigError, match=rf"has other files: {files[0]}.*--overwrite"):
            open_repository(repository, private=True, overwrite=overwrite)
    assert calls == [
        ("create_repo", ("ada/video",), {"private": True, "exist_ok": True}),
        ("create_branch", ("ada/video",), {"branch": "trial", "exist_ok": True}),
        ("list_repo_files", ("ada/video",), {"revision": "trial"}),
    ]


def test_without_a_token_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(StoreError, match=r"no token to write with \(hf auth login, or set HF_TOKEN"):
        check_token(Repository(name="ada/video"))
