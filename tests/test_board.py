"""Messages through shared memory are those of a gather; strangers get no board; a lost rank is noticed."""

import datetime
import multiprocessing
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rhofast import board
from rhofast.board import open_board
from rhofast.errors import RankLostError


def messages(rank: int, folder: str) -> None:
    """Sizes and types that change, and ranks that are late in turn."""
    shared = found(open_board(group()))
    generator = torch.Generator().manual_seed(rank)
    for number in range(60):
        size, dtype = 1 + 37 * number % 501, (torch.float32, torch.float64)[number % 7 == 0]
        own = torch.randn(size, generator=generator, dtype=dtype)
        if number % 3 == rank:
            time.sleep(0.002)
        told = own.new_empty((dist.get_world_size(), size))
        dist.all_gather_into_tensor(told.view(-1), own)
        kept = shared.exchange(own)
        shared.exchange(own + 1), shared.exchange(own + 2)  # a result stays what it was
        assert torch.equal(kept, told)
    assert shared.holds(torch.empty(2**14, dtype=torch.float64))
    assert not shared.holds(torch.empty(2**14 + 1, dtype=torch.float64))


def strangers(rank: int, folder: str) -> None:
    """The last rank sees another memory, as on another machine."""
    if rank == dist.get_world_size() - 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(board, "_map_file", lambda name, size: None)
            assert open_board(group()) is None
    else:
        assert open_board(group()) is None


def lost(rank: int, folder: str) -> None:
    shared = found(open_board(group()))
    shared.exchange(torch.zeros(3))
    if rank == 1:
        os._exit(9)
    began = time.monotonic()
    with pytest.raises(RankLostError, match="rank 1 of this machine has ended"):
        shared.exchange(torch.zeros(3))
    assert time.monotonic() - began < 10


def late(rank: int, folder: str) -> None:
    shared = found(open_board(group(timeout=3.0)))
    if rank == 0:
        with pytest.raises(RankLostError, match=r"rank \d of this machine has not answered for"):
            shared.exchange(torch.zeros(3))
        Path(folder, "noticed").touch()
    while not Path(folder, "noticed").exists():
        time.sleep(0.05)


def group(timeout: float | None = None) -> dist.ProcessGroup:
    given: dict[str, Any] = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
    made: dist.ProcessGroup = dist.new_group(**given)
    return made


def found(shared: board.Board | None) -> board.Board:
    assert shared is not None
    return shared


PARTS = {"messages": messages, "strangers": strangers, "late": late, "lost": lost}


def rank_of_three(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3)
    for name, part in PARTS.items():
        part(rank, folder)
        Path(folder, f"{name}-{rank}").touch()
    os._exit(0)  # a process group with a lost rank takes its time


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each part that a rank has come through."""
    if board.platform.machine() not in board._IN_ORDER:
        pytest.skip("boards are only where writes keep their order")
    folder = tmp_path_factory.mktemp("board")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    ranks: list[BaseProcess] = [server.Process(target=rank_of_three, args=(rank, str(folder))) for rank in range(3)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
    finally:
        for process in ranks:
            process.kill()
    return folder


@pytest.mark.parametrize(
    ("part", "ranks"),
    [("messages", {0, 1, 2}), ("strangers", {0, 1, 2}), ("late", {0, 1, 2}), ("lost", {0, 2})],
)
def test_a_board(part: str, ranks: set[int], done: Path) -> None:
    assert {rank for rank in range(3) if (done / f"{part}-{rank}").exists()} == ranks
