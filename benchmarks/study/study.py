"""Answer the paper's questions on generated videos: make the shards, run everything, write tables and plots.

    python -m benchmarks.study.study OUT                      run what is missing in OUT, also after a stop
    python -m benchmarks.study.study OUT --only rho --seeds 5
    python -m benchmarks.study.study OUT --tables-only        only tables and plots, of the finished runs

Runs are separate processes, `--jobs` at a time (default: one per core; with a GPU, one per two cores).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.study.one import RESULT, run_digest
from benchmarks.study.questions import CURATED, SETS, SLOW, TEST, TUNING, VIT, Question, Run, all_runs, questions
from benchmarks.study.tables import write_report

HERE = Path(__file__).parent
CONFIGS = {SLOW: HERE / "study.toml", VIT: HERE / "vit.toml"}

SHARDS = ["--short-side", "64", "--fps", "12", "--samples-per-shard", "64"]
# Settings for a narrow network and few steps, chosen on the tuning videos (README.md); the rest is as in the paper.
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "moco": {
        "method.hidden": 256,
        "method.projector_norm": True,
        "method.queue": 512,
        "method.fill_first": False,
        "method.ema_base": 0.95,
        "method.ema_anneal": False,
        "method.positives": "joint",
        "method.loss": "mean",
        "optim.base_lr": 0.2,
    },
    "byol": {
        "method.hidden": 1024,
        "method.ema_base": 0.95,
        "method.ema_anneal": False,
        "method.loss": "mean",
        "optim.base_lr": 0.2,
    },
    "simclr": {"method.hidden": 256, "method.pairs": "all", "optim.base_lr": 0.1},
    "swav": {
        "method.hidden": 256,
        "method.prototypes": 512,
        "method.sharpness": 0.02,
        "method.codes": "all",
        "optim.base_lr": 0.05,
    },
}
# The same for the tiny vit, whose rate is in vit.toml.
VIT_METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "moco_v3": {
        "method.hidden": 256,
        "method.output_norm": False,
        "method.temperature": 0.1,
        "method.ema_base": 0.99,
        "method.ema_anneal": False,
        "method.loss": "mean",
        "backbone.freeze_patches": True,
    },
    "lejepa": {"method.hidden": 256, "method.directions": 256},
}
OPTIONS = {SLOW: METHOD_OPTIONS, VIT: VIT_METHOD_OPTIONS}


def make_shards(videos: Path, shards: Path, names: list[str]) -> None:
    """Make the missing sets with `rhofast shard`."""
    for name in names:
        if (shards / name / "dataset.json").is_file():
            continue
        options = [text for key, value in SETS[name].items() for text in ("--option", f"{key}={value}")]
        where = [str(videos / name), str(shards / name)]
        command = ["shard", *where, "--recipe", "motions", *options, "--split", name, *SHARDS]
        subprocess.run([sys.executable, "-m", "rhofast", *command], check=True)


def settings_of(run: Run, shards: Path) -> list[str]:
    """Return the settings of a run on top of the config, as for `--set`."""
    values: dict[str, Any] = {
        "seed": run.seed,
        "data.train": str(shards / run.data),
        "method.name": run.method,
        **OPTIONS[run.network][run.method],
        **dict(run.changes),
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def command_of(run: Run, work: Path, shards: Path, test: str) -> list[str]:
    """Return the command line of a run."""
    sets = [text for setting in settings_of(run, shards) for text in ("--set", setting)]
    sets += ["--untrained"] if run.evaluates_untrained else []
    held = ["--bank", str(shards / CURATED), "--test", str(shards / test)]
    return [sys.executable, "-m", "benchmarks.study.one", str(CONFIGS[run.network]), str(work / run.name), *held, *sets]


def do(run: Run, work: Path, shards: Path, test: str, threads: int) -> str | None:
    """Do one run unless it is finished; return an error message or None."""
    if (done := work / run.name / RESULT).is_file():
        same = json.loads(done.read_text()).get("digest") == run_digest(CONFIGS[run.network], settings_of(run, shards))
        return (
            None if same else f"{done.parent}: made with another config or other settings; move it away to run it again"
        )
    log = work / f"{run.name}.log"
    with log.open("a") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = command_of(run, work, shards, test)
        ended = subprocess.run(command, stdout=sink, stderr=sink, env=environment, check=False)
    return None if ended.returncode == 0 else f"{run.name}: exit code {ended.returncode}, see {log}"


def do_all(runs: list[Run], work: Path, shards: Path, test: str, jobs: int) -> list[str]:
    """Do all runs, `jobs` at a time, and return the error messages."""
    work.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failed = []
    with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("runs", total=len(runs))
        for done in as_completed([pool.submit(do, run, work, shards, test, threads) for run in runs]):
            if (message := done.result()) is not None:
                failed.append(message)
                progress.console.print(message, style="red", highlight=False, soft_wrap=True)
            progress.advance(task)
    return failed


def results_of(runs: list[Run], work: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the finished runs by name."""
    paths = {run.name: work / run.name / RESULT for run in runs}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def main() -> None:
    """Make the shards, do the runs, and write the report."""
    known = questions()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for shards, runs and results")
    parser.add_argument("--only", nargs="+", choices=[question.key for question in known], help="only these questions")
    parser.add_argument("--seeds", type=int, help="seeds per question (default: 1 or 3, see README.md)")
    parser.add_argument(
        "--jobs", type=int, help="runs at the same time (default: one per core; with a GPU, one per two cores)"
    )
    parser.add_argument(
        "--tuning", action="store_true", help="evaluate on the tuning videos instead of the test videos"
    )
    parser.add_argument("--tables-only", action="store_true", help="only write tables and plots of the finished runs")
    arguments = parser.parse_args()

    chosen: list[Question] = [
        question for question in known if arguments.only is None or question.key in arguments.only
    ]
    runs, work, shards = (
        all_runs(chosen, arguments.seeds),
        arguments.out / ("tuning" if arguments.tuning else "runs"),
        arguments.out / "shards",
    )
    cores = os.cpu_count() or 1
    jobs = arguments.jobs or (max(1, cores // 2) if torch.cuda.is_available() else cores)
    failed = []
    test = TUNING if arguments.tuning else TEST
    if not arguments.tables_only:
        make_shards(arguments.out / "videos", shards, sorted({CURATED, test, *(run.data for run in runs)}))
        failed = do_all(runs, work, shards, test, jobs)
    for path in write_report(chosen, results_of(runs, work), arguments.out, arguments.seeds):
        print(path)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed; run the same command to try them again")


if __name__ == "__main__":
    main()
