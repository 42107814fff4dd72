"""Logs: every line names its request, none holds a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

import telemetry


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Logging is global: what a test sets up must not reach the next."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    config = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.configure(**config)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def log_to(hidden: tuple[str, ...] = ()) -> io.StringIO:
    stream = io.StringIO()
    telemetry.configure("info", stream, hidden)
    return stream


@pytest.mark.parametrize("proposed", ["a", "job-17.retry_2", "x" * 64])
def test_a_sane_id_of_the_caller_is_kept(proposed: str) -> None:
    """The caller's own logs and ours can then be joined."""
    assert telemetry.request_id(proposed) == proposed


@pytest.mark.parametrize("proposed", [None, "", "x" * 65, "a b", "a\nb", "é", "<script>", "a\n"])
def test_any_other_id_is_replaced_by_eight_hex_characters(proposed: str | None) -> None:
    """An id is written into logs and headers: nothing strange may travel in it."""
    made = telemetry.request_id(proposed)
    assert len(made) == 8
    assert int(made, 16) >= 0


def test_lines_inside_a_request_name_it_and_others_do_not() -> None:
    """`[Request a1b2c3d4]` is what one searches for."""
    stream = log_to()
    log = structlog.get_logger("api")
    with telemetry.request_bound("a1b2c3d4"):
        log.info("decoded", seconds=2)
    log.info("idle")
    inside, outside = lines(stream)
    assert inside["event"] == "[Request a1b2c3d4] decoded"
    assert inside["request_id"] == "a1b2c3d4"
    assert inside["seconds"] == 2
    assert outside["event"] == "idle"
    assert "request_id" not in outside


def test_standard_library_logs_take_the_same_way() -> None:
    """Libraries do not know structlog; their lines must carry the request all the same."""
    stream = log_to()
    with telemetry.request_bound("a1b2c3d4"):
        logging.getLogger("yt_dlp").warning("slow %s", "server")
    (line,) = lines(stream)
    assert line["event"] == "[Request a1b2c3d4] slow server"
    assert line["level"] == "warning"
    assert line["logger"] == "yt_dlp"


def test_links_lose_their_credentials_and_their_query() -> None:
    """Signed links carry tokens in the query; proxies carry passwords before the @."""
    stream = log_to()
    log = structlog.get_logger("fetch")
    log.info("get https://ann:pass@host/a.mp3?sig=abc#t", link="http://host/b?token=xyz", links=["http://u:p@h/c"])
    text = stream.getvalue()
    assert "pass" not in text
    assert "abc" not in text
    assert "xyz" not in text
    assert "u:p" not in text
    assert "https://host/a.mp3?…" in text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["a" * 2_000_000 + "_://", "a://#" * 400_000, "://@" * 500_000, "://?" * 500_000])
def test_no_line_takes_the_square_of_its_length(text: str) -> None:
    """Strangers choose the path that is logged: minutes on one line would be a server that stands still."""
    stream = log_to()
    structlog.get_logger("api").info(text)
    assert len(lines(stream)) == 1


def test_known_secrets_and_telling_names_are_hidden_even_in_traces() -> None:
    """A library may put a key into its exception's text."""
    stream = log_to(hidden=("sekrit-key-1",))
    log = structlog.get_logger("api")
    try:
        raise ValueError("bad key sekrit-key-1")
    except ValueError:
        log.exception("failed", authorization="Bearer 12345678", options={"hf_token": "hf_abc"})
    text = stream.getvalue()
    assert "sekrit-key-1" not in text
    assert "12345678" not in text
    assert "hf_abc" not in text
    assert "ValueError" in lines(stream)[0]["exception"]


def test_a_newline_in_an_event_does_not_start_a_line() -> None:
    """A file name could otherwise forge log lines."""
    stream = Terminal()
    telemetry.configure("info", stream)
    structlog.get_logger("api").info("read a\nb")
    assert len(stream.getvalue().splitlines()) == 1


def test_a_terminal_gets_text_not_json() -> None:
    """A person reads it."""
    stream = Terminal()
    telemetry.configure("info", stream)
    structlog.get_logger("api").info("hello")
    assert "hello" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


def test_levels_below_the_chosen_one_are_silent() -> None:
    """LOG_LEVEL means what it says."""
    stream = io.StringIO()
    telemetry.configure("warning", stream)
    structlog.get_logger("api").info("chatter")
    assert stream.getvalue() == ""


def test_uvicorn_writes_no_access_lines_of_its_own() -> None:
    """Its lines show query strings; ours replace them."""
    log_to()
    assert not logging.getLogger("uvicorn.access").hasHandlers()


def test_lines_tell_their_process() -> None:
    """Server and engine write into one stream."""
    stream = io.StringIO()
    telemetry.configure("info", stream, process="engine")
    structlog.get_logger("x").info("loaded")
    assert lines(stream)[0]["process"] == "engine"
