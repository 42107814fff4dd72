"""scripts/transcribe: what its words mean, where it writes, how it speaks to a server, and how it ends."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from command_line.arguments import parsed
from command_line.files import (
    NotWritten,
    Source,
    Target,
    check_targets,
    extension,
    sources_of,
    targets_of,
    write,
)
from command_line.local import own_settings
from command_line.progress import told
from command_line.running import exit_code, key_for, made_key, reached_at
from command_line.server import Server
from command_line.transcribing import Exit, Failed, Made, as_bytes, with_words
from errors import UnsupportedMedia
from settings import Settings
from tests.fakes import KEY, Parts, make_parts
from transcription.core import ResponseFormat
from wiring import key_file

TEXT, JSON, SRT, DOCX = ResponseFormat.TEXT, ResponseFormat.JSON, ResponseFormat.SRT, ResponseFormat.DOCX
VERBOSE, VTT, VTT_WORDS = ResponseFormat.VERBOSE_JSON, ResponseFormat.VTT, ResponseFormat.VTT_WORDS


# --- words -----------------------------------------------------------------------------------------------------------


def test_options_become_parameters_of_the_server() -> None:
    """Both ways of working read them as POST /transcribe does."""
    line = "a.mp3 --model base --words --prompt Hi --num-speakers 2 --diarize --clip-timestamps 0,5 --filter-fillers"
    assert parsed(line.split()).parameters == {
        "model_size": "base",
        "word_timestamps": "true",
        "initial_prompt": "Hi",
        "num_speakers": "2",
        "diarize": "true",
        "clip_timestamps": "0,5",
        "filter_fillers": "true",
    }


def test_formats_are_named_once_or_several_times() -> None:
    """-f srt,vtt and -f srt -f vtt are the same, and text is what a person reads."""
    assert parsed(["a", "-f", "srt,docx", "-f", "srt"]).formats == (SRT, DOCX)
    assert parsed(["a"]).formats == (TEXT,)


@pytest.mark.parametrize(
    "line", ["", "a -f nope", "a --task sing", "a --no-such-option", "a a", "a --local --server http://x", "a --key k"]
)
def test_what_is_not_understood_is_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A key as an argument is refused, too: every user of the machine could read it."""
    with pytest.raises(SystemExit) as ended:
        parsed(line.split())
    assert ended.value.code == Exit.USAGE
    assert "usage:" in capsys.readouterr().err


def test_subtitles_want_words_and_nothing_else_does() -> None:
    """One transcription serves all formats."""
    assert with_words({"task": "translate"}, [TEXT, SRT]) == {"task": "translate", "word_timestamps": "true"}
    assert with_words({}, [TEXT, JSON]) == {}


# --- files -----------------------------------------------------------------------------------------------------------


def test_patterns_links_and_names(tmp_path: Path) -> None:
    """A pattern that the shell has left alone is taken apart here; a file that is called like one is that file."""
    for name in ("b.mp3", "a.mp3", "c.wav", "[1].mp3"):
        (tmp_path / name).touch()
    found = sources_of(["[ab].mp3", "[1].mp3", "https://host/x.mp3", "gone.mp3"], tmp_path)
    assert [source.name for source in found] == ["a.mp3", "b.mp3", "[1].mp3", "https://host/x.mp3", "gone.mp3"]
    assert [source.path is None for source in found] == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        (Source("a.b.mp3", Path("/x/a.b.mp3")), "a.b"),
        (Source("u", url="https://host/talks/My%20talk.mp4?x=1"), "My_talk"),
        (Source("u", url="https://host/../.."), "host"),
        (Source("u", url="https://host/"), "host"),
        (Source("-"), "stdin"),
    ],
)
def test_files_are_named_after_their_recording(source: Source, stem: str) -> None:
    """A link's name must not lead out of the folder."""
    assert source.stem == stem


def test_one_text_goes_to_standard_output_and_all_else_into_files(tmp_path: Path) -> None:
    """As `cat` does, and a document never to a terminal."""
    source = Source("a.mp3", tmp_path / "in" / "a.mp3")
    here = tmp_path / "here"
    assert targets_of(source, [SRT], here, None, alone=True) == [Target(SRT, None)]
    assert targets_of(source, [DOCX], here, None, alone=True) == [Target(DOCX, tmp_path / "in" / "a.docx")]
    assert targets_of(source, [TEXT], here, None, alone=False) == [Target(TEXT, tmp_path / "in" / "a.txt")]
    assert targets_of(source, [TEXT], here, tmp_path / "out", alone=True)[0].path == tmp_path / "out" / "a.txt"
    link = Source("u", url="http://host/a.mp3")
    assert targets_of(link, [TEXT, SRT], here, None, alone=True)[1].path == here / "a.srt"


def test_formats_of_one_extension_do_not_meet() -> None:
    """json and verbose_json are both .json, and only together is one of them called otherwise."""
    assert [extension(one, [JSON, VERBOSE, VTT, VTT_WORDS]) for one in (JSON, VERBOSE, VTT, VTT_WORDS)] == [
        "json",
        "verbose.json",
        "vtt",
        "words.vtt",
    ]
    assert extension(VERBOSE, [VERBOSE]) == "json"


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    """Neither what was there before, nor another recording's, nor, ever, the recording itself."""
    (there := tmp_path / "a.txt").write_text("mine")
    source, taken = Source("a.mp3", tmp_path / "a.mp3"), set[Path]()
    with pytest.raises(NotWritten, match="--force"):
        check_targets(source, [Target(TEXT, there)], taken, force=False)
    check_targets(source, [Target(TEXT, there)], taken, force=True)
    with pytest.raises(NotWritten, match="another recording"):
        check_targets(Source("a.wav", tmp_path / "a.wav"), [Target(TEXT, there)], taken, force=True)
    with pytest.raises(NotWritten, match="itself"):
        check_targets(Source("a.txt", there), [Target(TEXT, there)], set(), force=True)


def test_a_file_is_written_whole_and_not_over_another(tmp_path: Path) -> None:
    """It may have come to be there while the recording was heard."""
    path = tmp_path / "new" / "a.txt"
    write(path, b"one", force=False)
    with pytest.raises(NotWritten):
        write(path, b"two", force=False)
    assert path.read_bytes() == b"one"
    write(path, b"two", force=True)
    assert path.read_bytes() == b"two"
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """After the work, but in a sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten, match="cannot be written"):
        write(tmp_path / "file" / "a.txt", b"", force=False)


# --- exit codes and words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([], Exit.DONE),
        ([Exit.FAILED], Exit.FAILED),
        ([Exit.REFUSED, Exit.REFUSED], Exit.REFUSED),
        ([Exit.REFUSED, Exit.USAGE], Exit.FAILED),
    ],
)
def test_a_run_ends_as_its_failures_do_where_they_agree(failures: list[Exit], code: Exit) -> None:
    """A script that sees 4 may come back later; it must not where something else went wrong, too."""
    assert exit_code(failures) is code


def test_errors_are_one_line_with_the_servers_code() -> None:
    """For people and for grep."""
    failed = Failed("There is\nno model.", "UNKNOWN_MODEL")
    assert (str(failed), failed.exit) == ("There is no model. (UNKNOWN_MODEL)", Exit.USAGE)
    assert Failed("It broke.", "TRANSCRIPTION_FAILED").exit is Exit.FAILED


def test_progress_is_told_by_what_was_heard() -> None:
    """Before anything was, by what is being done."""
    assert told("sending", 0.0, 10.0) == "sending"
    assert told("transcribing", 75.0, 3700.0) == "1:15 of 1:01:40"
    assert told("transcribing", 75.0, None) == "1:15"


def test_json_is_written_for_people_too() -> None:
    """In the language that was spoken, not in escapes."""
    assert as_bytes({"text": "schön"}) == '{\n  "text": "schön"\n}\n'.encode()


# --- which server ----------------------------------------------------------------------------------------------------


def test_the_own_servers_key_goes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the server at another address would learn it."""
    monkeypatch.delenv("STENOGATE_API_KEY", raising=False)
    settings = Settings(_env_file=None, data_dir=tmp_path, host="10.0.0.5", port=8000)  # type: ignore[call-arg]
    (tmp_path / "api-key").write_text("made")

    def key(address: str, *words: str) -> str | None:
        return key_for(address, parsed(["-C", str(tmp_path), "a", *words]), settings)

    for own in ("http://127.0.0.1:8000", "http://localhost:8000", "http://10.0.0.5:8000"):
        assert key(own) == "made"
    for other in ("http://127.0.0.1:9000", "https://example.com:8000", "http://127.0.0.1"):
        assert key(other) is None
    monkeypatch.setenv("STENOGATE_API_KEY", "named")
    assert key("https://example.com:8000") == "named"
    (tmp_path / "key").write_text("from a file\n")
    assert key("https://example.com:8000", "--key-file", "key") == "from a file"
    with pytest.raises(Failed, match="cannot be read"):
        key("https://example.com:8000", "--key-file", "none")


def test_a_server_is_reached_where_it_listens() -> None:
    """0.0.0.0 is no address to call."""
    assert [reached_at(host) for host in ("127.0.0.1", "0.0.0.0", "::", "10.0.0.5")] == [
        "127.0.0.1",
        "127.0.0.1",
        "[::1]",
        "10.0.0.5",
    ]


def test_the_made_key_is_found_where_the_server_keeps_it(tmp_path: Path) -> None:
    """The place is told in two modules, since one of them brings the whole server's code with it."""
    settings = Settings(_env_file=None, data_dir=tmp_path)  # type: ignore[call-arg]
    assert made_key(settings) is None
    key_file(settings).write_text("made\n")
    assert made_key(settings) == "made"
    assert made_key(settings.model_copy(update={"api_keys": (Settings.model_fields["database_url"].default,)})) == ""


def test_the_engine_here_leaves_a_servers_jobs_alone(tmp_path: Path) -> None:
    """It has a runner, which would take up what waits in the server's database."""
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        data_dir=tmp_path,
        database_url="postgresql://host/jobs",
        broker_url="redis://host",
        media_url="s3://bucket",
        role="api",
    )
    own = own_settings(settings)
    assert own.database.startswith(f"sqlite:///{tmp_path}/command-line/")
    assert own.model_path == settings.model_path
    assert (own.does_jobs, own.media_url, own.broker_url.get_secret_value()) == (True, "", "")


# --- a server --------------------------------------------------------------------------------------------------------


class Noted:
    """Sees what a bar would show."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.length_s: float | None = None
        self.heard_s = 0.0

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def length(self, audio_s: float | None) -> None:
        self.length_s = audio_s or self.length_s

    def heard(self, audio_s: float) -> None:
        self.heard_s = max(self.heard_s, audio_s)


class Slept:
    """Time that passes at once, noted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
async def at_work(parts: Parts) -> AsyncIterator[None]:
    """Jobs are done."""
    async with parts.runner:
        yield


def server(app: FastAPI, *, wait: bool = False, key: str = KEY, sleep: Slept | None = None) -> Server:
    transport = httpx.ASGITransport(app)
    return Server("http://127.0.0.1", key, wait=wait, transport=transport, sleep=sleep or Slept())


@pytest.fixture
def talk(tmp_path: Path) -> Source:
    (path := tmp_path / "talk.mp3").write_bytes(b"what was said")
    return Source("talk.mp3", path)


@pytest.mark.usefixtures("at_work")
async def test_one_job_gives_all_formats(app: FastAPI, parts: Parts, talk: Source) -> None:
    """Each exactly as the server would have answered it."""
    shown = Noted()
    async with server(app) as asked:
        made = await asked.transcribe(talk, {"language": "en"}, [TEXT, JSON, SRT, DOCX], shown)
    assert made.contents[TEXT] == b"what was said\n"
    assert b'"text": "what was said"' in made.contents[JSON]
    assert b"-->" in made.contents[SRT]
    assert made.contents[DOCX][:2] == b"PK"
    assert (len(parts.transcriber.runs), parts.transcriber.runs[0][1].language) == (1, "en")
    assert (shown.stages[0], shown.stages[-1], shown.heard_s) == ("sending", "writing", 1.0)


@pytest.mark.usefixtures("at_work")
async def test_a_links_way_is_the_same(app: FastAPI) -> None:
    """The server fetches it."""
    async with server(app) as asked:
        made = await asked.transcribe(Source("u", url="http://example.com/a.mp3"), {}, [TEXT], Noted())
    assert made == Made({TEXT: b"http://example.com/a.mp3\n"}, ())


@pytest.mark.usefixtures("at_work")
async def test_what_the_job_failed_of_is_told(app: FastAPI, parts: Parts, talk: Source) -> None:
    """In the server's words, with its code."""

    async def measure(*_: object) -> float:
        return 1.0

    parts.transcriber.error = UnsupportedMedia()
    parts.transcriber.measure = measure  # type: ignore[method-assign]
    async with server(app) as asked:
        with pytest.raises(Failed, match="UNSUPPORTED_MEDIA") as failed:
            await asked.transcribe(talk, {}, [TEXT], Noted())
    assert failed.value.exit is Exit.FAILED


@pytest.mark.parametrize(
    ("parameters", "code"), [({"model_size": "no"}, "UNKNOWN_MODEL"), ({"beam_size": "99"}, "INV")]
)
async def test_what_the_server_calls_wrong_is_wrong_usage(
    app: FastAPI, talk: Source, parameters: dict[str, str], code: str
) -> None:
    """It knows the options' bounds; they are not written down twice."""
    async with server(app) as asked:
        with pytest.raises(Failed, match=code) as failed:
            await asked.transcribe(talk, parameters, [TEXT], Noted())
    assert failed.value.exit is Exit.USAGE


async def test_a_wrong_key_is_told(app: FastAPI, talk: Source) -> None:
    """The commonest mistake."""
    async with server(app, key="wrong") as asked:
        with pytest.raises(Failed, match="UNAUTHORIZED"):
            await asked.transcribe(talk, {}, [TEXT], Noted())


@pytest.fixture
def full(tmp_path: Path) -> Parts:
    """One job may wait, and one does."""
    (tmp_path / "full").mkdir()
    return make_parts(tmp_path / "full", max_queued=1)


async def test_a_full_server_is_an_exit_code_of_its_own(app: FastAPI, full: Parts, talk: Source) -> None:
    """A script may come back later."""
    app.state.services = full.services
    async with server(app) as asked:
        await asked._handed_in(talk, {}, Noted())
        with pytest.raises(Failed, match="QUEUE_FULL") as failed:
            await asked.transcribe(talk, {}, [TEXT], Noted())
    assert failed.value.exit is Exit.REFUSED


async def test_who_waits_comes_back_when_the_server_says(talk: Source) -> None:
    """Not sooner, which would only cost it more; and in two minutes at the latest."""
    refusals = [
        httpx.Response(429, headers={"Retry-After": "7"}, json={"code": "QUEUE_FULL", "detail": "Full."}),
        httpx.Response(503, text=""),
        httpx.Response(429, headers={"Retry-After": "86400"}, json={"code": "QUOTA_USED", "detail": "Used."}),
    ]
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return refusals.pop(0) if refusals else httpx.Response(202, json={"id": "j"})

    slept = Slept()
    async with Server("http://s", "k", wait=True, transport=httpx.MockTransport(answer), sleep=slept) as asked:
        assert await asked._handed_in(talk, {}, Noted()) == "j"
    assert slept.seconds == [7.0, 10.0, 120.0]
    assert all(b"what was said" in body for body in bodies)


async def test_who_stops_cancels_the_servers_job(talk: Source) -> None:
    """Else Ctrl-C would leave a podcast behind that nobody reads."""
    followed, calls = asyncio.Event(), []

    async def answer(request: httpx.Request) -> httpx.Response:
        calls.append(f"{request.method} {request.url.path}")
        if request.url.path == "/jobs/j/events":
            followed.set()
            await asyncio.Event().wait()
        return httpx.Response(202, json={"id": "j"})

    async with Server("http://s", "k", wait=False, transport=httpx.MockTransport(answer)) as asked:
        task = asyncio.create_task(asked.transcribe(talk, {}, [TEXT], Noted()))
        await followed.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert calls == ["POST /transcribe", "GET /jobs/j/events", "DELETE /jobs/j"]


EVENTS = (
    'retry: 2000\n\nid: 2\nevent: running\ndata: {"attempt":1}\n\n: \n\nevent: progress\ndata: {"stage":"decoding",'
)
EVENTS += '"audio_seconds":2.0,"of_audio_seconds":8.0}\n\nid: 3\nevent: segment\ndata: {"start":0.0,"end":4.5}\n\n'


async def test_events_are_taken_up_where_they_broke_off(talk: Source) -> None:
    """Proxies close long streams; nothing is told twice."""
    asked_after: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/transcribe":
            return httpx.Response(202, json={"id": "j"})
        if request.url.path == "/jobs/j/events":
            asked_after.append(request.headers["Last-Event-ID"])
            if len(asked_after) == 2:
                raise httpx.ReadError("gone")
            over = "id: 4\nevent: succeeded\ndata: {}\n\n" if len(asked_after) > 2 else ""
            return httpx.Response(200, stream=httpx.ByteStream((EVENTS + over).encode()))
        if request.url.path == "/jobs/j":
            return httpx.Response(200, json={"state": "running"})
        return httpx.Response(200, json={"text": "x", "warnings": ["w"]})

    shown = Noted()
    asked = Server("http://s", "k", wait=False, transport=httpx.MockTransport(answer), sleep=Slept())
    async with asked:
        made = await asked.transcribe(talk, {}, [JSON], shown)
    assert asked_after == ["0", "3", "3"]
    assert (shown.length_s, shown.heard_s, made.warnings) == (8.0, 4.5, ["w"])


async def test_a_server_that_goes_away_is_nobody(talk: Source) -> None:
    """It is asked again a few times first; and what stands in between may answer, too."""

    def gone(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={"id": "j"})
        raise httpx.ConnectError("refused")

    slept = Slept()
    async with Server("http://s", "k", wait=False, transport=httpx.MockTransport(gone), sleep=slept) as asked:
        with pytest.raises(Failed, match="went away: refused") as failed:
            await asked.transcribe(talk, {}, [TEXT], Noted())
    assert failed.value.exit is Exit.NOBODY
    assert len(slept.seconds) == 5
    proxy = httpx.MockTransport(lambda _: httpx.Response(502, text="<html>"))
    async with Server("http://s", "k", wait=False, transport=proxy) as asked:
        with pytest.raises(Failed, match="502 Bad Gateway"):
            await asked.transcribe(talk, {}, [TEXT], Noted())


def test_standard_input_is_read_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length must be known, and it may have to be sent again."""
    from command_line.running import _readable

    class Piped:
        buffer = io.BytesIO(b"sound")

    monkeypatch.setattr("sys.stdin", Piped)
    with _readable(Source("-")) as source:
        assert source.path is not None
        assert (source.path.read_bytes(), source.stem) == (b"sound", "stdin")
    assert not source.path.exists()
