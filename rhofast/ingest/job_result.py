"""The files that say what became of videos: the result file of a job, and refused.jsonl.

    .job-000000.jsonl   {"states": [...]}           what the sources were before they were read, many per line
                        {"refused": [...]}          the refused ones, some per line
                        {"end": {"digest": ...}}    what was made of the others; without this line there is no result

A stranger may have written them, and a crash of the machine may have left any bytes: both are read strictly. Both are
written and read line by line, since a job may have many sources, and may refuse many windows of one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, TextIO

from pydantic import Field

from rhofast.config.section import Section
from rhofast.data.format.dataset_json import ShardInfo
from rhofast.errors import IngestError
from rhofast.storage.files import writing_atomically
from rhofast.storage.strict_json import read_lines, read_numbered_lines

REFUSED_FILE = "refused.jsonl"
_STATES, _REFUSED = 1_000, 16  # of a line of a result file
_MAX_LINE_BYTES = 16 << 20  # of such a line, with all details
_HINT = "run the same command again: it continues"

State = list[Annotated[int | float | str | None, Field(union_mode="left_to_right")]] | None


class RefusedSource(Section):
    """A video that did not become a sample.

    Attributes:
        key: The key that its sample would have had.
        path: Where it is, as it may be stored and shown.
        reason: The kind of reason; see `Refusal`.
        detail: What exactly was wrong.
    """

    key: str
    path: str
    reason: str
    detail: str

    def line(self) -> str:
        """Return the line of refused.jsonl."""
        return json.dumps(self.model_dump()) + "\n"


class ResultEnd(Section):
    """What a job made.

    Attributes:
        digest: Digest of everything that decides the result, except the content of the sources.
        shard: The shard; None if every source was refused.
    """

    digest: str
    shard: ShardInfo | None


class ResultBlock(Section):
    """A line of the result file of a job.

    Attributes:
        states: What `source_state` returned for the next sources before they were read.
        refused: The next refused sources.
        end: What the job made, in the last line.
    """

    states: list[State] = Field(default_factory=list)
    refused: list[RefusedSource] = Field(default_factory=list)
    end: ResultEnd | None = None


class ResultWriter:
    """Keeps what becomes of the sources of a job on the disk, and writes the result file at the end.

    Attributes:
        num_refused: Number of refused sources.
    """

    def __init__(self, spool: TextIO, states: Iterable[State]) -> None:
        """Begin a result.

        Args:
            spool: A new file, open for writing and reading, which the caller closes.
            states: What `source_state` returned for each source.
        """
        self.num_refused, self._spool, self._waiting = 0, spool, list[RefusedSource]()
        every = iter(states)
        while some := list(islice(every, _STATES)):
            self._add(ResultBlock(states=some))

    def refuse(self, source: RefusedSource) -> None:
        """Add a refused source."""
        self.num_refused += 1
        self._waiting.append(source)
        if len(self._waiting) == _REFUSED:
            self._add(ResultBlock(refused=self._waiting))
            self._waiting = []

    def write(self, path: Path, digest: str, shard: ShardInfo | None) -> None:
        """Write the result file.

        Args:
            path: The file, on this machine or in an object store.
            digest: Digest of the job.
            shard: The shard; None if every source was refused.

        Raises:
            OSError: It cannot be written.
        """
        self._add(ResultBlock(refused=self._waiting, end=ResultEnd(digest=digest, shard=shard)))
        self._spool.seek(0)
        with writing_atomically(path) as file:
            shutil.copyfileobj(self._spool, file)

    def _add(self, block: ResultBlock) -> None:
        self._spool.write(json.dumps(block.model_dump(exclude_defaults=True)) + "\n")


def read_result(path: Path) -> Iterator[ResultBlock]:
    """Yield the lines of the result file of a job, of which the last one has an `end`.

    Raises:
        IngestError: The file is missing or is none, which may show at its end: the job is then not done.
    """
    block = ResultBlock()
    for _, block in read_numbered_lines(
        path, ResultBlock, raises=IngestError, max_bytes=None, max_line_bytes=_MAX_LINE_BYTES, hint=_HINT
    ):
        yield block
    if block.end is None:
        raise IngestError(f"{path}: not the whole result of a job", hint=_HINT)


def read_refused(path: Path) -> Iterator[RefusedSource]:
    """Yield the lines of a refused.jsonl.

    Raises:
        IngestError: The file is missing or cannot be read, or a line does not fit.
    """
    return read_lines(path, RefusedSource, raises=IngestError, hint="restore the file as `rhofast shard` wrote it")
