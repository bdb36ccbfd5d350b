"""The whole job on a small scale, as a sequence of command lines that a user could type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rhofast.analysis.report_results import read_results
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet, open_folder
from rhofast.errors import ConfigError
from rhofast.evaluation.scores import TOP1

RUN = "pretraining"  # name of the run, and of its folder
TRAIN_VIDEOS, TEST_VIDEOS = 1024, 256
PER_CLASS = 200  # at most so many of the user's own videos, so that the demo stays short
HOLDOUT = 0.2
SMALLEST_BATCH = 4


def demo_commands(out: Path, videos: Path | None, config: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the steps in their order, each with its command line: later ones depend on what earlier ones made.

    Args:
        out: Folder for videos, shards and the run.
        videos: Folder with one folder per class; None for generated videos.
        config: TOML file, or name of a packaged config.

    Yields:
        What a step does, in words, and the arguments of its command.

    Raises:
        ConfigError: There are too few training videos.
    """
    loaded = load_config(config)
    stored = ["--short-side", "64", "--fps", f"{loaded.clips.fps:g}", "--samples-per-shard", "64"]
    for split, count in (("train", TRAIN_VIDEOS), ("test", TEST_VIDEOS)):
        if videos is None:
            source = [str(out / "videos"), str(out / split), "--recipe", "motions"]
            options = {"split": split, "videos": count}
        else:
            source = [str(videos), str(out / split), "--recipe", "folder"]
            options = {"split": split, "holdout": HOLDOUT, "per_class": PER_CLASS}
            stored += ["--max-seconds", "10"] if "--max-seconds" not in stored else []
        given = [text for name, value in options.items() for text in ("--option", f"{name}={value}")]
        kind = {"train": "training", "test": "held-out"}[split]
        words = f"Generate {count:,} {kind} videos" if videos is None else f"Choose {kind} videos"
        yield f"{words} and make shards of them", ["shard", *source, *given, "--split", split, *stored]
    train, test = open_folder(out / "train"), open_folder(out / "test")
    run = out / RUN
    where = {"name": run.name, "out": out, "data.train": train.root, "data.test": test.root}
    changed = {**where, **_fitted(train, loaded.train.batch_size)}
    sets = [text for key, value in changed.items() for text in ("--set", f"{key}={value}")]
    yield "Pretrain a backbone without labels", ["train", config, "--resume", *sets]
    yield "Classify the held-out videos by kNN", ["eval", "knn", str(run), "--test", str(test.root), "--untrained"]
    drawn = ["--config", config, "--samples", "4", "--out", str(RunFolder(run).clips)]
    yield "Draw clips as training sees them", ["show", str(train.root), *drawn]
    yield "Write the report", ["report", str(run)]


def summarize_demo(out: Path) -> str:
    """Return whether training helped. "Clearly" means by more than two standard errors of the difference."""
    result = next(one for one in read_results(out / RUN) if one["kind"] == "knn")  # has just been written
    trained, untrained = (result[name]["measures"][TOP1] for name in ("trained", "untrained"))
    chance = result["trained"]["chance"][TOP1]
    videos, gain = result["trained"]["samples"], trained - untrained
    variance = sum(share * (1 - share) / videos for share in (trained, untrained))
    facts = (
        f"kNN top-1 on {videos} held-out videos: trained {trained:.1%}, untrained {untrained:.1%}, chance {chance:.1%}."
    )
    if gain > 2 * math.sqrt(variance):
        words = f"Training helped clearly: {100 * gain:+.1f} points."
    else:
        words = (
            f"Training did not help clearly ({100 * gain:+.1f} points; two standard errors are "
            f"{200 * math.sqrt(variance):.1f}). Few videos or few steps are the usual reason."
        )
    return f"{facts}\n{words}\nLook at {RunFolder(out / RUN).report}"


def _fitted(train: ShardSet, batch_size: int) -> dict[str, int]:
    """Return the batch size for a set that is smaller than the config's batch: the largest power of two that fits."""
    if len(train) >= batch_size:
        return {}
    if len(train) < SMALLEST_BATCH:
        raise ConfigError(
            f"{train.root}: {len(train)} training videos; the demo needs at least {SMALLEST_BATCH}",
            hint="put more videos into the class folders",
        )
    return {"train.batch_size": 2 ** int(math.log2(len(train)))}
