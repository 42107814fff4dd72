"""All engines as one: weights found once, and what they tell together."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from errors import ModelUnavailable, NotReady
from transcription.placement import Placement, Weights
from transcription.protocol import Language
from transcription.replicas import Replicas, WeightsFinder

FRENCH = Language("fr", 0.9)


class Search:
    """Finds weights in a folder of the model's name. Can be told to hold, or to fail."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.searched: list[str] = []
        self.failure: Exception | None = None
        self.release = threading.Event()
        self.release.set()

    def __call__(self, model: str) -> Weights:
        self.searched.append(model)
        self.release.wait(10)  # a test that fails never releases it, and the loop waits for its threads
        if self.failure:
            raise self.failure
        path = self._folder / model
        path.mkdir(exist_ok=True)
        return Weights(path, 7)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


async def begun(search: Search) -> None:
    """Let the loop run until the search has begun; the test's own time limit ends it otherwise."""
    while not search.searched:  # noqa: ASYNC110 - a thread sends no events
        await asyncio.sleep(0)


# --- weights ---------------------------------------------------------------------------------------------------------


async def test_twenty_that_ask_at_once_cause_one_search(search: Search, tmp_path: Path) -> None:
    """A download takes minutes, and twenty of them would fill the disk."""
    find = WeightsFinder(search)
    search.release.clear()
    callers = [asyncio.create_task(find("base")) for _ in range(20)]
    await begun(search)
    search.release.set()
    assert set(await asyncio.gather(*callers)) == {Weights(tmp_path / "base", 7)}
    await find("base")
    assert search.searched == ["base"]


async def test_each_model_is_searched_on_its_own(search: Search, tmp_path: Path) -> None:
    """One that is being fetched does not hold up the others."""
    find = WeightsFinder(search)
    search.release.clear()
    first = asyncio.create_task(find("base"))
    await begun(search)
    second = asyncio.create_task(find("tiny"))
    while len(search.searched) < 2:  # noqa: ASYNC110 - a thread sends no events
        await asyncio.sleep(0)
    search.release.set()
    assert [(await one).path.name for one in (first, second)] == ["base", "tiny"]


async def test_the_first_caller_may_hang_up_and_the_others_still_get_it(search: Search) -> None:
    """What it began is theirs too."""
    find = WeightsFinder(search)
    search.release.clear()
    first, second = asyncio.create_task(find("base")), asyncio.create_task(find("base"))
    await begun(search)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    search.release.set()
    assert (await second).bytes == 7
    assert search.searched == ["base"]


async def test_what_all_who_asked_have_left_is_still_found(search: Search) -> None:
    """A download goes on: the next who asks has it."""
    find = WeightsFinder(search)
    search.release.clear()
    first = asyncio.create_task(find("base"))
    await begun(search)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    search.release.set()
    await find("base")
    assert search.searched == ["base"]


async def test_a_failed_search_is_everybodys_and_is_tried_again(search: Search) -> None:
    """The network may be back; an old failure must not be the answer for ever."""
    find = WeightsFinder(search)
    search.failure = ModelUnavailable()
    failures = await asyncio.gather(*(find("base") for _ in range(3)), return_exceptions=True)
    assert failures == [search.failure] * 3
    assert search.searched == ["base"]
    search.failure = None
    assert (await find("base")).bytes == 7
    assert search.searched == ["base", "base"]


async def test_weights_that_were_removed_are_searched_again(search: Search, tmp_path: Path) -> None:
    """Somebody made room on the disk: the folder that was found once tells nothing."""
    find = WeightsFinder(search)
    await find("base")
    (tmp_path / "base").rmdir()
    assert (await find("base")).path.is_dir()
    assert search.searched == ["base", "base"]


# --- engines ---------------------------------------------------------------------------------------------------------


class FakeEngine:
    """Hears French, or dies as often as it is told to."""

    def __init__(self, *loaded: str, up: bool = True, calls: int = 0, deaths: int = 0, resident_bytes: int = 0) -> None:
        self.up = self.ready = up
        self.failure: str | None = None
        self.calls = calls
        self.deaths = deaths
        self.resident_bytes = resident_bytes
        self.heard: list[str] = []
        self._loaded = list(loaded)

    def loaded(self) -> list[str]:
        return self._loaded


def replicas(search: Search, *engines: FakeEngine) -> Replicas:
    made = Replicas(search, [Placement()], model="base")
    made.engines[:] = cast(Any, engines)
    return made


def test_ready_when_one_engine_is(search: Search) -> None:
    """The others come up later, or not at all; why, is told only where none is ready."""
    first, second = FakeEngine(up=False), FakeEngine(up=False)
    first.failure, second.failure = None, "The model is not here."
    together = replicas(search, first, second)
    with pytest.raises(NotReady, match=r"The model is not here\."):
        together.check_ready()
    first.ready = True
    together.check_ready()


def test_engines_are_known_by_the_device_that_the_sizing_names(search: Search) -> None:
    """Smaller batches are kept by GPU, "cuda:1"; a transcript tells only what kind of device it was."""
    together = Replicas(search, [Placement("cuda:0"), Placement("cuda:1")], model="tiny.en")

    assert [engine.device for engine in together.engines] == ["cuda:0", "cuda:1"]
    assert together.device == "cuda"


def test_every_model_in_memory_is_named_once(search: Search) -> None:
    """For GET /models it does not matter which engine has it."""
    assert replicas(search, FakeEngine("a", "b"), FakeEngine("c", "a")).loaded() == ["a", "b", "c"]


def test_the_memory_of_all_engines_is_told_together(search: Search) -> None:
    """It is held against what was planned for all of them."""
    assert replicas(search, FakeEngine(resident_bytes=300), FakeEngine(resident_bytes=20)).resident_bytes == 320
