"""What the parts are told of each other where they are put together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import wiring
from access.keyring import Keys
from errors import QuotaUsed
from jobs.crew import OPTIONS
from jobs.fleet import Facts
from jobs.model import NewJob, State
from reservation import Work
from settings import Settings
from tests import fakes
from tests.fakes import KEY, OWNER, make_parts
from transcription.core import TranscriptionOptions


def facts(running: int) -> Facts:
    return Facts(host="here", devices=[], plans=[], slots={}, running=running, model="base", loaded=[], version="0")


async def test_who_takes_jobs_and_who_does_them_go_by_their_keys_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of keys that others have made, and that are never sent here."""
    monkeypatch.setattr(wiring, "KEYS_S", 0.0)
    looked = asyncio.Event()

    class Looked(Keys):
        async def look(self, at_most_s: float = 0.0) -> None:
            looked.set()

    parts = make_parts(tmp_path, keys=Looked([KEY]), max_per_key=1, max_audio_s_a_day=25.0)
    parts.transcriber.release.clear()
    (source := tmp_path / "stored.mp3").write_bytes(b"stored words")
    file = parts.services.media.add(source, owner=OWNER, name="stored.mp3").id
    options = OPTIONS.dump_python(TranscriptionOptions("base"), mode="json")
    new = NewJob(Work.TRANSCRIPTION, OWNER, 0, {"file": file, "response_format": "json"}, options, size=10.0)
    async with wiring.job_desk(
        Settings(_env_file=None, data_dir=tmp_path),  # type: ignore[call-arg]
        fakes.OPENED[-1],
        parts.runner._crew,
        parts.services.media,
        parts.runner._uploads,
        parts.services.disk,
        parts.services.admission,
        parts.services.metrics,
        parts.services.keys,
        alone=True,
        facts=facts,
    ) as desk:
        jobs = [await desk.submit(new, None) for _ in range(2)]
        with pytest.raises(QuotaUsed):
            await desk.submit(new, None)
        await parts.transcriber.started.wait()
        assert desk._leases.claim([Work.TRANSCRIPTION]) is None
        assert sorted(desk.store.get(job.id).state for job in jobs) == [State.QUEUED, State.RUNNING]
        parts.transcriber.release.set()
        for job in jobs:
            assert (await desk.finished(job.id)).state is State.SUCCEEDED
        await looked.wait()
