"""Launching: accelerate's own files, two machines in two network namespaces, and what every way of training does on two
processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState

from rhofast.checkpoint.checkpoint import latest_checkpoint, load_checkpoint
from rhofast.config.load import load_config
from rhofast.data.format.dataset import ShardSet
from rhofast.training.trainer import train
from tests.helpers.shards import ROOT, TINY_PAGE, write_shards

FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
PATIENCE_S = 150.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def page(tmp_path: Path, shards: ShardSet) -> Path:
    path = tmp_path / "page.toml"
    path.write_text(TINY_PAGE)
    return path


def settings(shards: ShardSet, out: Path, name: str, *more: str) -> list[str]:
    given = (f"data.train={shards.root}", f"out={out}", f"name={name}", "data.threads=1", "data.decode_threads=1")
    return [*given, "train.steps=4", "train.log_steps=1", *more]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_accepts_every_file(file: Path) -> None:
    known = load_config_from_file(str(file))
    several = known.num_processes != 1
    given = ["--num_processes", "2"] if known.num_processes == -1 else []
    arguments = launch_command_parser().parse_args(["--config_file", str(file), *given, "-m", "rhofast"])
    arguments.num_cpu_threads_per_process = 1
    chosen, _, _ = _validate_launch_command(arguments)
    assert chosen.multi_gpu == several  # torch's launcher starts them; otherwise one process is started, silently
    assert chosen.mixed_precision == "no" and chosen.num_machines == known.num_machines
    assert not several or chosen.num_processes >= 2
    assert chosen.main_process_port == known.main_process_port


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable; their addresses are 10.213.7.1 and 10.213.7.2."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    names = [f"rhofast-{os.getpid()}-{number}" for number in range(2)]
    cables = [f"rf{os.getpid() % 10**6}n{number}" for number in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for number, (name, cable) in enumerate(zip(names, cables, strict=True)):
                ip("link", "set", cable, "netns", name)
                ip("-n", name, "link", "set", cable, "name", "cable0")
                ip("-n", name, "addr", "add", f"10.213.7.{number + 1}/24", "dev", "cable0")
                ip("-n", name, "link", "set", "cable0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10, check=False)
        subprocess.run(["ip", "link", "del", cables[0]], capture_output=True, timeout=10, check=False)


@contextlib.contextmanager
def started(commands: list[list[str]], logs: Path, **environment: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes in groups of their own, of which nothing is left in the end."""
    running = []
    try:
        for number, command in enumerate(commands):
            with (logs / f"log{number}.txt").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **ENVIRONMENT, **environment},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield running
    finally:
        for process in running:
            process.terminate()  # launchers end their processes, which are in groups of their own
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def launcher(file: str, *arguments: str) -> list[str]:
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*accelerate, "--config_file", str(ROOT / "configs" / "accelerate" / file), *arguments, "-m", "rhofast"]


def given(page: Path, sets: list[str]) -> list[str]:
    return ["train", str(page), *[word for one in sets for word in ("--set", one)]]


def test_two_machines_train_as_one_process_does(shards: ShardSet, tmp_path: Path, two_machines: list[str]) -> None:
    """The loss curve of the same global batches, over a wire."""
    torch.set_num_threads(1)
    sets = ["method.batch_norm=sync"]
    where = page(tmp_path, shards)
    commands = []
    for number, name in enumerate(two_machines):
        place = ["--num_processes", "2", "--machine_rank", str(number), "--main_process_ip", "10.213.7.1"]
        run = given(where, settings(shards, tmp_path, "two", *sets))
        memory = ["bash", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "machine"]  # of its own, too
        commands.append(["ip", "netns", "exec", name, *memory, *launcher("two_machines.yaml", *place), *run])
    with started(commands, tmp_path, GLOO_SOCKET_IFNAME="cable0") as machines:
        train(load_config(where, settings(shards, tmp_path, "one", *sets)))
        codes = [machine.wait(PATIENCE_S) for machine in machines]
    said = "\n".join((tmp_path / f"log{number}.txt").read_text() for number in range(2))
    assert codes == [0, 0], said
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4 and two == pytest.approx(one, abs=1e-3)  # rounding, after four steps of a jagged net
    begun = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[0])
    assert begun["world_size"] == 2


# On some processors torch's bf16 convolutions have wrong weight gradients where a kernel is longer than the map:
# rhofast/models/convolution_check.py. Here every map has at least as many frames and pixels as its kernel.
LARGER = ["augment.size=128", "clips.num_frames=4", "train.batch_size=8"]
WAYS: dict[str, list[str]] = {
    "fp32, batch norm over all": ["method.batch_norm=sync"],
    "fp32, batch norm over a machine": ["method.batch_norm=node"],
    "fp32, batch norm of each": ["method.batch_norm=local"],
    "bf16": ["method.batch_norm=sync", "train.precision=bf16", *LARGER],
    "fp16": ["method.batch_norm=sync", "train.precision=fp16", *LARGER],
    "micro-batches": [
        "method.batch_norm=local",
        "train.accumulate=2",
        "train.micro_batch_norm=true",
        "train.batch_size=8",
    ],
}


def rank_of_two(rank: int, page: str, runs: list[tuple[int, list[str]]]) -> None:
    torch.set_num_threads(1)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"})
    for port, sets in runs:
        os.environ["MASTER_PORT"] = str(port)
        train(load_config(Path(page), sets))
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(scope="module")
def runs_of_two(tmp_path_factory: pytest.TempPathFactory, members: list[bytes]) -> Path:
    """Each of WAYS as a run of two processes, one after another in the same two."""
    folder = tmp_path_factory.mktemp("two")
    shards = write_shards(folder / "shards", members)
    runs = [(free_port(), settings(shards, folder, slug(name), *sets)) for name, sets in WAYS.items()]
    mp.start_processes(  # type: ignore[no-untyped-call]
        rank_of_two, args=(str(page(folder, shards)), runs), nprocs=2, start_method="forkserver"
    )
    return folder


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_train_in_every_way(name: str, runs_of_two: Path) -> None:
    found = losses(runs_of_two / slug(name))
    assert len(found) == 4 and all(-4 <= loss <= 4 for loss in found)


def test_batch_norm_over_a_machine_is_over_all_where_there_is_one(runs_of_two: Path) -> None:
    over_all, over_machine, own = (losses(runs_of_two / slug(name)) for name in list(WAYS)[:3])
    assert over_machine == over_all and own != over_all


def test_slurm_s_warning_saves_the_run_and_requeues_the_job(shards: ShardSet, tmp_path: Path) -> None:
    """slurm.sbatch with an srun and an scontrol that know one node."""
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "srun": 'shift\nexport SLURM_NODEID=0\nexec "$@"',
        "scontrol": f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "{tmp_path}/requeued"; fi',
        "accelerate": f'exec "{sys.executable}" -m accelerate.commands.accelerate_cli "$@"',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    files = ROOT / "configs" / "accelerate"
    job |= {"CONFIG_FILE": str(files / "slurm.yaml"), "PATH": f"{tools}:{os.environ['PATH']}"}
    sets = settings(shards, tmp_path, "run", "train.steps=100000", "train.checkpoint_steps=100000")
    command = ["bash", str(files / "slurm.sbatch"), *given(page(tmp_path, shards), sets)[1:]]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started([command], tmp_path, GLOO_SOCKET_IFNAME="lo", **job) as (batch,):
        deadline = time.monotonic() + PATIENCE_S
        while not (metrics.is_file() and losses(metrics.parent)):
            assert batch.poll() is None and time.monotonic() < deadline, (tmp_path / "log0.txt").read_text()
            time.sleep(0.2)
        batch.send_signal(signal.SIGUSR1)
        assert batch.wait(PATIENCE_S) != 0
    said = (tmp_path / "log0.txt").read_text()
    assert (tmp_path / "requeued").read_text().split() == ["requeue", job["SLURM_JOB_ID"]], said
    saved = latest_checkpoint(tmp_path / "run")
    assert saved is not None and load_checkpoint(saved).step >= 1, said
