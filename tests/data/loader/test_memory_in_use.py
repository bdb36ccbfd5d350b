"""Memory that a device reads is kept until the device has read it, and no longer."""

import gc
import weakref

import torch

from rhofast.data.loader.memory_in_use import MemoryInUse


class FakeEvent:
    """An event of a device, which passes when the test says so."""

    def __init__(self) -> None:
        self.passed = False

    def query(self) -> bool:
        return self.passed


def test_nothing_is_let_go_before_its_event_and_all_up_to_the_last_one_that_passed_afterwards() -> None:
    memory, events = MemoryInUse(), [FakeEvent() for _ in range(5)]

    def hold(event: FakeEvent) -> weakref.ref[torch.Tensor]:
        tensor = torch.zeros(2)
        memory.hold(tensor, until=event)
        return weakref.ref(tensor)

    tensors = [hold(event) for event in events[:3]]
    gc.collect()
    assert all(tensor() is not None for tensor in tensors) and len(memory) == 3
    events[0].passed = events[1].passed = True
    tensors.append(hold(events[3]))
    gc.collect()
    assert [tensor() is not None for tensor in tensors] == [False, False, True, True] and len(memory) == 2
    events[2].passed = events[3].passed = events[4].passed = True
    tensors.append(hold(events[4]))
    gc.collect()
    assert not any(tensor() is not None for tensor in tensors) and len(memory) == 0


def test_memory_goes_in_the_order_of_the_stream() -> None:
    """An event that has passed says nothing of an earlier one that was not asked yet."""
    memory, first, second = MemoryInUse(), FakeEvent(), FakeEvent()
    second.passed = True
    memory.hold(torch.zeros(1), until=first)
    memory.hold(torch.zeros(1), until=second)
    assert len(memory) == 2
    first.passed = True
    memory.hold(torch.zeros(1), until=FakeEvent())
    assert len(memory) == 1
