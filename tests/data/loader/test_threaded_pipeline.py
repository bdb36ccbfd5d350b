"""Stages side by side: order, errors in their place, no thread left."""

import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rhofast.data.loader.threaded_pipeline import ThreadedPipeline, TwoSteps


def rhofast_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rhofast-")]


def drain(pipeline: ThreadedPipeline[int]) -> list[int]:
    out = []
    while True:
        try:
            out.append(pipeline.get())
        except StopIteration:
            return out


def test_items_come_out_in_order_and_all_threads_end() -> None:
    pipeline: ThreadedPipeline[int] = ThreadedPipeline(
        iter(range(50)), {"a": lambda x: x + 1, "b": lambda x: 2 * x}, depth=3
    )
    assert drain(pipeline) == [2 * (x + 1) for x in range(50)]
    assert rhofast_threads() == []


def test_an_error_comes_out_in_its_place() -> None:
    def fails_at_3(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    pipeline: ThreadedPipeline[int] = ThreadedPipeline(iter(range(9)), {"a": fails_at_3, "b": lambda x: x}, depth=2)
    assert [pipeline.get() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        pipeline.get()
    assert rhofast_threads() == []
    with pytest.raises(StopIteration):
        pipeline.get()


def test_an_error_of_the_source_comes_out_too() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    pipeline: ThreadedPipeline[int] = ThreadedPipeline(source(), {"a": lambda x: x}, depth=2)
    assert pipeline.get() == 1
    with pytest.raises(OSError, match="gone"):
        pipeline.get()


def test_queues_are_bounded() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    pipeline: ThreadedPipeline[int] = ThreadedPipeline(source(), {"a": lambda x: x, "b": lambda x: x}, depth=2)
    pipeline.get()
    time.sleep(0.1)
    assert len(made) <= 1 + 2 * 2 + 2
    pipeline.close()
    assert rhofast_threads() == []


def test_close_ends_threads_that_wait_for_input() -> None:
    release = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        release.wait(10)
        yield 1

    pipeline: ThreadedPipeline[int] = ThreadedPipeline(slow(), {"a": lambda x: x, "b": lambda x: x}, depth=1)
    pipeline.get()
    threading.Timer(0.05, release.set).start()
    pipeline.close()
    assert rhofast_threads() == []
    pipeline.close()


def test_the_slow_stage_is_seen_in_the_clocks() -> None:
    pipeline: ThreadedPipeline[int] = ThreadedPipeline(
        iter(range(10)), {"quick": lambda x: x, "slow": lambda x: (time.sleep(0.01), x)[1]}, depth=1
    )
    drain(pipeline)
    quick, slow = pipeline.clocks["quick"], pipeline.clocks["slow"]
    assert slow.busy >= 0.1 > quick.busy
    assert quick.blocked > slow.blocked
    assert pipeline.wait_s > 0.05


def test_threads_switch_often_while_any_pipeline_runs() -> None:
    usual = sys.getswitchinterval()
    first, second = (ThreadedPipeline[int](iter(range(9)), {"a": lambda x: x}, depth=1) for _ in range(2))
    first.get()
    second.get()
    assert sys.getswitchinterval() < 0.001
    first.close()
    first.close()
    assert sys.getswitchinterval() < 0.001
    drain(second)
    assert sys.getswitchinterval() == usual


def test_the_first_item_goes_through_alone() -> None:
    began: list[tuple[str, int]] = []
    free = threading.Event()

    def first(x: int) -> int:
        began.append(("first", x))
        return x

    def second(x: int) -> int | None:
        began.append(("second", x))
        free.wait(30)
        return x

    pipeline: ThreadedPipeline[int] = ThreadedPipeline(iter(range(5)), {"a": first, "b": second}, depth=2)
    threading.Timer(0.2, free.set).start()
    assert pipeline.get() == 0
    assert began[:2] == [("first", 0), ("second", 0)] and drain(pipeline) == [1, 2, 3, 4]


@pytest.mark.parametrize("fate", ["dropped", "failed", "closed"])
def test_nobody_waits_for_a_first_item_that_never_comes(fate: str) -> None:
    def stage(x: int) -> int | None:
        if x == 0 and fate == "failed":
            raise ValueError("first")
        return None if x == 0 and fate == "dropped" else x

    pipeline: ThreadedPipeline[int] = ThreadedPipeline(iter(range(3)), {"a": stage, "b": lambda x: x}, depth=2)
    if fate == "dropped":
        assert drain(pipeline) == [1, 2]
    elif fate == "failed":
        with pytest.raises(ValueError, match="first"):
            pipeline.get()
    else:
        assert pipeline.get() == 0
        pipeline.close()
    assert rhofast_threads() == []


def run_script(
    items: int, *, begin_fails: int | None = None, complete_fails: int | None = None
) -> tuple[list[object], list[str]]:
    """Run a stage in two steps, before which all items lie once the first has gone through, and drop item 3.

    Returns:
        What comes out, with the text of an error; and the order in which items are begun (b) and completed (c).
    """
    events: list[str] = []

    def begin(x: int) -> int:
        while x == 1 and not pipeline._ended["before"]:
            time.sleep(0.001)
        events.append(f"b{x}")
        if x == begin_fails:
            raise ValueError(f"begin {x}")
        return 10 * x

    def complete(x: int) -> int | None:
        events.append(f"c{x // 10}")
        if x // 10 == complete_fails:
            raise ValueError(f"complete {x // 10}")
        return None if x == 30 else x

    stages = {"before": lambda x: x, "script": TwoSteps(begin, complete)}
    pipeline: ThreadedPipeline[int] = ThreadedPipeline(iter(range(items)), stages, depth=items + 1)
    out: list[object] = []
    try:
        while True:
            out.append(pipeline.get())
    except StopIteration:
        pass
    except ValueError as error:
        out.append(str(error))
    assert rhofast_threads() == []
    return out, events


def test_a_stage_in_two_steps_begins_the_next_item_before_it_waits_for_the_one_before() -> None:
    out, events = run_script(6)
    assert out == [0, 10, 20, 40, 50]
    # The first goes alone; from then on there are never more than two in work.
    assert events == ["b0", "c0", "b1", "b2", "c1", "b3", "c2", "b4", "c3", "b5", "c4", "c5"]


@pytest.mark.parametrize(
    ("fails", "out", "last"),
    [
        ({"begin_fails": 2}, [0, 10, "begin 2"], ["b1", "b2", "c1"]),
        ({"begin_fails": 0}, ["begin 0"], ["b0"]),
        ({"complete_fails": 2}, [0, 10, "complete 2"], ["b3", "c2"]),
        ({"complete_fails": 5}, [0, 10, 20, 40, "complete 5"], ["c4", "c5"]),
    ],
)
def test_an_error_of_either_step_comes_out_in_the_place_of_its_item(
    fails: dict[str, int], out: list[object], last: list[str]
) -> None:
    found, events = run_script(6, **fails)
    assert found == out and events[-len(last) :] == last


def test_a_stage_in_two_steps_waits_for_no_next_item_while_it_has_one() -> None:
    given = threading.Semaphore(0)

    def source() -> Iterator[int]:
        for number in range(4):
            given.acquire()
            yield number

    stages = {"before": lambda x: x, "script": TwoSteps(lambda x: x, lambda x: x)}
    pipeline: ThreadedPipeline[int] = ThreadedPipeline(source(), stages, depth=2)
    for number in range(4):
        given.release()
        assert pipeline.get() == number
    given.release()
    pipeline.close()
    assert rhofast_threads() == []
