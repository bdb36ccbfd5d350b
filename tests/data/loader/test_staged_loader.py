"""The stages of a loader as on a GPU, with decoders and streams that follow a script.

A device is late: nothing that was handed to it is done when the call returns. What the loader does in which order, and
what it keeps alive meanwhile, is written down.
"""

import gc
import json
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from rhofast.config.schema import AugmentConfig, ClipConfig, DataConfig
from rhofast.data.format.dataset import ShardSet
from rhofast.data.loader.batch import Batch
from rhofast.data.loader.train_loader import TrainLoader
from rhofast.data.types import AugmentPlan
from rhofast.errors import UndecodableError


class ScriptedDecoders:
    """Decoders that write down what they get, and number it; the pixels of a batch are its number."""

    descriptions: tuple[str, ...] = ()

    def __init__(self, device: Callable[[int], None], refuses: dict[int, dict[int, str]] | None = None) -> None:
        self.events: list[str] = []
        self.pixels: list[weakref.ref[torch.Tensor]] = []
        self._device, self._refuses = device, refuses or {}
        self._batches: list[Batch] = []

    def start(self, batch: Batch) -> int:
        number = len(self._batches)
        self._batches.append(batch)
        self.events.append(f"start {number}")
        return number

    def collect(self, number: int) -> torch.Tensor:
        self.events.append(f"wait {number}")
        self._device(number)
        if number in self._refuses:
            raise UndecodableError(self._refuses[number])
        pixels = torch.full((len(self._batches[number]), 2, 3, 2, 4, 4), float(number))
        self.pixels.append(weakref.ref(pixels))
        self.events.append(f"done {number}")
        return pixels

    def finish(self, pixels: torch.Tensor, augment: AugmentPlan) -> torch.Tensor:
        assert len(augment.blur) == len(pixels)
        return pixels.clone()


def loader(shards: ShardSet, bad_log: Path | None = None) -> TrainLoader:
    return TrainLoader(
        shards,
        clips=ClipConfig(num_clips=2, num_frames=2, frame_stride=2, fps=12),
        augment=AugmentConfig(size=16),
        data=DataConfig(threads=2, decode_threads=1, prefetch=2, max_bad=1.0),
        batch_size=4,
        seed=3,
        bad_log=bad_log,
    )


def scripted(source: TrainLoader, **script: Any) -> ScriptedDecoders:
    """Put decoders in place whose device takes until two more batches have been read: for ever, if nobody reads."""

    def device(number: int) -> None:
        if number:  # the first batch goes through alone
            assert source._pipeline is not None
            read = source._pipeline._channels[1]
            soon(lambda: len(read._items) == 2 or read._closed)

    decoders = ScriptedDecoders(device, **script)
    source._decoders = decoders  # type: ignore[assignment]
    return decoders


def soon(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.001)


def planned(source: TrainLoader, batches: int) -> list[list[int]]:
    """The samples of the first batches, from a loader that has not started."""
    positions = source._training_planner.positions(source.position)
    return [source.samples(next(positions)).tolist() for _ in range(batches)]


def test_the_next_batch_is_read_and_fed_while_the_device_decodes_the_one_before(shards: ShardSet) -> None:
    source = loader(shards)
    decoders, samples = scripted(source), planned(source, 6)
    with source:
        taken = [next(source) for _ in range(6)]
    events = decoders.events
    assert events[:4] == ["start 0", "wait 0", "done 0", "start 1"]  # the first goes through alone
    # Soon there is always one more at the device than the host waits for, and no third.
    steady = [event for number in range(2, 6) for event in (f"start {number + 1}", f"wait {number}", f"done {number}")]
    assert events[events.index("start 3") :][: len(steady)] == steady
    for number, views in enumerate(taken):
        assert views.pixels.unique().tolist() == [number] and views.sample.tolist() == samples[number]


def test_a_refused_sample_is_replaced_in_its_batch_while_the_next_one_is_at_the_device(
    shards: ShardSet, tmp_path: Path
) -> None:
    source = loader(shards, tmp_path / "bad.jsonl")
    decoders, samples = scripted(source, refuses={2: {1: "cut short"}}), planned(source, 5)
    with source:
        taken = [next(source) for _ in range(5)]
    events = decoders.events
    assert events[events.index("start 3") :][:5] == ["start 3", "wait 2", "start 4", "wait 4", "done 4"]
    # The batch of number 2 was decoded again as number 4, without the refused sample; the one behind it only once.
    assert [views.pixels.unique().tolist() for views in taken] == [[0], [1], [4], [3], [5]]
    for number, views in enumerate(taken):
        changed = [slot for slot, sample in enumerate(views.sample.tolist()) if sample != samples[number][slot]]
        assert changed == ([1] if number == 2 else [])
    (line,) = [json.loads(text) for text in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert line["sample"] == samples[2][1] and line["key"] == f"v{samples[2][1]}" and "cut short" in line["reason"]


class FakeEvent:
    """An event of a device, which passes when the test says so."""

    def __init__(self, name: str) -> None:
        self.name, self.passed = name, False

    def query(self) -> bool:
        return self.passed


class FakeStream:
    """A stream of a device: it numbers the events that are recorded on it, and writes down its waits."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.recorded: list[FakeEvent] = []
        self._name, self._events = name, events

    def record_event(self) -> FakeEvent:
        event = FakeEvent(f"{self._name} {len(self.recorded)}")
        self.recorded.append(event)
        self._events.append(event.name)
        return event

    def wait_event(self, event: FakeEvent) -> None:
        self._events.append(f"{self._name} after {event.name}")


def test_decoded_pixels_are_kept_until_the_device_has_finished_them(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, events = loader(shards), list[str]()
    decoders, finish = scripted(source), FakeStream("finished", events)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(source, "_stream", FakeStream("decoded", events))
    monkeypatch.setattr(source, "_finish_stream", finish)
    monkeypatch.setattr(source, "_hand_over", lambda finished: None)
    with source:
        for _ in range(4):
            next(source)
        gc.collect()
        assert len(finish.recorded) >= 4  # the device has not come to any of them yet
        assert all(pixels() is not None for pixels in decoders.pixels)
        for event in finish.recorded[:3]:
            event.passed = True
        for _ in range(4):  # what has passed is let go when others come
            next(source)
        soon(lambda: gc.collect() >= 0 and not any(pixels() is not None for pixels in decoders.pixels[:3]))
        assert all(pixels() is not None for pixels in decoders.pixels[3:8])
    for number in range(8):  # finishing is ordered after decoding on the device
        steps = [f"decoded {number}", f"finished after decoded {number}", f"finished {number}"]
        assert [event for event in events if event in steps] == steps
