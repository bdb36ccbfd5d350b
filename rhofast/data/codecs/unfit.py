"""Why a source cannot be stored as it is."""

from __future__ import annotations


class UnfitError(ValueError):
    """A sound source that a codec cannot store as it is; another codec may take it.

    Attributes:
        reason: Name of the reason, one of `Refusal` of ingest/probe.py.
        detail: What it is about the source, in a few words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail
