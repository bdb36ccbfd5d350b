"""Answers that are late are asked for again, and a store that is slow as a whole does not get twice the work."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from rhofast.storage import hedge
from rhofast.storage.hedge import Hedge


@pytest.fixture(autouse=True)
def _soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedge, "_UNKNOWN_S", 0.02)
    monkeypatch.setattr(hedge, "_FLOOR_S", 0.02)


class Store:
    """Answers the requests with these numbers, fails those, and leaves all others waiting."""

    def __init__(self, *, answers: set[int], fails: set[int] | None = None) -> None:
        self.answers, self.fails, self.number, self.open = answers, fails or set(), itertools.count(), 0

    async def __call__(self) -> int:
        number = next(self.number)
        self.open += 1
        try:
            if number in self.fails:
                raise OSError(f"request {number}")
            await asyncio.sleep(0 if number in self.answers else 30)
        finally:
            self.open -= 1
        return number


@pytest.mark.parametrize(("answering", "tries"), [(0, 1), (1, 1), (3, 10)])
def test_the_first_answer_counts_and_nothing_stays_under_way(answering: int, tries: int) -> None:
    store, helped = Store(answers={answering, *range(10, 100)}), Hedge()

    async def ask() -> int:
        for _ in range(tries - 1):  # so that there is work of which a share may be made again
            await helped.first_answer(Store(answers={0}), Store(answers=set()), 5.0)
        answer = await helped.first_answer(store, store, 5.0)
        await asyncio.sleep(0)
        return answer

    assert asyncio.run(ask()) == answering and store.open == 0


def test_a_store_that_is_slow_as_a_whole_gets_a_fifth_more_requests() -> None:
    store, helped = Store(answers=set()), Hedge()

    async def ask() -> list[int | BaseException]:
        asked = (helped.first_answer(store, store, 0.3) for _ in range(50))
        return await asyncio.gather(*asked, return_exceptions=True)

    began = time.monotonic()
    assert all(isinstance(answer, TimeoutError) for answer in asyncio.run(ask()))
    assert 50 < next(store.number) <= 50 + 11 and time.monotonic() - began < 5


def test_a_fault_waits_for_the_other_answers_and_the_first_one_is_raised() -> None:
    async def answer(store: Store) -> int:
        return await Hedge().first_answer(store, store, 5.0)

    assert asyncio.run(answer(Store(answers={1}, fails=set()))) == 1
    with pytest.raises(OSError, match="request 0"):
        asyncio.run(answer(Store(answers=set(), fails={0})))


def test_what_is_late_is_learned_from_the_answers() -> None:
    helped = Hedge()

    async def slow() -> int:
        await asyncio.sleep(0.01)
        return 0

    async def ask() -> None:
        for _ in range(32):
            await helped.first_answer(slow, slow, 5.0)

    asyncio.run(ask())
    assert helped.late_after_s >= 0.04
