"""One run of the study: pretraining, then kNN and the linear probe on held-out shards; the result as JSON.

python one.py PAGE FOLDER/NAME --bank SHARDS --test SHARDS [--untrained] [--set KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from rhofast.config.load import load_config
from rhofast.evaluation.knn import evaluate_neighbors
from rhofast.evaluation.linear_probe import evaluate_linear
from rhofast.evaluation.scores import Evaluation
from rhofast.evaluation.task import open_task
from rhofast.storage.files import write_atomically
from rhofast.training.trainer import train

RESULT = "study.json"


def numbers(evaluation: Evaluation) -> dict[str, Any]:
    """What the tables need of an evaluation."""
    untrained = evaluation.untrained
    return {
        "top1": evaluation.trained.top1,
        "untrained_top1": None if untrained is None else untrained.top1,
        "samples": evaluation.trained.samples,
        "chance": evaluation.chance,
    }


def asked(page: Path, settings: list[str]) -> str:
    """Names what a run was asked for: of another page, or with other settings, it is another one. Its set may move."""
    said = [setting for setting in settings if not setting.startswith("data.train=")]
    return hashlib.sha256(json.dumps([page.read_text(encoding="utf-8"), *said]).encode()).hexdigest()[:16]


def main() -> None:
    """Run or continue it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path, help="the run's folder, which is made")
    parser.add_argument("--bank", type=Path, required=True, help="labeled training shards")
    parser.add_argument("--test", type=Path, required=True, help="held-out shards")
    parser.add_argument("--untrained", action="store_true", help="evaluate the network before training, too")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()

    where = [f"name={given.folder.name}", f"out={given.folder.parent}"]
    began = time.process_time()
    train(load_config(given.page, [*given.settings, *where]), resume=True)
    trained = time.process_time()
    task = open_task(
        given.folder, given.test, train=given.bank, overrides=[f"eval.keep={given.folder / 'kept'}"]
    )  # kNN and probe share the training videos' features
    result = {
        "knn": numbers(evaluate_neighbors(task, untrained=given.untrained)),
        "linear": numbers(evaluate_linear(task, untrained=given.untrained)),
        "train_cpu_seconds": trained - began,
        "evaluate_cpu_seconds": time.process_time() - trained,
        "asked": asked(given.page, given.settings),
    }
    write_atomically(given.folder / RESULT, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
