"""What a classifier was begun with, besides its configuration: a folder is continued only with the same."""

from __future__ import annotations

import json
from typing import Any

from rhofast.checkpoint.resume import OpenedRun
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.errors import ConfigError, ResumeError
from rhofast.storage.files import write_atomically
from rhofast.storage.strict_json import read_record


def check_begun_with(run: RunFolder, now: dict[str, Any], opened: OpenedRun) -> None:
    """Record what is trained on top of what, or check that it is what the folder was begun with.

    Args:
        run: The folder of the classifier.
        now: What its result depends on, as JSON values.
        opened: Whether a checkpoint is continued.

    Raises:
        ConfigError: The record cannot be written.
        ResumeError: It differs from what was recorded, or the record cannot be read.
    """
    if opened.checkpoint is None:
        try:
            write_atomically(run.task, json.dumps(now, indent=1))
        except OSError as error:
            raise ConfigError(f"{run.task}: {error.strerror or error}") from None
        return
    before = read_record(run.task, dict[str, Any], raises=ResumeError)
    changes = [
        f"{key} was {repr(before.get(key))[:200]}, is {repr(now[key])[:200]}"
        for key in now
        if before.get(key) != now[key]
    ]
    if changes:
        raise ResumeError(
            f"{run.path} was begun with something else: {'; '.join(changes)}",
            hint="choose another name: --set name=...",
        )
