"""Tasks of a job array: several machines that each run a share of the jobs of one build."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rhofast.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayTask:
    """One task of a job array: the jobs whose number modulo `count` is `number`.

    Attributes:
        number: Number of the task, in [0, count).
        count: Number of tasks.
    """

    number: int
    count: int

    def includes(self, job: int) -> bool:
        """Return whether this task runs the job of this number."""
        return job % self.count == self.number


def parse_task(text: str) -> ArrayTask:
    """Parse `I/N`, where I counts from 1; raises ConfigError if the text is not of this form."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        hint = "tasks count from 1, e.g. 1/8 to 8/8; for a Slurm array: --array=1-8 and --task $SLURM_ARRAY_TASK_ID/8"
        raise ConfigError(f"--task={text} is not of the form I/N with 1 <= I <= N", hint=hint)
    return ArrayTask(number=int(found[1]) - 1, count=int(found[2]))
