"""Weights on the Hugging Face Hub: `hf://user/name`, or `hf://user/name@revision`.

    local_weights   an address, a folder or a file -> the file of weights on this machine
    check_token     before anything is computed
    open_repository create it, unless it has files of others
    upload          a folder as one commit

Of a repository only `model.safetensors` is read, which holds no code. `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and
`HF_HUB_OFFLINE` mean what they mean to other programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rhofast.errors import ConfigError, StoreError
from rhofast.storage.address import redacted

SCHEME = "hf://"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_NEUTRAL = {".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt"}  # files that stand in no export's way
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_MAX_NAME = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository of models, at a revision.

    Attributes:
        name: user/name, or organization/name.
        revision: A branch, a tag or a commit; None: the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(text: str) -> bool:
    """Return whether a text names a repository of the hub."""
    return text.startswith(SCHEME)


def parse_repository(text: str, *, where: str, revision: str | None = None) -> Repository:
    """Return the repository that a text names, with or without `hf://`.

    Args:
        text: `user/name` or `user/name@revision`.
        where: The option or argument that holds the text, for errors.
        revision: The revision, where it is given apart.

    Raises:
        ConfigError: The text has another form.
    """
    name, at, tail = text.removeprefix(SCHEME).partition("@")
    parts = name.split("/")
    whole = len(parts) == 2 and len(name) <= _MAX_NAME and all(map(_PART.fullmatch, parts))
    if not whole or "--" in name or ".." in name or name.endswith(".git"):
        raise ConfigError(
            f"{where}={redacted(text)}: not of the form user/name",
            hint="letters, digits and single '-', '_' and '.' between them; at most 96 in all",
        )
    found = tail if at else revision
    if found is not None and (not _REVISION.fullmatch(found) or ".." in found):
        raise ConfigError(f"{where}={redacted(text)}: {found!r} is no branch, tag or commit")
    return Repository(name=name, revision=found)


def local_weights(source: str | Path) -> Path:
    """Return the file of weights that a path or an address of the hub names, downloaded if need be.

    Args:
        source: A file, a folder with `model.safetensors` in it, or `hf://user/name[@revision]`.

    Raises:
        ConfigError: The address is malformed, or the folder or the repository has no such file.
        StoreError: The hub cannot be reached, or refuses.
    """
    if not is_hub_address(str(source)):
        path = Path(source)
        if not path.is_dir():
            return path
        if not (path / WEIGHTS).is_file():
            raise ConfigError(f"{path}: the folder has no {WEIGHTS}", hint="export a run first: rhofast export")
        return path / WEIGHTS
    repository = parse_repository(str(source), where="address")
    from huggingface_hub import hf_hub_download

    with _failures(repository):
        return Path(hf_hub_download(repository.name, WEIGHTS, revision=repository.revision))


def check_token(repository: Repository) -> None:
    """Raise StoreError if there is no token to write to a repository with; this asks nobody."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise StoreError(
            f"{repository}: there is no token to write with",
            hint="hf auth login, or set HF_TOKEN in the environment",
        )


def hub_headers() -> dict[str, str]:
    """Return the headers with which files of the hub are asked for: the token of the environment, if there is one."""
    from huggingface_hub import get_token

    token = get_token()
    return {"authorization": f"Bearer {token}"} if token else {}


def open_repository(repository: Repository, *, private: bool, overwrite: bool) -> None:
    """Create a repository, and its branch, if there is none; refuse to replace what others have put there.

    Args:
        repository: The repository; its revision is a branch.
        private: Whether a repository that is created is private.
        overwrite: Accept that the files of an export replace those of the same name.

    Raises:
        ConfigError: There are other files.
        StoreError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="rhofast")
    with _failures(repository):
        api.create_repo(repository.name, private=private, exist_ok=True)
        if repository.revision is not None:
            api.create_branch(repository.name, branch=repository.revision, exist_ok=True)
        there = set(api.list_repo_files(repository.name, revision=repository.revision)) - _NEUTRAL
    if there and not overwrite:
        raise ConfigError(
            f"{repository}: the repository has other files: {', '.join(sorted(there)[:4])}",
            hint=f"name another one or a --revision, or add --overwrite, which replaces {CONFIG}, {WEIGHTS} and {CARD}",
        )


def upload(repository: Repository, folder: Path, message: str) -> str:
    """Upload the files of a folder as one commit, and return the commit's address on the web.

    Args:
        repository: The repository, which exists.
        folder: The folder.
        message: Message of the commit.

    Raises:
        StoreError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    with _failures(repository):
        done = HfApi(library_name="rhofast").upload_folder(
            repo_id=repository.name, folder_path=folder, revision=repository.revision, commit_message=message
        )
    return str(done.commit_url)


@contextmanager
def _failures(repository: Repository) -> Iterator[None]:
    """Turn the errors of the hub's client into one line each."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository.name}"
    try:
        yield
    except errors.GatedRepoError:  # before its base class, "not found"
        raise StoreError(
            f"{repository}: its owner grants access to those who ask for it", hint=f"ask at {page}, then hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{repository}: there is no revision {repository.revision!r}", hint=f"see {page}") from None
    except errors.RepositoryNotFoundError:
        raise StoreError(
            f"{repository}: there is no such repository, or it is private and the token may not read it",
            hint="check the name, or log in: hf auth login",
        ) from None
    except errors.LocalEntryNotFoundError:  # before its base class: nothing in the cache, and nobody to ask
        raise StoreError(
            f"{repository}: the hub cannot be reached, and the cache does not have it",
            hint="check the network and HF_HUB_OFFLINE",
        ) from None
    except errors.EntryNotFoundError:
        raise ConfigError(
            f"{repository}: the repository has no {WEIGHTS}", hint="it is no export of rhofast; see rhofast import"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise StoreError(f"{repository}: HF_HUB_OFFLINE is set", hint="unset it to reach the hub") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        refused = status in (401, 403)
        hint = "hf auth login with a token that may do this, or set HF_TOKEN" if refused else "try again later"
        said = "refuses the token" if refused else f"answers with status {status}"
        words = f": {error.server_message}" if getattr(error, "server_message", None) else ""
        raise StoreError(f"{repository}: the hub {said}{words}", hint=hint) from None
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # of the client's HTTP library
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise StoreError(f"{repository}: the hub cannot be reached: {text}", hint="check the network") from None
