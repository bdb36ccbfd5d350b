"""The paper's questions on generated videos: make the shards, do all runs, write tables and plots.

    python -m benchmarks.study.study OUT                      what is missing in OUT: stopped, it goes on where it was
    python -m benchmarks.study.study OUT --only rho --seeds 5
    python -m benchmarks.study.study OUT --tables-only        of the runs that are there

Runs are programs of their own, `--jobs` at a time (default: one a core; with a GPU, one for two cores).
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

from benchmarks.study.one import RESULT, asked
from benchmarks.study.questions import CURATED, SETS, TEST, TUNING, Question, Run, all_runs, questions
from benchmarks.study.tables import write_report

HERE = Path(__file__).parent
PAGE = HERE / "study.toml"

SHARDS = ["--short-side", "64", "--fps", "12", "--samples-per-shard", "64"]
# What a narrow network and few steps ask for, chosen on the tuning videos (README.md); the rest is the paper's.
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


def make_shards(videos: Path, shards: Path, names: list[str]) -> None:
    """With the tool itself; sets that are whole stay."""
    for name in names:
        if (shards / name / "dataset.json").is_file():
            continue
        options = [text for key, value in SETS[name].items() for text in ("--option", f"{key}={value}")]
        where = [str(videos / name), str(shards / name)]
        command = ["shard", *where, "--recipe", "motions", *options, "--split", name, *SHARDS]
        subprocess.run([sys.executable, "-m", "rhofast", *command], check=True)


def settings_of(run: Run, shards: Path) -> list[str]:
    """What a run has beside the page, as `--set` takes it."""
    values: dict[str, Any] = {
        "seed": run.seed,
        "data.train": str(shards / run.data),
        "method.name": run.method,
        **METHOD_OPTIONS[run.method],
        **dict(run.changes),
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def command_of(run: Run, work: Path, shards: Path, test: str) -> list[str]:
    """The command line of a run."""
    sets = [text for setting in settings_of(run, shards) for text in ("--set", setting)]
    sets += ["--untrained"] if run == Run(seed=run.seed) else []
    held = ["--bank", str(shards / CURATED), "--test", str(shards / test)]
    return [sys.executable, "-m", "benchmarks.study.one", str(PAGE), str(work / run.name), *held, *sets]


def do(run: Run, work: Path, shards: Path, test: str, threads: int) -> str | None:
    """Do one run unless it is there; what went wrong, or None."""
    if (done := work / run.name / RESULT).is_file():
        same = json.loads(done.read_text()).get("asked") == asked(PAGE, settings_of(run, shards))
        return None if same else f"{done.parent}: of another page or other settings; move it away to have it made anew"
    log = work / f"{run.name}.log"
    with log.open("a") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = command_of(run, work, shards, test)
        ended = subprocess.run(command, stdout=sink, stderr=sink, env=environment, check=False)
    return None if ended.returncode == 0 else f"{run.name}: exit code {ended.returncode}, see {log}"


def do_all(runs: list[Run], work: Path, shards: Path, test: str, jobs: int) -> list[str]:
    """All runs, `jobs` at a time; what went wrong."""
    work.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failed = []
    with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("runs", total=len(runs))
        for done in as_completed([pool.submit(do, run, work, shards, test, threads) for run in runs]):
            if (words := done.result()) is not None:
                failed.append(words)
                progress.console.print(words, style="red", highlight=False, soft_wrap=True)
            progress.advance(task)
    return failed


def results_of(runs: list[Run], work: Path) -> dict[str, dict[str, Any]]:
    """Of the runs that are done, by name."""
    paths = {run.name: work / run.name / RESULT for run in runs}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def main() -> None:
    """Make, do and tell."""
    known = questions()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for shards, runs and results")
    parser.add_argument("--only", nargs="+", choices=[question.key for question in known], help="some questions")
    parser.add_argument("--seeds", type=int, help="of every question (default: 3 for rho, 1 for the others)")
    parser.add_argument("--jobs", type=int, help="runs at the same time")
    parser.add_argument("--tuning", action="store_true", help="evaluate on the tuning videos, not on the test videos")
    parser.add_argument("--tables-only", action="store_true", help="write tables and plots of the runs that are there")
    given = parser.parse_args()

    asked: list[Question] = [question for question in known if given.only is None or question.key in given.only]
    runs, work, shards = (
        all_runs(asked, given.seeds),
        given.out / ("tuning" if given.tuning else "runs"),
        given.out / "shards",
    )
    cores = os.cpu_count() or 1
    jobs = given.jobs or (max(1, cores // 2) if torch.cuda.is_available() else cores)
    failed = []
    test = TUNING if given.tuning else TEST
    if not given.tables_only:
        make_shards(given.out / "videos", shards, sorted({CURATED, test, *(run.data for run in runs)}))
        failed = do_all(runs, work, shards, test, jobs)
    for path in write_report(asked, results_of(runs, work), given.out, given.seeds):
        print(path)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
