"""The scheduler: results in each request's order, engines that die, callers that leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import EngineFailed, NotReady, OutOfMemory, ServiceError, WorkerCrashed
from transcription.core import Segment, SegmentRequest, TranscriptionOptions, TranscriptSegment
from transcription.planner import BatchPlanner
from transcription.protocol import Language
from transcription.scheduler import LOOK_AHEAD, MAX_ATTEMPTS, SegmentScheduler

OPTIONS = TranscriptionOptions("tiny.en", "en")


def segment(index: int, path: str = "a.pcm") -> Segment:
    return Segment(Path(path), index * 1_000, 1_000, index)


async def some(count: int, path: str = "a.pcm") -> AsyncIterator[Segment]:
    for index in range(count):
        yield segment(index, path)


async def turns_until(reached: Callable[[], bool]) -> None:
    """Let the other tasks run until it is so; they need no time, only their turns."""
    for _ in range(1_000):
        if reached():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


class FakeEngine:
    """Says "<file>:<index>" for each segment. *dies* holds the segments that kill it, and how often."""

    def __init__(
        self,
        dies: dict[tuple[str, int], int] | None = None,
        fails: str | None = None,
        *,
        streams: int = 1,
        express: bool = False,
        fits: int = 99,
        up: bool = True,
    ) -> None:
        self.batches: list[list[tuple[str, int]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.device = "cuda"
        self.streams = streams
        self.express = express
        self.up = up
        self._dies = dies or {}
        self._fails = fails
        self._fits = fits

    async def wait_until_up(self) -> None:
        if not self.up:
            await asyncio.sleep(0)
            raise NotReady("broken")

    async def transcribe(
        self, requests: Sequence[SegmentRequest], *, request_ids: Sequence[str] = ()
    ) -> list[TranscriptSegment | ServiceError]:
        places = [(str(one.segment.path), one.segment.index) for one in requests]
        self.batches.append(places)
        self.asked.set()
        await self.gate.wait()
        if len(places) > self._fits:
            raise OutOfMemory()
        for place in places:
            if self._dies.get(place, 0) > 0:
                self._dies[place] -= 1
                raise WorkerCrashed()
        return [
            EngineFailed()
            if path == self._fails
            else TranscriptSegment(index, 0.0, 1.0, f"{path}:{index}", -0.1, 0.0, 1.0, 0.0)
            for path, index in places
        ]

    async def detect_language(self, segments: Sequence[Segment], model: str) -> Language:
        places = [(str(one.path), one.index) for one in segments]
        self.batches.append(places)
        self.asked.set()
        await self.gate.wait()
        if self._dies.get(places[0], 0) > 0:
            self._dies[places[0]] -= 1
            raise WorkerCrashed()
        return Language("fr", 0.9)


def scheduling(*engines: FakeEngine, batch_size: int) -> SegmentScheduler:
    return SegmentScheduler(engines, BatchPlanner(batch_size))


async def texts(scheduler: SegmentScheduler, count: int, path: str = "a.pcm") -> list[str]:
    return [result.text async for result in scheduler.submit(some(count, path), OPTIONS)]


async def test_results_keep_their_order() -> None:
    """Batches are filled by turns and lengths; a transcript is read from the start."""
    async with scheduling(FakeEngine(), batch_size=3) as scheduler:
        a, b = await asyncio.gather(texts(scheduler, 7), texts(scheduler, 5, "b.pcm"))
    assert a == [f"a.pcm:{index}" for index in range(7)]
    assert b == [f"b.pcm:{index}" for index in range(5)]


async def test_two_requests_share_a_batch() -> None:
    """This is what the scheduler is for."""
    engine = FakeEngine()
    engine.gate.clear()
    async with scheduling(engine, batch_size=4) as scheduler:
        first = asyncio.create_task(texts(scheduler, 1, "first.pcm"))
        await engine.asked.wait()
        both = [asyncio.create_task(texts(scheduler, 2, name)) for name in ("a.pcm", "b.pcm")]
        await turns_until(lambda: "waiting=4" in repr(scheduler))
        engine.gate.set()
        await asyncio.gather(first, *both)
    assert sorted(engine.batches[1]) == [("a.pcm", 0), ("a.pcm", 1), ("b.pcm", 0), ("b.pcm", 1)]


async def test_no_segments_no_results() -> None:
    """Silence."""
    async with scheduling(FakeEngine(), batch_size=4) as scheduler:
        assert await texts(scheduler, 0) == []


async def test_a_dead_engine_costs_a_retry() -> None:
    """Its segments are done again; nobody hears of it."""
    engine = FakeEngine(dies={("a.pcm", 1): 1})
    async with scheduling(engine, batch_size=4) as scheduler:
        assert await texts(scheduler, 3) == ["a.pcm:0", "a.pcm:1", "a.pcm:2"]
    assert engine.batches[1:] == [[("a.pcm", 0)], [("a.pcm", 1)], [("a.pcm", 2)]]


async def test_a_segment_that_always_kills_fails_its_request_alone() -> None:
    """Three engines are enough; the neighbour who shared the first batch gets its transcript."""
    engine = FakeEngine(dies={("bad.pcm", 0): 99})
    async with scheduling(engine, batch_size=4) as scheduler:
        bad, good = await asyncio.gather(
            texts(scheduler, 1, "bad.pcm"), texts(scheduler, 2, "good.pcm"), return_exceptions=True
        )
    assert isinstance(bad, WorkerCrashed)
    assert good == ["good.pcm:0", "good.pcm:1"]
    assert sum(("bad.pcm", 0) in batch for batch in engine.batches) == 3


async def test_an_error_reaches_the_caller() -> None:
    """A lost exception would let the caller wait for ever."""
    async with scheduling(FakeEngine(fails="a.pcm"), batch_size=1) as scheduler:
        with pytest.raises(EngineFailed):
            await texts(scheduler, 2)
        assert await texts(scheduler, 1, "b.pcm") == ["b.pcm:0"]


async def test_an_error_while_cutting_reaches_the_caller() -> None:
    """The segments come from voice activity, which can fail as well."""

    async def broken() -> AsyncIterator[Segment]:
        yield segment(0)
        raise EngineFailed("no more")

    async with scheduling(FakeEngine(), batch_size=1) as scheduler:
        with pytest.raises(EngineFailed, match="no more"):
            async for _ in scheduler.submit(broken(), OPTIONS):
                pass


async def test_a_caller_that_leaves_costs_one_batch_at_most() -> None:
    """The client hung up: what was under way is finished, nothing more is begun."""
    engine = FakeEngine()
    engine.gate.clear()
    async with scheduling(engine, batch_size=2) as scheduler:
        leaving = asyncio.create_task(texts(scheduler, 50))
        await engine.asked.wait()
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        engine.gate.set()
        assert await texts(scheduler, 1, "b.pcm") == ["b.pcm:0"]
        assert repr(scheduler) == "<SegmentScheduler requests=0 waiting=0>"
    assert engine.batches == [[("a.pcm", 0), ("a.pcm", 1)], [("b.pcm", 0)]]


async def test_every_stream_of_every_engine_is_fed() -> None:
    """Two engines of two streams: four batches are under way at once."""
    engines = [FakeEngine(streams=2), FakeEngine(streams=2)]
    for engine in engines:
        engine.gate.clear()
    async with scheduling(*engines, batch_size=1) as scheduler:
        work = asyncio.create_task(texts(scheduler, 6))
        await turns_until(lambda: sum(len(engine.batches) for engine in engines) == 4)
        assert [len(engine.batches) for engine in engines] == [2, 2]
        for engine in engines:
            engine.gate.set()
        assert await work == [f"a.pcm:{index}" for index in range(6)]


async def test_a_clip_does_not_wait_for_a_long_file_where_there_is_an_express_stream() -> None:
    """All other streams are at the file's batches; the clip is decoded at once, the file is not let in."""
    engine = FakeEngine(streams=1, express=True)
    engine.gate.clear()
    async with scheduling(engine, batch_size=2) as scheduler:
        file = asyncio.create_task(texts(scheduler, 40))
        await turns_until(lambda: f"waiting={LOOK_AHEAD - 1}" in repr(scheduler))
        clip = asyncio.create_task(texts(scheduler, 1, "clip.pcm"))
        await turns_until(lambda: [("clip.pcm", 0)] in engine.batches)
        assert sum(batch[0][0] == "a.pcm" for batch in engine.batches) == 1
        engine.gate.set()
        assert await clip == ["clip.pcm:0"]
        assert len(await file) == 40


async def test_a_failed_segment_fails_its_request_alone() -> None:
    """Its neighbours in the batch have their results."""
    async with scheduling(FakeEngine(fails="bad.pcm"), batch_size=4) as scheduler:
        bad, good = await asyncio.gather(
            texts(scheduler, 1, "bad.pcm"), texts(scheduler, 3, "good.pcm"), return_exceptions=True
        )
    assert isinstance(bad, EngineFailed)
    assert good == ["good.pcm:0", "good.pcm:1", "good.pcm:2"]


async def test_what_does_not_fit_is_halved_and_remembered() -> None:
    """The GPU takes two at a time: nobody hears of it, and eight are tried once only."""
    engine = FakeEngine(fits=2)
    async with scheduling(engine, batch_size=8) as scheduler:
        assert await texts(scheduler, 8) == [f"a.pcm:{index}" for index in range(8)]
        assert await texts(scheduler, 8, "b.pcm") == [f"b.pcm:{index}" for index in range(8)]
    assert [len(batch) for batch in engine.batches] == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]


async def test_each_batch_is_told_with_what_might_have_shared_it() -> None:
    """What is known not to fit is no empty place: a smaller batch that is full counts as full."""
    told: list[tuple[int, int]] = []
    engine = FakeEngine(fits=2)
    async with SegmentScheduler([engine], BatchPlanner(4), lambda *batch: told.append(batch)) as scheduler:
        await texts(scheduler, 4)
        await texts(scheduler, 1, "b.pcm")
    assert told == [(4, 4), (2, 2), (2, 2), (1, 2)]


async def test_what_does_not_fit_alone_fails_its_request() -> None:
    """There is no half of one; the engine lives and serves the next."""
    engine = FakeEngine(fits=0)
    async with scheduling(engine, batch_size=2) as scheduler:
        with pytest.raises(OutOfMemory):
            await texts(scheduler, 2)
        engine._fits = 1
        assert await texts(scheduler, 1, "b.pcm") == ["b.pcm:0"]


async def test_where_no_engine_comes_up_those_who_wait_hear_of_it() -> None:
    """A broken installation: an answer, not a wait for ever."""
    async with scheduling(FakeEngine(up=False), batch_size=2) as scheduler:
        with pytest.raises(NotReady, match="broken"):
            await texts(scheduler, 2)


async def test_one_engine_that_is_down_holds_nobody_up() -> None:
    """The other one does the work."""
    async with scheduling(FakeEngine(up=False), FakeEngine(), batch_size=2) as scheduler:
        assert await texts(scheduler, 2) == ["a.pcm:0", "a.pcm:1"]


async def test_segments_are_not_looked_for_far_ahead() -> None:
    """Ten hours of segments do not pile up while the engine is at the first."""
    engine = FakeEngine()
    engine.gate.clear()
    found = 0

    async def endless() -> AsyncIterator[Segment]:
        nonlocal found
        while True:
            yield segment(found)
            found += 1

    async with scheduling(engine, batch_size=1) as scheduler:
        results = scheduler.submit(endless(), OPTIONS)
        first = asyncio.create_task(anext(results))
        await turns_until(lambda: found == LOOK_AHEAD)
        for _ in range(100):
            await asyncio.sleep(0)
        assert found == LOOK_AHEAD
        engine.gate.set()
        assert (await first).text == "a.pcm:0"
        await anext(results)
        await turns_until(lambda: found > LOOK_AHEAD)
        await results.aclose()
    assert repr(scheduler) == "<SegmentScheduler requests=0 waiting=0>"


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    streams=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**32).map(Random),
)
def test_whatever_order_batches_end_in(counts: list[int], streams: list[int], batch_size: int, seed: Random) -> None:
    """Engines die, some batches overtake others, some callers leave: each that stays has all its text, in order."""
    leaving = {f"{number}.pcm" for number in range(len(counts)) if seed.random() < 0.2}

    class Restless(FakeEngine):
        async def transcribe(
            self, requests: Sequence[SegmentRequest], *, request_ids: Sequence[str] = ()
        ) -> list[TranscriptSegment | ServiceError]:
            for _ in range(seed.randrange(6)):
                await asyncio.sleep(0)
            return await super().transcribe(requests)

    async def heard(scheduler: SegmentScheduler, name: str, count: int) -> list[str]:
        found: list[str] = []
        async with contextlib.aclosing(scheduler.submit(some(count, name), OPTIONS)) as results:
            async for result in results:
                found.append(result.text)
                if name in leaving:
                    break
        return found

    async def run() -> None:
        # Once each: with a neighbour's death that makes two of three attempts.
        deadly = {
            (f"{number}.pcm", index): 1
            for number, count in enumerate(counts)
            for index in range(count)
            if seed.random() < 0.1
        }
        engines = [Restless(dies=deadly, streams=number) for number in streams]
        async with scheduling(*engines, batch_size=batch_size) as scheduler:
            names = [f"{number}.pcm" for number in range(len(counts))]
            texts = await asyncio.gather(
                *(heard(scheduler, name, count) for name, count in zip(names, counts, strict=True))
            )
            assert repr(scheduler) == "<SegmentScheduler requests=0 waiting=0>"
        for name, count, found in zip(names, counts, texts, strict=True):
            whole = [f"{name}:{index}" for index in range(count)]
            assert found == (whole[:1] if name in leaving else whole)

    asyncio.run(run())


# --- languages -------------------------------------------------------------------------------------------------------


async def test_a_language_is_heard_in_turn_with_all_other_work() -> None:
    """Asked for past the planner, it would have its model loaded in another's place at any time."""
    engine = FakeEngine()
    engine.gate.clear()
    async with scheduling(engine, batch_size=4) as scheduler:
        transcript = asyncio.create_task(texts(scheduler, 3))
        await engine.asked.wait()
        detection = asyncio.create_task(scheduler.detect_language([segment(0, "b"), segment(1, "b")], OPTIONS))
        await turns_until(lambda: "waiting=" in repr(scheduler) and "waiting=0" not in repr(scheduler))
        assert len(engine.batches) == 1
        engine.gate.set()
        assert await detection == Language("fr", 0.9)
        assert len(await transcript) == 3
    assert [("b", 0), ("b", 1)] in engine.batches, "all its segments together, and nobody else's with them"


async def test_a_language_is_asked_for_again_when_the_engine_dies() -> None:
    """As a segment is: the client need not hear of it."""
    engine = FakeEngine(dies={("b", 0): MAX_ATTEMPTS - 1})
    async with scheduling(engine, batch_size=1) as scheduler:
        assert (await scheduler.detect_language([segment(0, "b")], OPTIONS)).code == "fr"
    assert len(engine.batches) == MAX_ATTEMPTS


async def test_a_recording_that_kills_engines_while_its_language_is_heard_is_given_up() -> None:
    """Else it would kill one after another for ever, and everybody's work with them."""
    engine = FakeEngine(dies={("b", 0): 100})
    async with scheduling(engine, batch_size=1) as scheduler:
        with pytest.raises(WorkerCrashed):
            await scheduler.detect_language([segment(0, "b")], OPTIONS)
        assert len(engine.batches) == MAX_ATTEMPTS
        assert repr(scheduler) == "<SegmentScheduler requests=0 waiting=0>"
