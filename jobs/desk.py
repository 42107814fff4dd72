"""Where jobs are handed in and asked for: what the HTTP side knows of them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from admission import AdmissionController
from downloads.stored_files import Media
from errors import IdempotencyConflict, JobCancelled, NotRetryable, QueueFull, QuotaUsed, UploadGone, raised_again
from jobs.bells import Bells, heard_within
from jobs.crew import TRANSCRIPT, Outcome
from jobs.journal import Told, told_by
from jobs.leases import Leases
from jobs.model import Job, NewJob, State
from jobs.runner import Runner
from jobs.store import JobStore
from jobs.uploads import Uploads
from reservation import OF_AUDIO, Reservation
from undisturbed import to_its_end, undisturbed

PAGE = 100
"""Events that are read at once."""

LOOK_S = 1.0
"""How often a job that others do is looked at by those who wait for it."""

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Desk:
    """Takes jobs in, tells of them, ends them. Does none itself: the runner here does, or workers elsewhere."""

    def __init__(
        self,
        store: JobStore,
        leases: Leases,
        uploads: Uploads,
        media: Media,
        bells: Bells,
        runner: Runner | None,
        *,
        publish: Callable[[Sequence[Job]], None] | None = None,
        admission: AdmissionController | None = None,
    ) -> None:
        """*runner*: None where only others do jobs. *publish*: tells those others; quick, and never raises.
        *admission*: knows what audio each key may have in a day; None: any."""
        self.store = store
        self.bells = bells
        self._leases = leases
        self._uploads = uploads
        self._media = media
        self._runner = runner
        self._publish = publish
        self._admission = admission
        if runner is not None:
            runner.tell = self.tell

    # --- handing in ------------------------------------------------------------------------------------------------

    async def submit(self, new: NewJob, upload: Path | None) -> Job:
        """Write the job down, with what its caller has sent; it is safe when this returns.

        Raises IdempotencyConflict, QueueFull, QuotaUsed, StorageFull, StoreUnavailable.
        """
        kept = None if upload is None else await asyncio.to_thread(self._uploads.keep, upload)
        if kept is not None:
            new = dataclasses.replace(new, source=new.source | {"upload": kept})
        try:
            job, created = await self._counted([new], partial(self.store.submit, new))
        except (IdempotencyConflict, QueueFull, QuotaUsed):
            await self._forget(kept)
            raise
        # NOTE: after any other error the job may be there all the same; the sweeper knows better later.
        if created:
            self.tell([job])
        else:
            await self._forget(kept)
        return job

    async def submit_many(self, new: Sequence[NewJob]) -> list[Job]:
        """As `submit`, for a batch of what needs no upload: all or none, in order."""
        jobs, created = await self._counted(new, partial(self.store.submit_many, new))
        if created:
            self.tell(jobs)
        return jobs

    async def _counted(self, new: Sequence[NewJob], submit: Callable[..., tuple[T, bool]]) -> tuple[T, bool]:
        """What *submit* makes of one key's jobs. Their audio counts from before that: no call is to have it, too.

        It is given back unless they are known to be written: where they are all the same, the store counts them to the
        next jobs.
        """
        if self._admission is None:
            return await asyncio.to_thread(submit)
        key, audio_s = new[0].key, sum(one.size or 0.0 for one in new if one.work in OF_AUDIO)
        most_s = self._admission.audio_for_jobs_s(key)
        charge = partial(self._admission.keys.charge, key, of_job=True)
        charge(audio_s)

        async def settled() -> tuple[T, bool]:
            created = False
            try:
                made, created = await asyncio.to_thread(submit, audio_s=most_s)
            finally:
                if not created:
                    charge(-audio_s)
            return made, created

        # NOTE: a caller who leaves ends no thread: what that writes is done, and charged.
        return await to_its_end(settled())

    async def _forget(self, upload: str | None) -> None:
        if upload is not None:
            await asyncio.to_thread(self._uploads.remove, upload)

    async def attend(
        self,
        new: NewJob,
        upload: Path | None,
        folder: Path,
        place: Reservation,
        on_told: Callable[[Told], None] = lambda told: None,
    ) -> Outcome:
        """Do the job while its caller waits; or wait for the one that the same idempotency key has made before.
        *on_told*: hears of what is heard, as it is.

        Cancelling ends a job that was made here. Raises what the work raises, and what `submit` does.
        """
        if self._runner is None:
            return await self._attend_elsewhere(new, upload, on_told)
        attended = dataclasses.replace(new, attended=True)
        job, created = await self._written(attended)
        if not created:
            return await self.outcome(await self.finished(job.id, on_told))
        return await self._runner.attend(job, upload, folder, place, on_told)

    async def _written(self, attended: NewJob) -> tuple[Job, bool]:
        """As the store's `submit`, for this process; a caller who leaves meanwhile leaves no job behind."""
        writing = asyncio.ensure_future(asyncio.to_thread(self.store.submit, attended, self._leases.owner))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            job, created = await undisturbed(writing)
            if created:
                ending = asyncio.to_thread(self._leases.end, job, State.CANCELLED)
                await undisturbed(asyncio.ensure_future(ending))
            raise

    async def _attend_elsewhere(self, new: NewJob, upload: Path | None, on_told: Callable[[Told], None]) -> Outcome:
        job = await self.submit(new, upload)
        try:
            return await self.outcome(await self.finished(job.id, on_told))
        except asyncio.CancelledError:
            # NOTE: another caller may wait for a job that an idempotency key names.
            if new.idempotency_key is None:
                await undisturbed(asyncio.ensure_future(self.cancel(job.id)))
            raise

    def tell(self, jobs: Sequence[Job]) -> None:
        """Those who do jobs hear of *jobs*, and so does whoever listens for one of them."""
        for job in jobs:
            self.bells.ring(job.id)
        if self._runner is not None:
            self._runner.wake()
        if self._publish is not None:
            self._publish([job for job in jobs if job.state is State.QUEUED])

    def close(self) -> None:
        """Take no more work up. What is at work goes on."""
        if self._runner is not None:
            self._runner.drain()

    # --- asking ----------------------------------------------------------------------------------------------------

    async def finished(self, job_id: str, on_told: Callable[[Told], None] | None = None) -> Job:
        """The job, when it is over. *on_told*: hears of what it has heard, as far as it is written down. Raises
        JobNotFound."""
        told = 0
        with self.bells.listening(job_id) as news:
            while True:
                job = await asyncio.to_thread(self.store.get, job_id)
                while on_told is not None and told < job.events:
                    page = await asyncio.to_thread(self.store.events_of, job_id, told, PAGE)
                    if not page:
                        break
                    told = page[-1].number
                    for one in map(told_by, page):
                        if one is not None:
                            on_told(one)
                if job.state.is_over:
                    return job
                await heard_within(news, LOOK_S)

    async def outcome(self, job: Job, key: str | None = None) -> Outcome:
        """What a job has come to. Raises the error that ended it, JobCancelled, JobNotOver, MediaNotFound."""
        if job.error is not None:
            raise raised_again(job.error)
        if job.state is State.CANCELLED:
            raise JobCancelled
        _, body = await asyncio.to_thread(self.store.result, job.id, key)
        if job.makes_file:
            return await asyncio.to_thread(self._media.get, json.loads(body)["file"], job.key)
        return await asyncio.to_thread(TRANSCRIPT.validate_json, body)

    # --- ending ----------------------------------------------------------------------------------------------------

    async def cancel(self, job_id: str, key: str | None = None) -> Job:
        """End that job: at once where it waits, within a batch where it is at work. Raises JobNotFound."""
        job = await asyncio.to_thread(self.store.cancel, job_id, key)
        if self._runner is not None:
            self._runner.stop(job_id)
        self.bells.ring(job_id)
        return job

    async def retry(self, job_id: str, key: str | None = None) -> Job:
        """Queue a failed or cancelled job once more. Raises JobNotFound, NotRetryable, QueueFull, UploadGone."""
        job = await asyncio.to_thread(self.store.get, job_id, key)
        if not any(job.source.get(name) for name in ("upload", "file", "url")):
            # Its caller waited for it: what it sent was not kept.
            raise UploadGone
        if job.state is State.SUCCEEDED:
            # Its upload is gone, too, but that is not why.
            raise NotRetryable
        await asyncio.to_thread(self._uploads.check, job.source.get("upload"))
        job = await asyncio.to_thread(self.store.retry, job_id, key)
        self.tell([job])
        return job
