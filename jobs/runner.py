"""Does jobs: claims those that wait as there is room for them, keeps their leases, writes down how they end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, Self

import structlog

import telemetry
from admission import AdmissionController
from disk import Disk
from errors import ServiceError, ShuttingDown, StorageFull, StoreUnavailable, told_of
from jobs.bells import Bells, heard_within
from jobs.crew import TRANSCRIPT, Crew, Outcome, written
from jobs.journal import JobJournal, Told
from jobs.leases import HEARTBEATS, LeaseLost, Leases
from jobs.model import MAX_ATTEMPTS, Event, Job, State
from jobs.sharing import Sharing
from jobs.store import JobStore
from jobs.uploads import Uploads
from reservation import OF_AUDIO, Reservation, Work
from transcription.core import Transcript
from undisturbed import to_its_end, undisturbed
from workfolder import private_folder

FLUSH_S = 0.5
"""How often what running jobs tell is written down: what a crash may lose of them, and how far a listener lags."""
LOOK_S = 2.0
"""How often jobs that others cancel are looked for."""
POLL_S = 5.0
"""How often jobs are looked for of which nobody told."""
WRITE_AGAIN_S = 1.0
"""A database that is away is tried again so often, for as long as the lease may last."""

log = structlog.get_logger(__name__)

Ending = Callable[[list[tuple[str, dict[str, Any]]], dict[str, Any]], object]
"""Writes down how a job ended, with what it has told last."""


class Why(Enum):
    """Why a running job's task was cancelled."""

    CANCELLED = auto()
    """Somebody asked for it, or its caller hung up."""
    LOST = auto()
    """It is another owner's by now."""
    STOPPING = auto()
    """This server stops: somebody else goes on with it."""


@dataclass(eq=False)
class _Running:
    """One job at work here."""

    job: Job
    journal: JobJournal
    task: asyncio.Task[Any]
    place: Reservation | None = None
    why: Why = Why.CANCELLED
    begun: bool = True
    """Whether its task has run. NOTE: one that is cancelled before that never does, and nobody would end its job."""
    stopped: bool = False
    ending: bool = False
    """How it ended is being written down: too late to stop it, and the store may say already that it is over."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One transaction at a time: what a job tells is told in order."""

    @property
    def is_fetching(self) -> bool:
        """Whether a link is transcribed that has not come to the line yet: what it waits for is a download."""
        has_come = self.place is not None and self.place.line_entered is not None
        return self.job.work in OF_AUDIO and "url" in self.job.source and not has_come

    def stop(self, why: Why) -> None:
        if not self.task.done() and not self.ending:
            self.why, self.stopped = why, True
            if self.begun:
                self.task.cancel()


class Runner:
    """Does this process's jobs: those it claims, and those whose callers wait here. A context manager."""

    def __init__(
        self,
        store: JobStore,
        leases: Leases,
        crew: Crew,
        uploads: Uploads,
        admission: AdmissionController,
        bells: Bells,
        disk: Disk,
        *,
        work_folder: Path,
        poll_s: float,
        grace_s: float,
        on_transcript: Callable[[Transcript], None] = lambda transcript: None,
        others: Callable[[], int] | None = None,
        split_above_s: float = 0.0,
    ) -> None:
        """*poll_s*: how often jobs are looked for that nobody told of. *grace_s*: what runs at a stop may run on so
        long. *others*: how many more do jobs, asked in a thread; recordings above *split_above_s* are shared with them.
        """
        self._store = store
        self._leases = leases
        self._crew = crew
        self._uploads = uploads
        self._admission = admission
        self._bells = bells
        self._disk = disk
        self._others = others if split_above_s else None
        self._split_above_s = split_above_s
        self.tell: Callable[[Sequence[Job]], None] = lambda jobs: None
        """Hears of jobs that are made here; the desk's."""
        self._work_folder = work_folder
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._on_transcript = on_transcript
        self._running: dict[str, _Running] = {}
        self._news = asyncio.Event()
        self._drained_at: float | None = None
        self._loops: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Runner {self._leases.owner} running={len(self._running)}>"

    async def __aenter__(self) -> Self:
        for loop in (self._claim_all(), self._flush_all(), self._keep_all()):
            self._loops.append(asyncio.create_task(loop, name="jobs"))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let what runs run on for the rest of the grace, then give it back."""
        self.drain()
        tasks = [running.task for running in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, (self._drained_at or 0.0) + self._grace_s - time.monotonic()))
        for running in list(self._running.values()):
            running.stop(Why.STOPPING)
        await asyncio.gather(*tasks, return_exceptions=True)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    # --- what others ask of it -------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be a job to claim, or room for one."""
        self._news.set()

    def stop(self, job_id: str) -> None:
        """Stop that job, where it runs here."""
        if running := self._running.get(job_id):
            running.stop(Why.CANCELLED)

    def drain(self) -> None:
        """Claim nothing more."""
        if self._drained_at is None:
            self._drained_at = time.monotonic()

    @property
    def running(self) -> list[Job]:
        return [running.job for running in self._running.values()]

    async def attend(
        self,
        job: Job,
        upload: Path | None,
        folder: Path,
        place: Reservation,
        on_told: Callable[[Told], None] = lambda told: None,
    ) -> Outcome:
        """Do *job*, whose caller waits here with *place* at the gate, and write down how it ends. *on_told*: hears of
        what is heard, as it is.

        Cancelling ends it as cancelled. Raises what the work raises.
        """
        task = asyncio.current_task()
        assert task is not None
        with self._counted(_Running(job, self._journal(job, on_told=on_told), task, place)) as running:
            return await self._attempt(running, self._crew.do(job, upload, folder, place, running.journal))

    # --- claiming --------------------------------------------------------------------------------------------------

    async def _claim_all(self) -> None:
        """Claim jobs as long as there is room, for ever."""
        while True:
            self._news.clear()
            try:
                while self._drained_at is None and (works := self._works_with_room()):
                    self._disk.check_room()
                    job = await asyncio.to_thread(self._leases.claim, works, links=self._has_room_for_links())
                    if job is None:
                        break
                    self._begin(job)
            except (StoreUnavailable, StorageFull) as error:
                log.warning("no job can be begun", code=error.code)
            except Exception:
                # NOTE: nobody awaits this loop, nor those below, before the server stops: none may end silently.
                log.exception("no job can be begun")
            await heard_within(self._news, self._poll_s)

    def _works_with_room(self) -> list[Work]:
        """One job of a kind waits at the gate, taking its turn among the calls; all others wait in the store."""
        # NOTE: a link may take half an hour to come, and holds up nobody but other links.
        claimed = [one for one in self._running.values() if not one.job.attended and not one.is_fetching]
        waiting = {one.job.work for one in claimed if one.place is None or not one.place.at_work}
        at_work = [one.job.work for one in claimed]
        return [
            work
            for work, slots in self._admission.bounds.slots.items()
            if work not in waiting and at_work.count(work) < slots
        ]

    def _has_room_for_links(self) -> bool:
        """Whether one more can be fetched for its transcription."""
        fetching = sum(one.is_fetching and not one.job.attended for one in self._running.values())
        return fetching < self._admission.bounds.slots.get(Work.DOWNLOAD, 0)

    def _begin(self, job: Job) -> None:
        async def work() -> None:
            await self._work(running)

        running = _Running(job, JobJournal(), asyncio.create_task(work(), name=f"job {job.id}"), begun=False)
        # From now on, so that it has its slot.
        self._running[job.id] = running
        self._bells.ring(job.id)

    async def _work(self, running: _Running) -> None:
        """A claimed job, from its claim to its end."""
        job = running.job
        try:
            with self._counted(running), telemetry.request_bound(job.id):
                await self._attempt(running, self._claimed(running))
                await asyncio.to_thread(self._remove_upload, job)
        except ServiceError as error:
            log.info("job ended", code=error.code, job=job.id)
        except Exception:
            log.exception("job failed", job=job.id)

    def _remove_upload(self, job: Job) -> None:
        """What was sent for a job that has succeeded is needed no more. What stays here, the sweeper removes."""
        upload = job.source.get("upload")
        # A part's is its whole's; and whether this attempt was the job's last one, only the store can say.
        if upload is None or job.parent_id is not None:
            return
        with contextlib.suppress(ServiceError, OSError):
            if self._store.get(job.id).state is State.SUCCEEDED:
                self._uploads.remove(upload)

    async def _claimed(self, running: _Running) -> Outcome:
        """The work of a job whose caller does not wait."""
        running.begun = True
        if running.stopped:
            raise asyncio.CancelledError
        job = running.job
        past = await asyncio.to_thread(self._store.history_of, job.id) if job.attempt > 1 else ()
        running.journal = self._journal(job, past)
        # What an earlier attempt has found out of a link counted then; a part is counted in its whole.
        charged = math.inf if job.parent_id is not None else job.size or 0.0
        with (
            private_folder(self._work_folder) as folder,
            self._admission.reserve(
                job.work, job.key, job.priority, accepted=True, charged=charged, on_granted=self.wake
            ) as running.place,
        ):
            async with self._uploads.opened(job.source.get("upload")) as upload:
                return await self._crew.do(job, upload, folder, running.place, running.journal)

    def _journal(
        self, job: Job, past: Sequence[Event] = (), on_told: Callable[[Told], None] = lambda told: None
    ) -> JobJournal:
        sharing = None
        # A part of a link would have to fetch it again.
        if self._others is not None and not job.attended and job.parent_id is None and "url" not in job.source:
            sharing = Sharing(job, self._store, self._bells, self._others, self.tell)
        journal = JobJournal(
            past,
            only=job.source.get("spans"),
            reuse=partial(self._same, job) if job.reuse else None,
            sharing=sharing,
            split_above_s=self._split_above_s,
            on_told=on_told,
        )
        # A transcript that is no job's result stands in for nobody's.
        journal.keeps = not job.makes_file
        return journal

    async def _same(self, job: Job, digest: str) -> Transcript | None:
        """The transcript of these samples that this key has had, or is just having, made with the same options."""
        while twin := await asyncio.to_thread(self._leases.same_as, job, digest):
            if twin.state is State.SUCCEEDED:
                _, body = await asyncio.to_thread(self._store.result, twin.id)
                return await asyncio.to_thread(TRANSCRIPT.validate_json, body)
            with self._bells.listening(twin.id) as news:
                await heard_within(news, LOOK_S)
        return None

    @contextlib.contextmanager
    def _counted(self, running: _Running) -> Iterator[_Running]:
        self._running[running.job.id] = running
        try:
            yield running
        finally:
            self._running.pop(running.job.id, None)
            self._bells.ring(running.job.id)
            self.wake()

    # --- the work, and how it ends ---------------------------------------------------------------------------------

    async def _attempt(self, running: _Running, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Do the work and write down how it ended. Raises what the work raises."""
        job = running.job
        try:
            outcome = await work
        except BaseException as error:
            if ending := self._ending(running, error):
                await undisturbed(asyncio.ensure_future(self._write(running, ending)))
            raise
        timings_s: dict[str, float] = {}
        if isinstance(outcome, Transcript):
            self._on_transcript(outcome)
            timings_s = outcome.timings_s
        running.journal.note(timings=timings_s)

        def commit(told: list[tuple[str, dict[str, Any]]], values: dict[str, Any]) -> None:
            self._leases.end(job, State.SUCCEEDED, told, values, result=written(outcome))

        # NOTE: cancelled before it was written, the job would run for ever, with nobody at it.
        await to_its_end(self._write(running, commit))
        return outcome

    def _ending(self, running: _Running, error: BaseException) -> Ending | None:
        """How an attempt that was ended by *error* is written down; None: not at all."""
        job, leases = running.job, self._leases
        stopping = isinstance(error, ShuttingDown) or running.why is Why.STOPPING
        if isinstance(error, asyncio.CancelledError | ShuttingDown):
            if running.why is Why.LOST:
                return None
            if stopping and not job.attended:
                return partial(leases.give_back, job)
            return partial(leases.end, job, State.CANCELLED)
        if isinstance(error, StorageFull | StoreUnavailable) and not job.attended and job.attempt < MAX_ATTEMPTS:
            # It is not the job's fault, and may be over soon.
            return partial(leases.give_back, job)
        told = told_of(error if isinstance(error, ServiceError) else ServiceError())
        return partial(leases.end, job, State.FAILED, error=told)

    async def _write(self, running: _Running, ending: Ending) -> None:
        """Write down how it ended; a database that is away may come back while the lease lasts."""
        give_up_at = time.monotonic() + self._leases.lease_s
        async with running.writing:
            running.ending = True
            told, values = running.journal.take()
            while True:
                try:
                    await asyncio.to_thread(ending, told, values)
                    return
                except LeaseLost:
                    self._lost(running)
                    return
                except (StoreUnavailable, StorageFull) as error:
                    log.error("a job's end cannot be written down", job=running.job.id, code=error.code)
                    if time.monotonic() > give_up_at:
                        return
                await asyncio.sleep(WRITE_AGAIN_S)

    def _lost(self, running: _Running) -> None:
        """Somebody else has the job by now: what is done of it here counts for nothing."""
        log.warning("this attempt is not the job's any more", job=running.job.id, attempt=running.job.attempt)
        running.stop(Why.LOST)

    # --- while it lasts --------------------------------------------------------------------------------------------

    async def _flush_all(self) -> None:
        """Write down what running jobs tell, for ever."""
        while True:
            await asyncio.sleep(FLUSH_S)
            for running in list(self._running.values()):
                await self._flush(running)

    async def _flush(self, running: _Running) -> None:
        async with running.writing:
            told, values = running.journal.take()
            if not told and not values:
                return
            try:
                await asyncio.to_thread(self._leases.advance, running.job, told, values)
            except LeaseLost:
                self._lost(running)
            except (StoreUnavailable, StorageFull) as error:
                log.warning("what a job tells cannot be written down", job=running.job.id, code=error.code)
                running.journal.put_back(told, values)
            except Exception:
                log.exception("what a job tells is lost", job=running.job.id)
            else:
                self._bells.ring(running.job.id)

    async def _keep_all(self) -> None:
        """Keep the leases, and stop what others cancel, for ever."""
        kept_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._running:
                continue
            try:
                if time.monotonic() - kept_at >= self._leases.lease_s / HEARTBEATS:
                    kept_at = time.monotonic()
                    asked = list(self._running.values())
                    held = await asyncio.to_thread(self._leases.beat, [running.job.id for running in asked])
                    for running in asked:
                        if held.get(running.job.id) != running.job.attempt and not running.ending:
                            self._lost(running)
                for job_id in await asyncio.to_thread(self._leases.cancelled):
                    self.stop(job_id)
            except (StoreUnavailable, StorageFull) as error:
                log.warning("leases cannot be kept", code=error.code)
            except Exception:
                log.exception("leases cannot be kept")
