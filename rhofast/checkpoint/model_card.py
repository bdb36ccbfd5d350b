"""The model card of an export: README.md of a repository on the Hugging Face Hub, made from the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rhofast.config.load import dump_config
from rhofast.config.schema import Config

# What another machine's folders and habits are; not part of what was trained.
_PRIVATE_SECTIONS = ("out", "data", "eval")
_PRIVATE_IN_TRAIN = ("trackers", "tracker_project", "profile_steps", "max_hours", "timeout_s")


def public_config(config: Config) -> dict[str, Any]:
    """Return the configuration of a run as plain values, without folders and without what does not change a result."""
    values = {key: value for key, value in dump_config(config).items() if key not in _PRIVATE_SECTIONS}
    train = {key: value for key, value in values["train"].items() if key not in _PRIVATE_IN_TRAIN}
    return {**values, "train": train}


def model_card(
    *,
    title: str,
    config: Config,
    step: int,
    card: Mapping[str, Any],
    load: str,
    license: str | None,
    code: str | None,
    library: str = "rhofast",
) -> str:
    """Return the text of a model card, in Markdown with a header in YAML.

    Args:
        title: The heading.
        config: The run's configuration.
        step: Optimizer steps done.
        card: The card of the export.
        load: Python code that loads the backbone.
        license: Identifier of a license, such as "apache-2.0"; None: a line to fill in.
        code: The SHA-256 of the file that defines the backbone, where it is code of a user.
        library: The library that loads it.
    """
    method, name = config.method.name, config.backbone.name
    own = code is not None
    kind = "custom" if own else name
    license_line = f"license: {license}" if license else "# license: apache-2.0   (fill in, and remove the #)"
    tags = ["rhofast", "video", "self-supervised", *([] if ":" in method else [method]), *([] if own else [name])]
    parts = [
        "---",
        f"library_name: {library}",
        license_line,
        "pipeline_tag: feature-extraction",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        "",
        f"# {title}",
        "",
        f"A video backbone (`{kind}`, {card['num_features']} features), pretrained without labels by `{method}` on "
        f"{max(2, config.clips.num_clips)} clips per video with rhofast.",
        "",
        "## Load",
        "",
        "```python",
        load.rstrip(),
        "```",
        "",
        f"Input: {card['input']['text']}.",
        "",
    ]
    if own:
        parts += [
            f"The network is code of its author: `{name}`, a file with the SHA-256 `{code}`. It is not part of these "
            "files, and loading runs no code that you do not name.",
            "",
        ]
    parts += ["## Training", "", *_training(config, step, card["training"]), ""]
    parts += ["## Results", "", *_results(card["metrics"]), ""]
    if not license:
        parts += ["## License", "", "Not stated yet: fill in `license` at the top of this file.", ""]
    text = json.dumps(public_config(config), indent=2)
    parts += ["## Configuration", "", "<details>", "", "```json", text, "```", "", "</details>", ""]
    return "\n".join(parts)


def _training(config: Config, step: int, training: Mapping[str, Any]) -> list[str]:
    data = training["data"]
    rows = {
        "method": f"`{config.method.name}`",
        "clips per video": f"{config.clips.num_clips} of {config.clips.num_frames} frames, "
        f"{config.clips.frame_stride} apart at {config.clips.fps:g} frames per second",
        "batch": f"{config.train.batch_size} videos",
        "optimizer steps": f"{step:,}",
        "seed": str(config.seed),
        "precision": config.train.precision,
        "data": data["name"] or "not named",
        "digest of the data": f"`{data['digest']}`",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _results(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return ["No accuracy was measured at this step."]
    names = {"top-1": "knn_top1", "top-5": "knn_top5"}
    found = {name: f"{metrics[key]:.1%}" for name, key in names.items() if key in metrics}
    rows = [
        ["on held-out videos", *found, "videos"],
        ["---"] * (len(found) + 2),
        ["k nearest neighbors", *found.values(), str(metrics.get("knn_samples", ""))],
    ]
    return [f"| {' | '.join(row)} |" for row in rows]
