"""Compare training runs that are killed again and again with a run that is not killed.

    python -m benchmarks.training.kill_and_resume [--points 50] [--steps 60] [--seed 0] [--shards SET] [--out PATH]

In a short run of two processes on the CPU, one process gets SIGKILL or SIGTERM at a random moment, in one of five cases
while it starts. Then both processes are started again with --resume, until the run is done. More runs follow until all
--points signals are sent. Checked is that

* the last checkpoint has the same bytes as that of the run that was not killed,
* the metrics have each step once, except steps after a checkpoint that were lost and repeated, with the same loss,
* a process ends in time after the other one was killed.

Processes are forked from one that has imported everything, so that a start takes no time. The results are written to
PATH.json and PATH.md. The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import facts_line, facts_of_the_machine
from rhofast.checkpoint.run_folder import RunFolder
from rhofast.errors import EXIT_RESUMABLE

PACKAGES = ("torch", "accelerate", "safetensors")
RANKS = 2
TIMEOUT_S = 60.0  # how long a process may outlive the other before it is killed, as a launcher would


@dataclass(kw_only=True)
class Point:
    """One signal.

    Attributes:
        signal: Name of the signal.
        rank: Rank of the process that got it.
        after_s: Seconds since the start of both processes.
        since: Last step in the metrics when they started.
        at: Last step in the metrics when the signal was sent.
        codes: Exit codes of both processes.
        ended_s: Seconds until both had ended.
        forced: Whether a process did not end by itself.
    """

    signal: str
    rank: int
    after_s: float
    since: int
    at: int
    codes: list[int]
    ended_s: float
    forced: bool


def serve() -> None:
    """Fork ranks on request, as a server on standard input and output.

    A request `{"place": environment, "config": ..., "log": ...}` is answered with `{"pid": ...}`; a request
    `{"wait": pid, "block": ...}` with `{"code": exit code or None}`.
    """
    import torch
    import torch._dynamo
    import torch.utils.tensorboard

    import rhofast.data.decode.pipeline
    import rhofast.training.trainer  # noqa: F401

    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            done, status = os.waitpid(request["wait"], 0 if request["block"] else os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            print(json.dumps({"code": code}), flush=True)
            continue
        if (pid := os.fork()) == 0:
            become_rank(request)
        print(json.dumps({"pid": pid}), flush=True)


def become_rank(request: dict[str, Any]) -> None:
    """Train in this forked process, and exit with the code of `rhofast train`."""
    from rhofast.config.load import parse_config
    from rhofast.errors import RhofastError
    from rhofast.training.trainer import train

    os.environ.update(request["place"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = (
            0
            if train(parse_config(request["config"], where="kill_and_resume"), resume=True).finished
            else EXIT_RESUMABLE
        )
    except RhofastError as error:
        print(error, file=sys.stderr, flush=True)
        code = 2
    except BaseException as error:  # noqa: BLE001 - a forked process must not return
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    sys.stderr.flush()
    os._exit(code)


class Pair:
    """The two ranks of a run, forked by the server."""

    def __init__(self, server: subprocess.Popen[str], config: dict[str, Any], log: Path) -> None:
        self.server = server
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.pids = []
        for rank in range(RANKS):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_PORT": port}
            place |= {"LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
            place |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            self.pids.append(self._ask({"place": place, "config": config, "log": str(log)})["pid"])
        self.codes: list[int | None] = [None] * RANKS

    def send_signal(self, rank: int, number: int) -> None:
        """Send a signal to a rank that has not ended."""
        if self.codes[rank] is None:
            os.kill(self.pids[rank], number)

    def wait(self, seconds: float) -> bool:
        """Wait until both ranks have ended, at most `seconds`; return whether they have."""
        end = time.monotonic() + seconds
        while True:
            for rank, pid in enumerate(self.pids):
                if self.codes[rank] is None:
                    self.codes[rank] = self._ask({"wait": pid, "block": False})["code"]
            if None not in self.codes:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.01)

    def wait_for_a_moment(self, rng: random.Random, run: Path) -> bool:
        """Wait until a random moment of the start or of the next steps; return whether both ranks had ended before."""
        if rng.random() < 0.2:
            return self.wait(rng.uniform(0, 3))
        aim = last_step(run) + rng.randrange(1, 12)
        while not self.wait(0.02):
            if last_step(run) >= aim:
                return self.wait(rng.uniform(0, 0.1))
        return True

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return dict(json.loads(self.server.stdout.readline()))


def run_of(out: Path, shards: Path, steps: int) -> dict[str, Any]:
    """Return the config of a run of a few seconds with a checkpoint every three steps."""
    return {
        "name": "run",
        "out": str(out),
        "data": {"train": str(shards), "threads": 1, "decode_threads": 1},
        "clips": {"num_frames": 2, "frame_stride": 2, "fps": 12},
        "augment": {"size": 16},
        "backbone": {"name": "slow_r18", "width": 4},
        "method": {"name": "moco", "hidden": 16, "out": 8, "queue": 32},
        "optim": {"base_lr": 0.1, "warmup_epochs": 0.5},
        "train": {
            "batch_size": 4,
            "steps": steps,
            "log_steps": 1,
            "checkpoint_steps": 3,
            "keep_checkpoints": 2,
            "timeout_s": 20.0,
            "channels_last": False,
        },
    }


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a run's metrics."""
    lines = []
    if (path := RunFolder(run).metrics).is_file():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut short
                lines.append(json.loads(line))
    return lines


def last_step(run: Path) -> int:
    """Return the last step in a run's metrics, or 0."""
    return max((line["step"] for line in lines_of(run) if line["kind"] == "step"), default=0)


def weights(run: Path) -> dict[str, bytes]:
    """Return the tensor files of the last checkpoint."""
    folder = RunFolder(run)
    named = folder.checkpoints / folder.latest.read_text()
    return {path.name: path.read_bytes() for path in named.glob("*.safetensors")}


def lineage(run: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of the steps that led to the end, without those that were lost and repeated."""
    kept: list[tuple[int, float]] = []
    for line in lines_of(run):
        if line["kind"] == "start":
            kept = [entry for entry in kept if entry[0] <= line["step"]]
        elif line["kind"] == "step":
            kept.append((line["step"], line["loss"]))
    return kept


def problems(run: Path, alone: Path, steps: int) -> list[str]:
    """Return how a killed run differs from the one that was not killed."""
    found = []
    if [step for step, _ in lineage(run)] != list(range(1, steps + 1)):
        found.append("steps are missing or occur twice")
    losses = dict(lineage(alone))
    if others := [s for s in lines_of(run) if s["kind"] == "step" and s["loss"] != losses[s["step"]]]:
        found.append(f"{len(others)} steps have a different loss, the first is {others[0]['step']}")
    theirs, ours = weights(alone), weights(run)
    found += [f"{name} has different bytes" for name in theirs if theirs[name] != ours.get(name)]
    return found


def run_benchmark(
    server: subprocess.Popen[str], folder: Path, shards: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Run everything and return the report."""
    rng = random.Random(arguments.seed)
    log = folder / "log.txt"
    alone = folder / "alone"
    began = time.monotonic()
    pair = Pair(server, run_of(alone, shards, arguments.steps), log)
    if not pair.wait(300) or pair.codes != [0, 0]:
        raise SystemExit(f"the run that was not killed ended with {pair.codes}: {log.read_text()[-2000:]}")
    whole_s = time.monotonic() - began
    points: list[Point] = []
    runs: list[dict[str, Any]] = []
    while len(points) < arguments.points:
        out = folder / f"killed-{len(runs)}"
        hits = 0
        while True:  # until this run is done
            pair = Pair(server, run_of(out, shards, arguments.steps), log)
            began, since = time.monotonic(), last_step(out / "run")
            hit = len(points) < arguments.points
            if not (pair.wait_for_a_moment(rng, out / "run") if hit else pair.wait(300)) and hit:
                kind, rank = rng.choice([signal.SIGKILL, signal.SIGTERM]), rng.randrange(RANKS)
                after, at = time.monotonic() - began, last_step(out / "run")
                pair.send_signal(rank, kind)
                began = time.monotonic()
                forced = not pair.wait(TIMEOUT_S)
                for other in range(RANKS):
                    pair.send_signal(other, signal.SIGKILL)
                pair.wait(10)
                ended = time.monotonic() - began
                codes = [code if code is not None else 999 for code in pair.codes]
                points.append(
                    Point(
                        signal=kind.name,
                        rank=rank,
                        after_s=after,
                        since=since,
                        at=at,
                        codes=codes,
                        ended_s=ended,
                        forced=forced,
                    )
                )
                print(f"{len(points)}: {points[-1]}", flush=True)
                hits += 1
            if pair.codes == [0, 0]:
                break
            if not hit:
                raise SystemExit(f"a run that was not killed ended with {pair.codes}: {log.read_text()[-2000:]}")
        runs.append({"hits": hits, "problems": problems(out / "run", alone / "run", arguments.steps)})
        print(f"run {len(runs)}: {runs[-1]}", flush=True)
    return {
        "facts": facts_of_the_machine(PACKAGES),
        "steps": arguments.steps,
        "seed": arguments.seed,
        "seconds_alone": whole_s,
        "points": [asdict(point) for point in points],
        "runs": runs,
        "messages": sorted({line.split(": ")[0] for line in log.read_text().splitlines() if "another process" in line}),
    }


def markdown(report: dict[str, Any], load: float) -> str:
    """Return the report as Markdown."""
    lines = [
        "# Killed and resumed training",
        "",
        f"{len(report['points'])} random signals to {len(report['runs'])} runs of {report['steps']} steps, two "
        f"processes, MoCo, float32, a checkpoint every 3 steps; undisturbed, a run takes "
        f"{report['seconds_alone']:.1f} s.",
        "",
        "| signal to one process | count | before a new step | both ended after, median | longest | saved (code 75) |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in ("SIGKILL", "SIGTERM"):
        chosen = [point for point in report["points"] if point["signal"] == name]
        if chosen:
            ended = [point["ended_s"] for point in chosen]
            early = sum(point["at"] <= point["since"] for point in chosen)
            saved = sum(point["codes"] == [EXIT_RESUMABLE] * RANKS for point in chosen)
            times = f"{statistics.median(ended):.2f} s | {max(ended):.2f} s"
            lines.append(f"| {name} | {len(chosen)} | {early} | {times} | {saved} |")
    wrong = [problem for run in report["runs"] for problem in run["problems"]]
    forced = sum(point["forced"] for point in report["points"])
    same = "the same bits in all of them, and no step occurs twice or is missing" if not wrong else "; ".join(wrong)
    lines += ["", f"Weights, optimizer and losses compared with the undisturbed run: {same}."]
    lines += [
        f"Processes that did not end by themselves within {TIMEOUT_S:.0f} s: {forced}. A process that waits for "
        "another to start gives up after `train.timeout_s`, here 20 s; a launcher would end it at once.",
        "",
    ]
    return "\n".join([*lines, facts_line(report["facts"], load), ""])


def make_shards(folder: Path) -> Path:
    """Make a small set of generated videos."""
    command = ["shard", str(folder / "videos"), str(folder / "shards"), "--recipe", "motions", "--short-side", "48"]
    options = ["--option", "videos=24", "--option", "frames=24"]
    subprocess.run([sys.executable, "-m", "rhofast", *command, *options], check=True, stdout=subprocess.DEVNULL)
    return folder / "shards"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=50, help="signals to send (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="steps per run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: %(default)s)")
    parser.add_argument("--shards", type=Path, help="a shard set (default: generated videos)")
    parser.add_argument("--out", type=Path, help="write PATH.json and PATH.md")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = arguments.shards or make_shards(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.training.kill_and_resume", "--serve"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as server:
            assert server.stdout is not None and server.stdin is not None
            server.stdout.readline()
            try:
                report = run_benchmark(server, folder, shards, arguments)
            finally:
                server.stdin.close()
    text = markdown(report, load)
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text)
        arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=1))
    if any(run["problems"] for run in report["runs"]) or any(point["forced"] for point in report["points"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
