"""The gate over HTTP: patience in headers, refusals before the body, and what operators see."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from access.keyring import Keys
from api.application import assemble
from jobs.model import State
from reservation import Work
from tests.fakes import AUTH, KEY, Caller, Parts, make_parts
from transcription.core import Priority
from transcription.seen_memory import Sight

FILE = {"file": ("a.mp3", b"hello")}
UPLOAD = [b"first half", b"second half"]
AS_FILE = AUTH | {"Content-Type": "audio/mpeg", "Transfer-Encoding": "chunked"}


def application(parts: Parts) -> Any:
    app = assemble()
    app.state.services = parts.services
    return app


def caller_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", headers=AUTH)


@pytest.fixture
def busy(tmp_path: Path) -> Parts:
    """Room for two transcriptions and for nobody in the line; what comes in stays until it is released."""
    parts = make_parts(tmp_path, slots=dict.fromkeys(Work, 2), max_waiting=0)
    parts.transcriber.release.clear()
    parts.fetcher.release.clear()
    return parts


async def shown(parts: Parts, text: str) -> None:
    """Let the requests run until the gate shows *text*."""
    for _ in range(200_000):
        if text in repr(parts.services.admission):
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{parts.services.admission} never shows {text}")


async def two_at_work(client: httpx.AsyncClient, parts: Parts) -> list[asyncio.Task[httpx.Response]]:
    """Two requests that hold the slots."""
    tasks = [asyncio.create_task(client.post("/transcribe", files=FILE)) for _ in range(2)]
    await shown(parts, "'transcription': '2/2")
    return tasks


async def test_a_full_line_refuses_before_the_body_is_read(busy: Parts) -> None:
    """Two gigabytes must not travel to a server that will not take them."""
    app = application(busy)
    async with caller_of(app) as client:
        tasks = await two_at_work(client, busy)
        refused = Caller("/transcribe", UPLOAD, headers=AS_FILE)
        taken = refused.receive
        pieces_before_the_answer = []

        async def receive() -> dict[str, Any]:
            if refused.status is None:
                pieces_before_the_answer.append(1)
            return await taken()

        await app(refused.scope, receive, refused.send)
        assert refused.status == 429
        assert b"QUEUE_FULL" in refused.body
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert pieces_before_the_answer == []
        busy.transcriber.release.set()
        assert [(await task).status_code for task in tasks] == [200, 200]


@pytest.mark.parametrize("path", ["/download", "/extract-audio"])
async def test_downloads_and_extractions_have_lines_of_their_own(busy: Parts, path: str) -> None:
    """Neither starves the other: a full line of transcriptions refuses no download."""
    async with caller_of(application(busy)) as client:
        tasks = await two_at_work(client, busy)
        busy.fetcher.release.set()
        answer = await client.post(path, data={"url": "https://example.com/a"}) if path == "/download" else None
        answer = answer or await client.post(path, files=FILE)
        assert answer.json().get("code") != "QUEUE_FULL"
        busy.transcriber.release.set()
        await asyncio.gather(*tasks)


async def test_a_link_waits_in_the_downloads_line_too(tmp_path: Path) -> None:
    """A hundred links in /transcribe are a hundred downloads."""
    parts = make_parts(tmp_path, max_waiting=5)
    parts.fetcher.release.clear()
    async with caller_of(application(parts)) as client:
        tasks = [
            asyncio.create_task(client.post("/transcribe", data={"url": "https://example.com/a"})) for _ in range(3)
        ]
        await shown(parts, "'download': '2/2+1'")
        assert len(parts.fetcher.folders) == 2
        parts.fetcher.release.set()
        assert [(await task).status_code for task in tasks] == [200] * 3
    assert "'download': '0/2+0'" in repr(parts.services.admission)


async def test_who_will_not_wait_is_refused_at_once(tmp_path: Path) -> None:
    """X-No-Wait: the caller has another server to turn to."""
    parts = make_parts(tmp_path, max_waiting=5)
    parts.transcriber.release.clear()
    async with caller_of(application(parts)) as client:
        tasks = [asyncio.create_task(client.post("/transcribe", files=FILE)) for _ in range(6)]
        await shown(parts, "'transcription': '5/5+1'")
        answer = await client.post("/transcribe", files=FILE, headers={"X-No-Wait": "true"})
        assert (answer.status_code, answer.json()["code"]) == (429, "QUEUE_FULL")
        parts.transcriber.release.set()
        assert [(await task).status_code for task in tasks] == [200] * 6


async def test_work_is_ended_when_the_time_its_caller_gave_is_over(busy: Parts) -> None:
    """Nobody reads an answer that comes too late; the slot is another's."""
    async with caller_of(application(busy)) as client:
        answer = await client.post("/transcribe", files=FILE, headers={"X-Request-Timeout": "1"})
    assert (answer.status_code, answer.json()["code"]) == (503, "TIMEOUT")
    [job] = busy.services.desk.store.listed()
    assert job.state is State.CANCELLED
    assert "'transcription': '0/2+0'" in repr(busy.services.admission)


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Request-Timeout", "0"), ("X-Request-Timeout", "soon"), ("X-No-Wait", "perhaps"), ("X-Priority", "urgent")],
)
async def test_headers_that_make_no_sense_are_refused(client: httpx.AsyncClient, name: str, value: str) -> None:
    """Ignored, the caller would believe in something that is not so."""
    answer = await client.post("/transcribe", files=FILE, headers={name: value})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


async def test_a_key_has_a_ceiling_that_its_headers_do_not_lift(tmp_path: Path) -> None:
    """Somebody else's overnight run must not become urgent by saying so."""
    parts = make_parts(tmp_path, keys=Keys([KEY], batch_keys=[KEY]))
    async with caller_of(application(parts)) as client:
        await client.post("/transcribe", files=FILE, headers={"X-Priority": "interactive"})
    [place] = parts.transcriber.places
    assert place.priority == Priority.BATCH


async def test_a_key_is_told_what_is_left_to_it(tmp_path: Path) -> None:
    """Good callers slow down by themselves. The fake's recordings last ten seconds."""
    parts = make_parts(tmp_path, max_per_key=3, max_audio_s_a_day=25.0)
    async with caller_of(application(parts)) as client:
        first = await client.post("/transcribe", files=FILE)
        assert first.headers["RateLimit-Policy"] == '"requests";q=3, "audio-seconds";q=25;w=86400'
        assert first.headers["RateLimit"].startswith('"requests";r=3, "audio-seconds";r=15;t=')
        assert (await client.post("/transcribe", files=FILE)).status_code == 200
        refused = await client.post("/transcribe", files=FILE)
        assert (refused.status_code, refused.json()["code"]) == (429, "QUOTA_USED")
        assert '"audio-seconds";r=5' in refused.headers["RateLimit"]


async def test_without_limits_nothing_is_told_of_them(client: httpx.AsyncClient) -> None:
    """A header without a meaning asks for a meaning."""
    answer = await client.post("/transcribe", files=FILE)
    assert "RateLimit" not in answer.headers


async def test_a_key_has_only_so_many_requests_in_flight(tmp_path: Path) -> None:
    """One caller's runaway loop."""
    parts = make_parts(tmp_path, max_per_key=1)
    parts.transcriber.release.clear()
    async with caller_of(application(parts)) as client:
        first = asyncio.create_task(client.post("/transcribe", files=FILE))
        await parts.transcriber.started.wait()
        refused = await client.post("/transcribe", files=FILE)
        assert (refused.status_code, refused.json()["code"]) == (429, "KEY_BUSY")
        assert "Retry-After" in refused.headers
        parts.transcriber.release.set()
        assert (await first).status_code == 200


async def test_a_model_that_fits_nowhere_here_is_refused(tmp_path: Path) -> None:
    """Loading it would have the kernel kill the engine, and everybody's work with it."""
    parts = make_parts(tmp_path, memory_bytes=2 * 2**30)
    async with caller_of(application(parts)) as client:
        answer = await client.post("/transcribe", files=FILE, params={"model_size": "large-v3"})
    assert (answer.status_code, answer.json()["code"]) == (413, "TOO_LARGE")
    assert "choose a smaller one" in answer.json()["detail"]


async def test_a_server_that_stops_takes_nothing_more(client: httpx.AsyncClient, parts: Parts) -> None:
    """A balancer turns to another one."""
    parts.services.admission.close()
    answer = await client.post("/transcribe", files=FILE)
    assert (answer.status_code, answer.json()["code"]) == (503, "SHUTTING_DOWN")


async def test_the_log_line_tells_the_wait_and_the_peak(client: httpx.AsyncClient, parts: Parts) -> None:
    """The first two questions about a slow request."""
    parts.transcriber.release.clear()
    with capture_logs() as logs:
        asked = asyncio.create_task(client.post("/transcribe", files=FILE))
        await parts.transcriber.started.wait()
        parts.services.admission.observe({}, own_bytes=300 * 2**20)
        parts.transcriber.release.set()
        await asked
    [line] = [line for line in logs if line["event"].startswith("POST /transcribe")]
    assert line["wait_s"] >= 0
    assert line["peak_mib"] == 300


async def test_capacity_tells_what_runs_and_why_not_more(parts: Parts) -> None:
    """The fake is a container of 2 GiB with two cores."""
    async with parts.services.memory, caller_of(application(parts)) as client:
        parts.transcriber.release.clear()
        tasks = [asyncio.create_task(client.post("/transcribe", files=FILE)) for _ in range(6)]
        await shown(parts, "'transcription': '5/5+1'")
        told = (await client.get("/capacity")).json()
        parts.transcriber.release.set()
        await asyncio.gather(*tasks)
    [memory] = told["devices"]
    assert (memory["total_bytes"], memory["free_bytes"], memory["source"]) == (2 * 2**30, 2**30, "cgroup v2")
    assert memory["reserved_bytes"] == memory["budget_bytes"] == 500 * 2**20
    work = told["work"]["transcription"]
    assert (work["slots"], work["active"], work["waiting"], work["kept_for_clips"]) == (5, 5, 1, 1)
    assert told["queue"]["waiting"] == 1
    assert told["queue"]["oldest_wait_s"] >= 0
    [plan] = told["plans"]
    assert plan["limited_by"] in ("cores", "memory")
    assert plan["limited_by"] in plan["why"].lower()
    assert told["service_bytes"] == 300 * 2**20


async def test_capacity_holds_what_was_seen_against_the_prediction(parts: Parts) -> None:
    """Nothing before the first look; then the weights and the largest process."""
    async with parts.services.memory, caller_of(application(parts)) as client:
        first = (await client.get("/capacity")).json()["prices"]["seen"]
        sizes, ledger = parts.services.sizes, parts.services.seen
        ledger.note(Sight("cpu", "int8", "base", 500, 7.0, 300), sizes.cost("base"), *sizes.busiest("base"))
        then = (await client.get("/capacity")).json()["prices"]["seen"]
    assert (first["model"], first["predicted_bytes"]) == ("base", sizes.engine_bytes)
    assert (first["load_bytes"], first["peak_bytes"], first["work_s"]) == (None, None, 0.0)
    assert (then["load_bytes"], then["peak_bytes"], then["work_s"]) == (300, 500, 7.0)


async def test_capacity_needs_a_key(client: httpx.AsyncClient) -> None:
    """It tells a stranger when to strike."""
    answer = await client.get("/capacity", headers={"X-API-Key": "wrong"})
    assert answer.status_code == 401
