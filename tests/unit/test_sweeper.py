"""What has had its time goes; what a job may still need stays."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import jobs.sweeper
from downloads.media import MediaStore
from downloads.stored_files import Kept
from errors import JobNotFound, StoreUnavailable, UploadGone
from jobs.database import Database
from jobs.leases import Leases
from jobs.model import Job, NewJob, State
from jobs.store import JobStore
from jobs.sweeper import RETRIES_KEPT, UNKNOWN_S, Lifetimes, ids_in, media_to_go, old_uploads, sweep, swept
from jobs.uploads import UploadStore
from reservation import Work

DAY = 86_400.0
NOW = 100 * DAY


# --- what goes -------------------------------------------------------------------------------------------------------


def kept(**sizes_and_days: tuple[int, float]) -> list[Kept]:
    """Files by id: bytes, and how many days ago they came."""
    return [Kept(id, size, NOW - days * DAY) for id, (size, days) in sizes_and_days.items()]


def test_without_limits_everything_stays() -> None:
    assert media_to_go(kept(a=(10**12, 3000)), (), NOW, Lifetimes()) == []


def test_media_past_their_age_go() -> None:
    files = kept(old=(1, 8), older=(1, 9), young=(1, 7))
    assert media_to_go(files, (), NOW, Lifetimes(media_ttl_s=7 * DAY)) == ["older", "old"]


def test_the_oldest_go_until_the_others_are_within_the_quota() -> None:
    files = kept(new=(40, 1), newest=(40, 0), oldest=(10, 3), old=(30, 2))
    assert media_to_go(files, (), NOW, Lifetimes(media_quota_bytes=120)) == []
    assert media_to_go(files, (), NOW, Lifetimes(media_quota_bytes=119)) == ["oldest"]
    assert media_to_go(files, (), NOW, Lifetimes(media_quota_bytes=80)) == ["oldest", "old"]


def test_what_went_for_its_age_leaves_room_in_the_quota() -> None:
    files = kept(past=(50, 9), old=(50, 2), new=(50, 1))
    assert media_to_go(files, (), NOW, Lifetimes(media_ttl_s=7 * DAY, media_quota_bytes=100)) == ["past"]


def test_media_that_jobs_name_stay_and_count() -> None:
    """A job that waits for hours must find the file that was there when it was handed in."""
    files = kept(named=(50, 9), old=(50, 2), new=(50, 1))
    limits = Lifetimes(media_ttl_s=7 * DAY, media_quota_bytes=100)
    assert media_to_go(files, {"named"}, NOW, limits) == ["old"]


def of(owner: str, *files: Kept) -> list[Kept]:
    return [dataclasses.replace(file, owner=owner) for file in files]


def test_over_the_quota_it_is_who_has_most_that_loses() -> None:
    """However old the others' files are; of those that are alike, the oldest go, in turns."""
    flood = of("flood", *kept(f1=(40, 3), f2=(40, 2), f3=(40, 1)))
    small = of("small", *kept(s1=(20, 9), s2=(20, 8)))
    limits = Lifetimes(media_quota_bytes=100)
    assert media_to_go([*flood, *small], (), NOW, limits) == ["f1", "f2"]
    assert media_to_go([*flood, *small], (), NOW, Lifetimes(media_quota_bytes=30)) == ["f1", "f2", "s1", "f3"]
    assert media_to_go([*flood, *small], {"f1"}, NOW, limits) == ["f2", "f3"], "what is needed stays"


def test_whose_jobs_name_all_it_has_pushes_nobody_out() -> None:
    """Else whoever has most need only queue jobs to keep it, and those who have less would make the room."""
    flood = of("flood", *kept(f1=(40, 3), f2=(40, 2), f3=(40, 1)))
    small = of("small", *kept(s1=(30, 9), s2=(30, 8)))
    limits = Lifetimes(media_quota_bytes=50)
    assert media_to_go([*flood, *small], {"f1", "f2", "f3"}, NOW, limits) == []
    assert media_to_go([*flood, *small], {"f2", "f3"}, NOW, limits) == ["f1"], "no more than what it may lose"
    assert media_to_go([*flood, *small], {"f3"}, NOW, limits) == ["f1", "f2", "s1"], "its turn comes when it has most"
    assert media_to_go([*flood, *small], (), NOW, limits) == ["f1", "f2", "s1", "f3"], "its jobs are over"


def test_all_who_sweep_choose_the_same_of_files_of_one_moment() -> None:
    """Else two processes would remove twice as much as the quota asks."""
    files = kept(a=(1, 1), b=(1, 1), c=(1, 1))
    chosen = {
        tuple(media_to_go(order, (), NOW, Lifetimes(media_quota_bytes=2))) for order in itertools.permutations(files)
    }
    assert chosen == {("a",)}


def test_a_file_is_known_by_its_id_its_name_and_its_path() -> None:
    assert ids_in(["a" * 32, "b" * 32 + ".mp3", "/data/media/" + "c" * 32 + ".m4a"]) == {"a" * 32, "b" * 32, "c" * 32}


def test_an_upload_that_has_just_come_is_no_stray() -> None:
    """Its job is written down a moment later."""
    assert old_uploads([("new", NOW - UNKNOWN_S + 1), ("old", NOW - UNKNOWN_S - 1)], NOW) == ["old"]


# --- and goes --------------------------------------------------------------------------------------------------------


@dataclass
class House:
    """A data folder with jobs, uploads and media, and a clock for each of the jobs and the media."""

    root: Path
    now: float = NOW
    made_at: float = NOW
    database: Database = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(f"sqlite:///{self.root / 'jobs.db'}", clock=lambda: self.now)
        self.database.migrate()
        self.store = JobStore(self.database, lease_s=60)
        self.leases = Leases(self.database, "test")
        self.uploads = UploadStore(self.root / "uploads")
        self.media = MediaStore(self.root / "media", clock=lambda: datetime.fromtimestamp(self.made_at, UTC))

    def uploaded(self) -> str:
        (self.root / "sent").write_bytes(b"sound")
        return self.uploads.keep(self.root / "sent")

    def stored(self, size: int = 5) -> str:
        place = self.media.new_place(".mp3")
        place.write_bytes(b"x" * size)
        return self.media.add(place, owner="key", name="talk.mp3").id

    def job(self, state: State, **source: Any) -> Job:
        """A new job in that state. None may be queued before, unless this one is or is cancelled."""
        self.now += 1
        job, _ = self.store.submit(NewJob(Work.TRANSCRIPTION, "key", 0, source, {}))
        if state is State.QUEUED:
            return job
        if state is State.CANCELLED:
            return self.store.cancel(job.id)
        claimed = self.leases.claim([Work.TRANSCRIPTION])
        assert claimed is not None
        assert claimed.id == job.id
        if state is not State.RUNNING:
            result = "{}" if state is State.SUCCEEDED else None
            error = {"code": "X", "status": 500, "message": ""} if state is State.FAILED else None
            self.leases.end(claimed, state, result=result, error=error)
        return claimed

    def swept(self, lifetimes: Lifetimes, later_s: float = 0.0) -> dict[str, int]:
        """*later_s*: by the clock of files, whose times the file system gives."""
        return swept(self.store, self.uploads, self.media, lifetimes, lambda: time.time() + later_s)

    def has_upload(self, name: str) -> bool:
        with contextlib.suppress(UploadGone):
            self.uploads.check(name)
            return True
        return False


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.database.close()


def test_jobs_that_have_long_been_over_are_forgotten(house: House) -> None:
    old = [house.job(state) for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)]
    house.now += 1000
    young = house.job(State.SUCCEEDED)
    assert house.swept(Lifetimes(result_ttl_s=999))["jobs"] == 3
    assert [job.id for job in house.store.listed()] == [young.id]
    for job in old:
        with pytest.raises(JobNotFound):
            house.store.get(job.id)


def test_more_jobs_than_go_at_once_are_all_forgotten(house: House) -> None:
    for _ in range(101):
        house.job(State.CANCELLED)
    house.now += 1000
    assert house.swept(Lifetimes(result_ttl_s=999))["jobs"] == 101


def test_jobs_that_are_not_over_are_never_forgotten(house: House) -> None:
    house.job(State.RUNNING)
    house.job(State.QUEUED)
    house.now += 1000 * DAY
    assert house.swept(Lifetimes(result_ttl_s=1))["jobs"] == 0


def test_without_a_lifetime_jobs_are_kept_for_ever(house: House) -> None:
    house.job(State.SUCCEEDED)
    house.now += 1000 * DAY
    assert house.swept(Lifetimes())["jobs"] == 0


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED])
def test_an_upload_stays_while_its_job_may_be_done_or_tried_again(house: House, state: State) -> None:
    name = house.uploaded()
    house.job(state, upload=name)
    house.swept(Lifetimes(), later_s=UNKNOWN_S + 60)
    assert house.has_upload(name)


def test_the_upload_of_a_job_that_succeeded_goes(house: House) -> None:
    name = house.uploaded()
    house.job(State.SUCCEEDED, upload=name)
    assert house.swept(Lifetimes(), later_s=UNKNOWN_S + 60)["uploads"] == 1
    assert not house.has_upload(name)


def test_a_failed_jobs_upload_goes_with_it(house: House) -> None:
    name = house.uploaded()
    house.job(State.FAILED, upload=name)
    house.now += 1000
    house.swept(Lifetimes(result_ttl_s=999), later_s=UNKNOWN_S + 60)
    assert not house.has_upload(name)


def test_an_upload_of_no_job_goes_after_an_hour(house: House) -> None:
    """A server has died between keeping it and writing its job down."""
    name = house.uploaded()
    house.swept(Lifetimes(), later_s=UNKNOWN_S - 60)
    assert house.has_upload(name)
    house.swept(Lifetimes(), later_s=UNKNOWN_S + 60)
    assert not house.has_upload(name)


def test_each_keys_newest_jobs_that_are_over_keep_their_uploads(house: House) -> None:
    """Who hands in and cancels without end has no more of the disk than for so many; no other key is concerned."""
    theirs = house.uploaded()
    house.store.cancel(house.store.submit(NewJob(Work.TRANSCRIPTION, "other", 0, {"upload": theirs}, {}))[0].id)
    waiting = house.uploaded()
    house.job(State.QUEUED, upload=waiting)
    names = [house.uploaded() for _ in range(RETRIES_KEPT + 3)]
    for name in names:
        house.job(State.CANCELLED, upload=name)
    just_come = house.uploaded()
    assert house.swept(Lifetimes())["uploads"] == 3
    assert [house.has_upload(name) for name in names] == [False] * 3 + [True] * RETRIES_KEPT
    assert all(house.has_upload(name) for name in (theirs, waiting, just_come))


def test_uploads_of_jobs_on_later_pages_stay(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.sweeper, "PAGE", 2)
    names = [house.uploaded() for _ in range(5)]
    for name in names:
        house.job(State.QUEUED, upload=name)
    house.swept(Lifetimes(), later_s=UNKNOWN_S + 60)
    assert all(house.has_upload(name) for name in names)


def test_a_job_forgotten_between_two_pages_costs_no_other_its_upload(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process sweeps at the same time."""
    monkeypatch.setattr(jobs.sweeper, "PAGE", 1)
    name = house.uploaded()
    house.job(State.QUEUED, upload=name)
    house.job(State.CANCELLED)
    house.now += 1000

    class Swept(JobStore):
        def listed(self, *arguments: Any, **named: Any) -> list[Job]:
            page = super().listed(*arguments, **named)
            self.forget(999)
            return page

    swept(Swept(house.database, lease_s=60), house.uploads, house.media, Lifetimes(), lambda: time.time() + 2 * DAY)
    assert house.has_upload(name)
    assert [job.state for job in house.store.listed()] == [State.QUEUED]


def test_media_go_by_age_unless_a_job_will_read_them(house: House) -> None:
    ids = {state: house.stored() for state in reversed(State)}
    for state, media_id in ids.items():
        house.job(state, file=media_id)
    by_path = house.stored()
    house.job(State.QUEUED, file=str(house.media.get(by_path, "key").path))
    house.swept(Lifetimes(media_ttl_s=DAY))
    left = {media.id for media in house.media.list("key")}
    assert left == {ids[State.QUEUED], ids[State.RUNNING], by_path}


def test_media_go_by_quota(house: House) -> None:
    ids = []
    for _ in range(3):
        house.made_at += 1
        ids.append(house.stored(size=100))
    assert house.swept(Lifetimes(media_quota_bytes=250))["media"] == 1
    assert [media.id for media in house.media.list("key")] == ids[:0:-1]


def test_media_that_somebody_else_has_swept_meanwhile_are_no_failure(house: House) -> None:
    first, second = house.stored(), house.stored()

    class Raced(MediaStore):
        def remove(self, media_id: str) -> None:
            house.media.remove(media_id)
            super().remove(media_id)

    raced = Raced(house.media.root)
    assert swept(house.store, house.uploads, raced, Lifetimes(media_ttl_s=DAY))["media"] == 2
    assert house.media.list("key") == []
    assert first != second


def test_what_cannot_be_swept_leaves_the_rest_swept(house: House) -> None:
    """Storage that is away must not keep the jobs from being forgotten, nor end the sweeping."""
    stored = house.stored()

    class Away(UploadStore):
        def names(self) -> Iterator[tuple[str, float]]:
            raise StoreUnavailable

    gone = swept(house.store, Away(house.root / "away"), house.media, Lifetimes(media_ttl_s=DAY))
    assert "uploads" not in gone
    assert gone["media"] == 1
    assert stored not in {media.id for media in house.media.list("key")}


async def test_sweeping_goes_on(house: House) -> None:
    """Also after a round that failed."""
    looks = 0
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Failing(UploadStore):
        def names(self) -> Iterator[tuple[str, float]]:
            nonlocal looks
            looks += 1
            if looks == 3:
                loop.call_soon_threadsafe(enough.set)
            raise OSError("the folder is away")

    failing = Failing(house.root / "uploads")
    sweeping = asyncio.create_task(sweep(house.store, failing, house.media, Lifetimes(), every_s=0))
    try:
        await enough.wait()
        assert not sweeping.done()
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
