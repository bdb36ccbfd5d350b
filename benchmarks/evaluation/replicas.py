"""Do detection and training with several labels per video learn what the replicas of AVA and Charades show?

    python -m benchmarks.evaluation.replicas [--seeds 3] [--out FOLDER]

Both sets are generated in the layouts in which the real ones are published, and go the whole way: recipe, shards,
boxes, training from random weights, test. What is generated is the same for all seeds; the network, its dropout and the
order of the videos differ. Chance is told by the result of each evaluation: the mAP of the same boxes with random
scores, and the mean share of test videos that have a class. It takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.evaluation import ava_replica, charades_replica
from benchmarks.machine import facts_line, facts_of_the_machine, write_table

COLUMNS = ("replica", "training", "test", "mAP", "of seeds", "chance")
MOVIES = {"train": range(16), "val": range(16, 32)}
VIDEOS = {"train": 40, "test": 32}
PACKAGES = ("rhofast", "torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av", "numpy")


def rhofast(*arguments: object) -> None:
    """Run the program."""
    subprocess.run([sys.executable, "-m", "rhofast", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def make_ava(folder: Path) -> list[object]:
    """Make shards and boxes of the replica of AVA; return the arguments of its evaluation."""
    for split, movies in MOVIES.items():
        files, shards = ava_replica.write_replica(folder / "AVA", movies, split=split), folder / split
        given = {"split": split, "start": 0, "end": ava_replica.SECONDS}
        options = [text for name, value in given.items() for text in ("--option", f"{name}={value}")]
        rhofast(
            "shard", folder / "AVA", shards, "--recipe", "ava", *options, "--split", split, "--fps", ava_replica.FPS
        )
        rhofast("boxes", shards, *(part for name, path in files.items() for part in (f"--{name}", path)))
    (folder / "page.toml").write_text(ava_replica.PAGE)
    return ["detection", "random", "--train", folder / "train", "--test", folder / "val"]


def make_charades(folder: Path) -> list[object]:
    """Make shards of the replica of Charades; return the arguments of its evaluation."""
    charades_replica.write_replica(folder / "Charades", VIDEOS)
    for split in VIDEOS:
        options = ["--recipe", "charades", "--option", f"split={split}", "--split", split, "--short-side", 64]
        rhofast("shard", folder / "Charades", folder / split, *options, "--samples-per-shard", 32)
    (folder / "page.toml").write_text(charades_replica.PAGE)
    network = ["--set", "backbone.name=slow_r18", "--set", "backbone.width=8"]
    return ["multilabel", "random", "--train", folder / "train", "--test", folder / "test", *network]


def evaluate(arguments: list[object], folder: Path, seeds: int) -> list[dict[str, Any]]:
    """Train and test with each seed; return the results."""
    found = []
    for seed in range(seeds):
        out = folder / f"seed-{seed}"
        settings = ["--config", folder / "page.toml", "--set", f"out={out}", "--set", f"seed={seed}"]
        rhofast("eval", *arguments, *settings)
        (path,) = out.glob("*/results/*.json")
        found.append(json.loads(path.read_text()))
    return found


def row_of(name: str, results: list[dict[str, Any]]) -> list[str]:
    """Return the cells of a replica: means, and the range over the seeds."""
    first, values = results[0], [one["trained"]["measures"]["mAP"] for one in results]
    tested = "key frames" if name == "AVA" else "videos"
    return [
        name,
        f"{first['shards']['train']['samples']} videos, {first['settings']['steps']} steps",
        f"{first['trained']['samples']} {tested}, {len(first['trained']['per_class'])} classes",
        f"{statistics.fmean(values):.1%}",
        f"{min(values):.1%} to {max(values):.1%}",
        f"{statistics.fmean(one['trained']['chance']['mAP'] for one in results):.1%}",
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="trainings per replica (default: 3)")
    parser.add_argument("--out", type=Path, help="folder for replicas.json and replicas.md")
    options = parser.parse_args()
    facts, load = facts_of_the_machine(PACKAGES), os.getloadavg()[0]
    rows, report = [], {"machine": facts, "load": load, "results": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in (("AVA", make_ava), ("Charades", make_charades)):
            folder = Path(scratch) / name
            folder.mkdir()
            results = evaluate(make(folder), folder, options.seeds)
            rows.append(row_of(name, results))
            kept = ("trained", "settings")
            report["results"][name] = [{key: one[key] for key in kept} for one in results]
    foot = f"Slow-R18 of width 4 (AVA) and 8 (Charades) from random weights; mean and range over {options.seeds} seeds."
    notes = [foot, facts_line(facts, load)]
    write_table("replicas", "Replicas of AVA and Charades", COLUMNS, rows, notes=notes, report=report, out=options.out)


if __name__ == "__main__":
    main()
