"""The loader's numbers, and the sentence made of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhofast.data.loader.stats import LoaderStats, StageShares
from rhofast.data.loader.threaded_pipeline import StageClock

HANDS = {"threads": 4, "decode_threads": 2, "cores": 16}


def make(
    plan: tuple[float, float, float] = (1, 1, 98),
    read: tuple[float, float, float] = (30, 10, 60),
    decode: tuple[float, float, float] = (98, 2, 0),
    *,
    wait_s: float = 90.0,
    seconds: float = 100.0,
    batches: int = 10,
    frames_decoded: int = 1280,
    bytes_used: int = 2_000_000_000,
    outage_s: float = 0.0,
) -> LoaderStats:
    """100 seconds of a loader; a stage's three numbers are its seconds busy, starved and blocked."""
    stages = {"plan": plan, "read": read, "decode": decode}
    return LoaderStats(
        batches=batches,
        clips=160,
        frames=1280,
        bytes_read=2_000_000_000,
        bad=0,
        seconds=seconds,
        wait_s=wait_s,
        stages={name: StageClock(busy, starved, blocked) for name, (busy, starved, blocked) in stages.items()},
        frames_decoded=frames_decoded,
        bytes_used=bytes_used,
        outage_s=outage_s,
    )


def test_rates_are_counts_over_seconds() -> None:
    stats = make()
    assert (stats.clips_per_second, stats.frames_per_second, stats.gigabytes_per_second) == (1.6, 12.8, 0.02)


def test_readiness_is_the_share_of_time_not_spent_waiting() -> None:
    assert make(wait_s=25).readiness == 0.75
    assert make(wait_s=0).readiness == 1 and make(wait_s=100).readiness == 0
    assert make(wait_s=0, seconds=0).readiness == 1  # nobody has waited yet


@given(wait=st.floats(0, 1e6), seconds=st.floats(0, 1e6))
def test_readiness_stays_between_0_and_1(wait: float, seconds: float) -> None:
    assert 0 <= make(wait_s=wait, seconds=seconds).readiness <= 1


def test_amplification_is_what_was_touched_over_what_was_used() -> None:
    stats = make(frames_decoded=3840, bytes_used=500_000_000)
    assert stats.decode_amplification == 3 and stats.read_amplification == 4
    nothing = make(frames_decoded=0, bytes_used=0)
    assert nothing.decode_amplification is None and nothing.read_amplification is None


@given(st.tuples(*[st.floats(0, 1e6)] * 3))
def test_shares_of_a_stage_add_up_to_one(clock: tuple[float, float, float]) -> None:
    shares = make(read=clock).shares["read"]
    total = shares.busy + shares.starved + shares.blocked
    assert total == pytest.approx(1) or (clock == (0, 0, 0) and total == 0)


def test_shares_keep_the_order_of_the_flow() -> None:
    assert list(make().shares) == ["plan", "read", "decode"]
    assert make().shares["read"] == StageShares(busy=0.3, starved=0.1, blocked=0.6)


def test_the_difference_of_two_snapshots_is_what_happened_between_them() -> None:
    before, after = make((1, 2, 3), wait_s=5, seconds=10, batches=2), make((5, 7, 9), wait_s=25, seconds=50)
    window = after.since(before)
    assert (window.batches, window.seconds, window.wait_s, window.readiness) == (8, 40, 20, 0.5)
    assert window.stages["plan"] == StageClock(4, 5, 6)
    assert window.clips == window.bytes_read == window.frames_decoded == 0


def test_a_window_may_begin_before_there_was_any_stage() -> None:
    nothing = replace(make(), stages={}, seconds=0.0, wait_s=0.0, batches=0)
    assert make().since(nothing).stages == make().stages


def test_a_snapshot_less_itself_is_nothing() -> None:
    window = make().since(make())
    assert window.batches == 0 and window.readiness == 1
    assert window.advise(**HANDS) == "no batch has been taken yet"


def test_a_fed_consumer_is_the_limit() -> None:
    told = make(decode=(99, 0, 1), wait_s=0.4).advise(**HANDS)
    assert told == "the loader is not the limit: a batch is ready 99.6% of the time"


def test_busy_decoding_is_the_limit() -> None:
    assert make().advise(**HANDS) == (
        "decoding is the limit (98% busy, reading blocked 60%): raise data.decode_threads (2 of 16 cores), or store "
        "smaller pictures"
    )


def test_no_more_threads_are_asked_for_than_there_are_cores() -> None:
    told = make().advise(threads=4, decode_threads=2, cores=2)
    assert "raise" not in told and "all 2 cores decode" in told


def test_busy_reading_is_the_limit() -> None:
    told = make(read=(96, 4, 0), decode=(20, 80, 0)).advise(**HANDS)
    assert told == (
        "reading is the limit (96% busy, planning blocked 98%): raise data.threads (4 of 16 cores), or keep the shards "
        "on faster storage"
    )
    told = make(read=(96, 4, 0), decode=(20, 80, 0)).advise(threads=4, decode_threads=2, cores=2)
    assert told.endswith("blocked 98%): keep the shards on faster storage")


def test_wasted_bytes_and_frames_are_named_where_reading_is_the_limit() -> None:
    waste = make(read=(96, 4, 0), decode=(20, 80, 0), frames_decoded=5120, bytes_used=800_000_000)
    told = waste.advise(**HANDS)
    assert (
        "or store shorter groups of pictures, or jpeg (4.0 frames are decoded and 2.5 bytes are read for each" in told
    )


def test_busy_planning_is_the_limit() -> None:
    told = make((97, 3, 0), (10, 90, 0), (20, 80, 0)).advise(**HANDS)
    assert told.startswith("planning is the limit (97% busy): it runs on one core")


def test_stages_that_take_turns_are_told_apart_from_a_slow_one() -> None:
    told = make(read=(55, 45, 0), decode=(60, 40, 0), wait_s=10).advise(**HANDS)
    assert told.startswith("no stage is the limit (the busiest, decoding, works 60% of the time)")
    assert "waits 10.0%" in told and told.endswith("raise data.prefetch")


def test_a_stage_of_another_name_is_named() -> None:
    stats = replace(make(), stages={"fetch": StageClock(9, 1, 0)})
    assert stats.advise(**HANDS) == "stage 'fetch' is the limit (90% busy): make 'fetch' faster"


@given(
    clocks=st.tuples(*[st.tuples(*[st.floats(0, 100)] * 3)] * 3),
    wait=st.floats(0, 100),
    batches=st.integers(0, 3),
    threads=st.integers(1, 64),
    cores=st.integers(1, 64),
)
def test_advice_is_always_one_line(
    clocks: tuple[tuple[float, float, float], ...], wait: float, batches: int, threads: int, cores: int
) -> None:
    told = make(*clocks, wait_s=wait, batches=batches).advise(threads=4, decode_threads=threads, cores=cores)
    assert told and "\n" not in told and not told.endswith(".")


def test_an_outage_is_no_slow_storage() -> None:
    read = {"plan": (1, 1, 98), "read": (85, 5, 10), "decode": (15, 85, 0)}  # 80 s of an outage, then decoding
    index = {"plan": (83, 1, 16), "read": (5, 85, 10), "decode": (15, 85, 0)}  # the same, of an index
    for clocks in (read, index):
        assert "data.threads" in make(**read, wait_s=85).advise(**HANDS)  # what is told of a slow storage
        told = make(**clocks, wait_s=85, outage_s=80).advise(**HANDS)
        assert "data.threads" not in told and "storage" not in told
        assert "decoding, works 75% of the time" in told
        assert told.endswith("; a store did not answer for 80 s of the 85 s of waiting, which is left out")
    kept_up = make(**read, wait_s=80.1, outage_s=80).advise(**HANDS)
    assert kept_up.startswith("an outage was the limit: a store did not answer for 80 s") and "keeps up" in kept_up


def test_a_storage_that_is_slow_besides_an_outage_is_told() -> None:
    told = make(read=(98, 2, 0), decode=(10, 90, 0), wait_s=90, outage_s=40).advise(**HANDS)
    assert told.startswith("reading is the limit (97% busy, planning blocked 97%): raise data.threads")
    assert "40 s of the 90 s" in told
