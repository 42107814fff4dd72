"""The composition root's own decisions: where uvicorn listens, what a person is told, whose work folder it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

import main
from main import greeting, uvicorn_bind
from settings import Settings
from workfolder import claimed


@pytest.mark.parametrize(
    ("argv", "environ", "bind"),
    [
        (["/venv/bin/uvicorn", "main:app"], {}, ("127.0.0.1", 8000)),
        (["/venv/bin/uvicorn", "main:app", "--host", "0.0.0.0", "--port", "9000"], {}, ("0.0.0.0", 9000)),
        (["uvicorn", "--host=::", "main:app", "--reload"], {}, ("::", 8000)),
        (["/venv/lib/uvicorn/__main__.py", "main:app"], {"UVICORN_HOST": "0.0.0.0"}, ("0.0.0.0", 8000)),
        (["uvicorn", "main:app", "--uds", "/run/x.sock"], {}, None),
        (["main.py"], {"UVICORN_HOST": "0.0.0.0"}, None),
        ([], {}, None),
    ],
)
def test_uvicorns_command_line_tells_where_it_listens(
    argv: list[str], environ: dict[str, str], bind: tuple[str, int] | None
) -> None:
    """HOST is not asked when uvicorn is started by hand; the check must hold there too."""
    assert uvicorn_bind(argv, environ) == bind


def test_importing_main_makes_no_application() -> None:
    """Tests, tools and child processes import this module."""
    assert "app" not in vars(main)
    assert main.app is main.app
    del main.__dict__["app"]


def test_the_greeting_holds_a_line_that_works_when_pasted(tmp_path: Path) -> None:
    """The made key is in it, and the port that was really taken."""
    told = greeting(Settings(data_dir=tmp_path, port=0), 43210)
    key = (tmp_path / "api-key").read_text().strip()
    assert "http://127.0.0.1:43210" in told
    assert f'-H "X-API-Key: {key}"' in told


def test_the_greeting_does_not_show_chosen_keys(tmp_path: Path) -> None:
    """It goes to a platform's log there."""
    told = greeting(Settings(data_dir=tmp_path, host="0.0.0.0", api_keys="a-long-random-key"), 8000)
    assert "a-long-random-key" not in told
    assert "http://127.0.0.1:8000" in told
    assert not (tmp_path / "api-key").exists()


def test_an_ipv6_address_is_written_with_brackets(tmp_path: Path) -> None:
    """Else no client understands it."""
    assert "http://[::1]:8000/" in greeting(Settings(data_dir=tmp_path, host="::1"), 8000)


@pytest.mark.parametrize("proxies", ["example.com", "10.0.0.1/8", "10.0.0.0/33", "127.0.0.1,,proxy"])
def test_a_proxy_that_is_no_address_is_refused(proxies: str) -> None:
    """uvicorn would take it for a name, and believe nobody."""
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(_env_file=None, trusted_proxies=proxies)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("origins", ["example.com", "https://example.com/", "https://a.example,ftp://b", "null"])
def test_an_origin_that_no_browser_sends_is_refused(origins: str) -> None:
    """It would never match, and nobody would know why."""
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(_env_file=None, cors_origins=origins)  # type: ignore[call-arg, arg-type]


def test_trusted_proxies_are_those_of_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has set uvicorn's own variable need not learn another."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert Settings(_env_file=None).trusted_proxies == ("*",)  # type: ignore[call-arg]
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    assert Settings(_env_file=None).trusted_proxies == ("10.0.0.0/8", "::1")  # type: ignore[call-arg]


def test_what_a_crashed_server_left_is_removed(tmp_path: Path) -> None:
    """Its disk would fill, restart after restart."""
    work = tmp_path / "work"
    (work / "a1b2c3d4-x").mkdir(parents=True)
    (work / "a1b2c3d4-x" / "upload").write_bytes(b"x")
    (work / "stray").write_bytes(b"x")
    with claimed(work):
        assert list(work.iterdir()) == []


def test_a_second_server_leaves_the_firsts_work_alone(tmp_path: Path) -> None:
    """uvicorn --workers starts, and restarts, servers that share the folder."""
    work = tmp_path / "work"
    with claimed(work) as first:
        assert first
        (work / "upload").write_bytes(b"x")
        for _ in range(2):
            with claimed(work) as first:
                assert not first
                assert (work / "upload").exists()
    with claimed(work):
        assert list(work.iterdir()) == []
