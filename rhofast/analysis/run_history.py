"""What a run has recorded about its steps: configuration, world size, and bad samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhofast.checkpoint.checkpoint import latest_checkpoint, step_of
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.checkpoint.run_lines import read_bad_samples, read_metrics
from rhofast.config.load import override_config, parse_config
from rhofast.config.schema import Config
from rhofast.data.types import Position
from rhofast.errors import ConfigError
from rhofast.storage.strict_json import read_record


def read_run(run: Path, overrides: Sequence[str]) -> tuple[Config, list[dict[str, Any]]]:
    """Read the configuration and the metrics of a run.

    Args:
        run: Folder of the run.
        overrides: Settings `data.key=value`, such as the new location of the data.

    Returns:
        (configuration, lines of metrics.jsonl).

    Raises:
        ConfigError: If the folder is not a run, the run has not started, or another setting is overridden.
    """
    other = [text for text in overrides if not text.strip().startswith("data.")]
    if other:
        raise ConfigError(f"--set {other[0]}: only data.* can be set, because a run is replayed as it was")
    path = RunFolder(run).config
    values = read_record(path, dict[str, Any], raises=ConfigError, hint="not the configuration of a run")
    lines = read_metrics(RunFolder(run).metrics)
    if not any(line["kind"] == "start" for line in lines):
        raise ConfigError(f"{run}: the run has not started: metrics.jsonl has no start line")
    return override_config(parse_config(values, where=str(path)), overrides), lines


def start_of_step(
    run: Path, config: Config, lines: list[dict[str, Any]], step: int, *, any_step: bool
) -> dict[str, Any]:
    """Find the start line of the process that did a step. The last one counts where a resumed run repeated the step.

    Args:
        run: Folder of the run.
        config: Configuration of the run.
        lines: Lines of metrics.jsonl.
        step: Optimizer step, from 1.
        any_step: Whether the start line of the newest process is returned for a step that the run did not do.

    Returns:
        The start line.

    Raises:
        ConfigError: If the run did not do the step.
    """
    spans: list[tuple[dict[str, Any], int]] = []  # start line, last step that its process is known to have done
    for line in lines:
        if line["kind"] == "start":
            if spans:  # This process resumed from a checkpoint of the previous one, or from an older one.
                spans[-1] = (spans[-1][0], max(spans[-1][1], line["step"]))
            spans.append((line, line["step"]))
        elif line["kind"] == "step" and spans:
            spans[-1] = (spans[-1][0], max(spans[-1][1], line["step"]))
    saved = latest_checkpoint(run)
    if saved is not None:
        spans[-1] = (spans[-1][0], max(spans[-1][1], step_of(saved)))
    found = [start for start, last in spans if start["step"] < step <= last]
    if found:
        return found[-1]
    if any_step and step >= 1:
        return spans[-1][0]
    done = max(last for _, last in spans)
    known = f"the run has done steps 1 to {done}" if done else "the run is not known to have done any step"
    raise ConfigError(
        f"{run}, --step {step}: {known} (train.log_steps={config.train.log_steps})",
        hint="pass --world-size to replay a batch that the run did not reach" if step >= 1 else None,
    )


def changes_since(run: Path, position: Position, planned: set[int], bad: dict[int, str]) -> list[str]:
    """Find the samples of a batch that were bad during the run and are not bad now, or the reverse.

    Args:
        run: Folder of the run.
        position: Address of the batch.
        planned: Sample numbers of the batch.
        bad: Reason per sample number that is bad now.

    Returns:
        One sentence per sample.
    """
    recorded = {
        line["sample"]
        for line in read_bad_samples(RunFolder(run).bad_samples)
        if (line["epoch"], line["position"]) == (position.epoch, position.position) and line["sample"] in planned
    }
    readable = [
        f"sample {sample} was bad during the run and is readable now: the run used another one"
        for sample in recorded - set(bad)
    ]
    return readable + [
        f"sample {sample} is bad now and was readable during the run: the run used it" for sample in set(bad) - recorded
    ]
