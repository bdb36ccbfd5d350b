"""Tiny shards, made once per session; which tests need a GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from rhofast.data.format.dataset import ShardSet
from tests.helpers.shards import (
    NUM_FRAMES,
    NUM_VIDEOS,
    STREAMS,
    encode_mjpeg,
    encode_stream,
    frame_pixels,
    write_shards,
)

# A console that is made with COLUMNS in the environment keeps that width, whatever a test sets later.
os.environ.pop("COLUMNS", None)

# Machines are shared and noisy: an example that takes long says nothing.
settings.register_profile("rhofast", deadline=None)
settings.load_profile("rhofast")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=None, metavar="N", help="cases of each fuzz test; default: its own")


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str) -> None:
    """End the session when a test ends its worker process: xdist would wait for ever for the rest of its file."""
    pytest.exit(f"{crashitem} ended its worker process; the tests after it were not run", returncode=1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """GPU tests skip without a GPU, and fail instead where one is required."""
    if item.get_closest_marker("needs_gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("RHOFAST_REQUIRE_GPU") == "1":
            pytest.fail("RHOFAST_REQUIRE_GPU=1, but there is no CUDA device")
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Each test closes its loaders: the program ends a whole process whose threads do not end (cli/app.py)."""
    yield
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("rhofast-")]
    for thread in ours:
        thread.join(timeout=10)
    left = [thread.name for thread in ours if thread.is_alive()]
    assert not left, f"the test leaves threads: {left}"


@pytest.fixture(scope="session")
def members() -> list[bytes]:
    """13 members of 24 frames, 64x48 at 12 frames a second."""
    return [encode_mjpeg([frame_pixels(video, frame) for frame in range(NUM_FRAMES)]) for video in range(NUM_VIDEOS)]


@pytest.fixture
def shards(tmp_path: Path, members: list[bytes]) -> ShardSet:
    """A fresh set of three shards that a test may damage; video v has label v % 3."""
    return write_shards(tmp_path / "shards", members, labels=[video % 3 for video in range(NUM_VIDEOS)])


@pytest.fixture(scope="session")
def stream_members(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[bytes]]:
    """The videos of `members` as one of STREAMS stores them."""
    out = tmp_path_factory.mktemp("streams")

    @cache
    def encode(name: str) -> list[bytes]:
        return [
            encode_stream([frame_pixels(video, frame) for frame in range(NUM_FRAMES)], STREAMS[name], out / "video.mp4")
            for video in range(NUM_VIDEOS)
        ]

    return encode


@pytest.fixture(params=list(STREAMS))
def stream_shards(
    request: pytest.FixtureRequest, tmp_path: Path, stream_members: Callable[[str], list[bytes]]
) -> ShardSet:
    """Like `shards`, of video streams instead of pictures."""
    labels = [video % 3 for video in range(NUM_VIDEOS)]
    return write_shards(
        tmp_path / request.param, stream_members(request.param), labels=labels, codec=STREAMS[request.param]
    )
