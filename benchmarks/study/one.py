"""Run one pretraining of the study, then kNN and the linear probe on held-out shards; the result is written as JSON.

python -m benchmarks.study.one CONFIG FOLDER/NAME --bank SHARDS --test SHARDS [--untrained] [--set KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from rhofast.config.load import load_config
from rhofast.errors import EXIT_RESUMABLE
from rhofast.evaluation.knn import evaluate_neighbors
from rhofast.evaluation.linear_probe import evaluate_linear
from rhofast.evaluation.scores import TOP1, Evaluation
from rhofast.evaluation.task import open_task
from rhofast.storage.files import write_atomically
from rhofast.training.trainer import train

RESULT = "study.json"


def numbers(evaluation: Evaluation) -> dict[str, Any]:
    """Return the numbers of an evaluation that the tables need."""
    untrained = evaluation.untrained
    return {
        "top1": evaluation.trained.measures[TOP1],
        "untrained_top1": None if untrained is None else untrained.measures[TOP1],
        "samples": evaluation.trained.samples,
        "chance": evaluation.trained.chance[TOP1],
    }


def run_digest(config: Path, settings: list[str]) -> str:
    """Return a digest of a run's config and settings, without the path of its shards."""
    relevant = [setting for setting in settings if not setting.startswith("data.train=")]
    return hashlib.sha256(json.dumps([config.read_text(encoding="utf-8"), *relevant]).encode()).hexdigest()[:16]


def main() -> None:
    """Run or continue one pretraining, and evaluate it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="path of the config")
    parser.add_argument("folder", type=Path, help="folder of the run, which is created")
    parser.add_argument("--bank", type=Path, required=True, help="labeled training shards")
    parser.add_argument("--test", type=Path, required=True, help="held-out shards")
    parser.add_argument("--untrained", action="store_true", help="evaluate the untrained network too")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="change a setting"
    )
    arguments = parser.parse_args()

    where = [f"name={arguments.folder.name}", f"out={arguments.folder.parent}"]
    began = time.process_time()
    outcome = train(load_config(arguments.config, [*arguments.settings, *where]), resume=True)
    if not outcome.finished:  # half of a run is no result
        raise SystemExit(EXIT_RESUMABLE)
    trained = time.process_time()
    task = open_task(
        arguments.folder, arguments.test, train=arguments.bank, overrides=[f"eval.keep={arguments.folder / 'kept'}"]
    )  # kNN and probe share the training videos' features
    result = {
        "knn": numbers(evaluate_neighbors(task, untrained=arguments.untrained)),
        "linear": numbers(evaluate_linear(task, untrained=arguments.untrained)),
        "train_cpu_seconds": trained - began,
        "evaluate_cpu_seconds": time.process_time() - trained,
        "digest": run_digest(arguments.config, arguments.settings),
    }
    write_atomically(arguments.folder / RESULT, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
