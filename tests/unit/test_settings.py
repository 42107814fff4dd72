"""Settings: where they come from, and which of them do not go together."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from errors import ConfigurationError
from settings import Settings
from wiring import MIB, look, policies, read_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the developer's .env nor the environment may reach these tests."""
    monkeypatch.chdir(tmp_path)
    for name in [*Settings.model_fields, "railway_ram_mb"]:
        monkeypatch.delenv(name.upper(), raising=False)


def test_the_defaults_start_on_loopback() -> None:
    """Nobody should open a server to the network by starting it."""
    settings = Settings()
    settings.check()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_the_variable_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform sets PORT; a forgotten .env must not overrule it."""
    Path(".env").write_text("PORT=1111\nMODEL_SIZE=small\n")
    monkeypatch.setenv("PORT", "2222")
    settings = Settings()
    assert (settings.port, settings.model_size) == (2222, "small")


def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON in an environment variable is hard to quote."""
    monkeypatch.setenv("API_KEYS", " one-key , two-key ,")
    monkeypatch.setenv("MEDIA_ROOTS", "/tmp,/srv/media")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one-key", "two-key"]
    assert settings.media_roots == (Path("/tmp"), Path("/srv/media"))


def test_keys_are_not_shown() -> None:
    """Settings end up in logs and traces."""
    settings = Settings(api_keys="a-long-random-key", hf_token="hf_abcdefgh")
    assert "a-long-random-key" not in repr(settings)
    assert "hf_abcdefgh" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "http"), ("PORT", "70000"), ("BEAM_SIZE", "0"), ("MAX_UPLOAD_MB", "-1"), ("LOG_LEVEL", "loud")],
)
def test_a_wrong_value_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """With a sentence, not pydantic's report."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        read_settings()


@pytest.mark.parametrize("name", ["MEMORY_LIMIT_MB", "RAILWAY_RAM_MB"])
def test_a_limit_on_memory_has_two_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A person sets the one, a platform the other."""
    monkeypatch.setenv(name, "1536")
    assert read_settings().memory_limit_mb == 1536


def test_the_limit_that_a_person_sets_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform's cannot always be changed."""
    monkeypatch.setenv("RAILWAY_RAM_MB", "8192")
    monkeypatch.setenv("MEMORY_LIMIT_MB", "1536")
    assert read_settings().memory_limit_mb == 1536


@pytest.mark.parametrize("name", ["MEMORY_LIMIT_MB", "RAILWAY_RAM_MB"])
@pytest.mark.parametrize("value", ["2GB", "-1", "nan", "inf", "1.5"])
def test_a_wrong_limit_on_memory_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """To start without the limit that somebody set would be found out by the kernel."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"MEMORY_LIMIT_MB|RAILWAY_RAM_MB"):
        read_settings()


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Platforms hand on variables that nobody has filled in."""
    monkeypatch.setenv("RAILWAY_RAM_MB", "")
    monkeypatch.setenv("QUEUE_TIMEOUT_S", "")
    settings = read_settings()
    assert (settings.memory_limit_mb, settings.queue_timeout_s) == (0, 900)


def test_the_limit_that_is_set_is_what_is_seen_and_planned_with() -> None:
    """A container that shows its host's memory must not be planned with it."""
    settings = Settings(memory_limit_mb=600)
    assert look(settings).devices["memory"].total_bytes == 600 * MIB
    assert look(settings).devices["memory"].source == "setting"


def test_a_key_that_only_waits_must_be_a_key() -> None:
    """A slip of the pen would leave that caller as urgent as all others."""
    Settings(api_keys="a,b", batch_keys="b").check()
    with pytest.raises(ConfigurationError, match="BATCH_KEYS") as refusal:
        Settings(api_keys="a,b", batch_keys="sekrit").check()
    assert "sekrit" not in refusal.value.message


def test_a_wrong_key_is_not_repeated_in_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence goes to the log."""
    monkeypatch.setenv("API_KEYS", "sekrit")
    monkeypatch.setenv("PORT", "x-sekrit-port")
    with pytest.raises(ConfigurationError) as refusal:
        read_settings()
    assert "sekrit" not in refusal.value.message


def test_folders_follow_the_data_folder() -> None:
    """One volume is enough for all that must survive."""
    settings = Settings(data_dir="/srv/data")
    assert settings.media_path == Path("/srv/data/media")
    assert settings.model_path == Path("/srv/data/models")
    assert settings.work_path == Path("/srv/data/work")
    assert Settings(media_dir="/srv/media").media_path == Path("/srv/media")


def test_lists_of_hosts_narrow_links_and_leave_webhooks_but_for_what_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gives links and who is told of a job's end are different people."""
    monkeypatch.setenv("PRIVATE_HOSTS_ALLOWED", "hooks.lan:80")
    monkeypatch.setenv("LINK_HOSTS_ALLOWED", "example.com, 203.0.113.0/24")
    monkeypatch.setenv("LINK_HOSTS_DENIED", "ads.example.com")
    anywhere, by_link = policies(read_settings())
    for host, may_be_called, may_be_linked in (
        ("hooks.lan", True, False),
        ("example.com", True, True),
        ("ads.example.com", False, False),
    ):
        address = ip_address("93.184.216.34")
        assert anywhere.allows(host, 80, address) is may_be_called
        assert by_link.allows(host, 80, address) is may_be_linked


@pytest.mark.parametrize("root", ["{data}", "{data}/..", "/"])
def test_what_others_have_sent_is_no_folder_for_all(tmp_path: Path, root: str) -> None:
    """MEDIA_ROOTS is open to every key, and uploads lie in DATA_DIR."""
    data = tmp_path / "data"
    with pytest.raises(ConfigurationError, match="MEDIA_ROOTS"):
        Settings(data_dir=data, media_roots=root.format(data=data)).check()
    Settings(data_dir=data, media_roots=f"{tmp_path}/recordings").check()
