"""Ask once more for what is late: one slow replica of a store must not hold up a batch of thousands of requests.

ask --late--> ask again --late--> ask again ... --> the first good answer counts, the others are stopped
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

Answer = TypeVar("Answer")
_Ask = Callable[[], Awaitable[Answer]]

_SHARE = 0.2  # of the answers that may be asked for again: a store that is slow as a whole must not get twice the work
_MOST = 4  # times that one answer is asked for
_FACTOR, _FLOOR_S = 4.0, 0.5  # an answer is late at so many times the 95th percentile, and not before
_UNKNOWN_S = 5.0  # an answer is late as long as the percentile is not known
_RECENT, _ENOUGH = 256, 20  # answers of which the percentile is taken, at most and at least
_SELDOM = 16  # answers after which it is taken anew


class Hedge:
    """Asks for answers, and again for late ones. For one event loop.

    Attributes:
        late_after_s: Seconds after which an answer is late.
    """

    def __init__(self) -> None:
        """Create a hedge that knows nothing about the store yet."""
        self.late_after_s = _UNKNOWN_S
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._asked = self._again = self._came = 0

    async def first_answer(self, ask: _Ask[Answer], again: _Ask[Answer], limit_s: float) -> Answer:
        """Ask, and ask again each time that the answer is late; return what comes first.

        Args:
            ask: Asks for the first time.
            again: Asks for another time.
            limit_s: Seconds after which nothing more is waited for.

        Raises:
            TimeoutError: Nothing came in that time.
            Exception: What was raised first, if all asked in vain.
        """
        self._asked += 1
        loop = asyncio.get_running_loop()
        ends, times = loop.time() + limit_s, 1
        pending = {loop.create_task(self._timed(ask))}
        faults: list[BaseException] = []
        try:
            while pending:
                left = max(0.0, ends - loop.time())
                wait = min(self.late_after_s, left) if times < _MOST else left
                done, pending = await asyncio.wait(pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    fault = one.exception()
                    if fault is None:
                        return one.result()
                    faults.append(fault)
                if not done and loop.time() >= ends:
                    raise TimeoutError
                if not done and times < _MOST and self._again < 1 + _SHARE * self._asked:
                    times, self._again = times + 1, self._again + 1
                    pending.add(loop.create_task(self._timed(again)))
        finally:
            for one in pending:
                one.cancel()
        raise faults[0]

    async def _timed(self, ask: _Ask[Answer]) -> Answer:
        """Ask, and note how long the answer took; from time to time, when others will be late."""
        began = time.monotonic()
        answer = await ask()
        self._recent.append(time.monotonic() - began)
        self._came += 1
        if len(self._recent) >= _ENOUGH and self._came % _SELDOM == 0:
            usual = sorted(self._recent)[int(0.95 * len(self._recent))]
            self.late_after_s = max(_FLOOR_S, _FACTOR * usual)
        return answer
