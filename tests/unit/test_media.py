"""The store of media files: what is kept, what is found, what stays out of reach."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from downloads.media import MAX_REFERENCE_CHARS, MediaStore, entry_of, spelled
from downloads.stored_files import Kept, MediaFile, media_type_of
from errors import MediaNotFound, PathNotAllowed

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
OWNER, OTHER = "a-key", "another-key"


def minutes() -> Iterator[datetime]:
    now = NOON
    while True:
        yield now
        now += timedelta(minutes=1)


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path, allowed: Path) -> MediaStore:
    return MediaStore(tmp_path / "media", (allowed,), clock=minutes().__next__)


def added(
    store: MediaStore, name: str = "talk.mp3", suffix: str = ".mp3", content: bytes = b"sound", owner: str = OWNER
) -> MediaFile:
    place = store.new_place(suffix)
    place.write_bytes(content)
    return store.add(place, owner=owner, name=name)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_is_added_comes_back_whole(store: MediaStore) -> None:
    """Also to another process, which reads the same folder."""
    place = store.new_place(".webm")
    place.write_bytes(b"sound")
    media = store.add(
        place,
        owner=OWNER,
        name="Ein Ärger.webm",
        media_type="audio/webm",
        duration_s=1.5,
        title="Ein Ärger",
        extractor="generic",
        source="https://example.org/a",
    )
    assert media == MediaFile(
        id=media.id,
        path=store.root / f"{media.id}.webm",
        name="Ein Ärger.webm",
        media_type="audio/webm",
        bytes=5,
        duration_s=1.5,
        created_at=NOON,
        title="Ein Ärger",
        extractor="generic",
        source="https://example.org/a",
        owner=OWNER,
    )
    assert MediaStore(store.root).get(media.id, OWNER) == media
    assert media.path.read_bytes() == b"sound"
    assert not place.exists()


def test_a_file_from_elsewhere_is_taken_in(store: MediaStore, tmp_path: Path) -> None:
    """Uploads and extractions are written in a folder of their own."""
    (tmp_path / "audio.flac").write_bytes(b"sound")
    media = store.add(tmp_path / "audio.flac", owner=OWNER, name="audio.flac")
    assert media.media_type == "audio/flac"
    assert not (tmp_path / "audio.flac").exists()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="There is no second file system at hand.")
def test_a_file_from_another_file_system_is_copied(store: MediaStore) -> None:
    """MEDIA_DIR may lie on a volume of its own, where a rename from the work folder fails."""
    elsewhere = Path("/dev/shm") / store.new_place(".mp3").name
    elsewhere.write_bytes(b"sound")
    try:
        media = store.add(elsewhere, owner=OWNER, name="a")
    finally:
        elsewhere.unlink(missing_ok=True)
    assert media.path.read_bytes() == b"sound"
    assert list((store.root / "incoming").iterdir()) == []


def test_ids_differ_and_are_long(store: MediaStore) -> None:
    """Whoever has the right key needs an id alone to read a file, and links are shared: it must not be guessed."""
    assert len({added(store).id for _ in range(20)}) == 20
    assert all(len(bytes.fromhex(media.id)) == 16 for media in store.list(OWNER))


def test_the_newest_is_listed_first(store: MediaStore) -> None:
    names = ["first", "second", "third"]
    for name in names:
        added(store, name)
    assert [media.name for media in store.list(OWNER)] == names[::-1]


def test_a_deleted_file_is_gone(store: MediaStore) -> None:
    media, other = added(store), added(store)
    store.delete(media.id, OWNER)
    assert store.list(OWNER) == [other]
    assert not media.path.exists()
    with pytest.raises(MediaNotFound):
        store.delete(media.id, OWNER)


@pytest.mark.parametrize(
    ("suffix", "kept"),
    [
        (".MP3", ".mp3"),
        (".tar gz", ""),
        (".sixsix", ""),
        (".p\0p", ""),
        ("../x", ""),
        (".json", ""),
        ("", ""),
        (".é", ""),
    ],
)
def test_only_plain_suffixes_reach_the_disk(store: MediaStore, suffix: str, kept: str) -> None:
    """A suffix comes from a stranger; the sidecars' would take a sidecar's place."""
    assert store.new_place(suffix).suffix == kept
    assert store.new_place(suffix).parent == store.root / "incoming"


def test_the_json_that_somebody_downloads_is_no_sidecar(store: MediaStore, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    media = store.add(tmp_path / "a.json", owner=OWNER, name="a.json")
    assert media.path.read_text() == "{}"


def test_names_lose_characters_that_deceive(store: MediaStore) -> None:
    """Line ends would forge headers and logs; a right-to-left mark shows one ending and means another."""
    assert added(store, "a\r\nb\u202e3pm.exe\0").name == "ab3pm.exe"
    assert len(added(store, "x" * 1000).name) == 255
    nameless = added(store, "\n")
    assert nameless.name == nameless.path.name


def test_leftovers_are_cleared_and_files_kept(store: MediaStore) -> None:
    media = added(store)
    store.new_place(".mp3").write_bytes(b"half")
    (store.root / "incoming" / "folder").mkdir()
    (store.root / "incoming" / "folder" / "part").write_bytes(b"half")
    store.clear_incoming()
    assert list((store.root / "incoming").iterdir()) == []
    assert store.list(OWNER) == [media]


def test_half_added_files_of_crashed_servers_go_when_they_are_old(store: MediaStore) -> None:
    """Their ids are known to nobody, and no server that starts clears them while others run."""
    media = added(store)
    for stray in (store.root / f"{'0' * 32}.mp3", store.root / ("1" * 32), store.new_place(".mp3")):
        stray.write_bytes(b"half")
        # As old as the download's own server says.
        os.utime(stray, (0, 0))
    mine = store.root / "mine.mp3"
    mine.write_bytes(b"put here by hand")
    assert store.remove_strays(time.time() - 3600) == 0
    assert store.remove_strays(time.time() + 3600) == 3
    assert store.list(OWNER) == [media]
    assert media.path.exists()
    assert mine.exists()
    assert list((store.root / "incoming").iterdir()) == []


def test_a_sweep_sees_sizes_and_ages(store: MediaStore) -> None:
    media = added(store, content=b"sound")
    assert store.kept() == [Kept(media.id, 5, NOON.timestamp(), OWNER)]


@pytest.mark.parametrize(
    "broken",
    ["", "{", "[]", "null", "{}", '{"suffix": ".mp3"}', '{"suffix": "/../../etc/passwd", "created_at": "2026-01-01"}'],
)
def test_a_broken_sidecar_hides_its_file_alone(store: MediaStore, broken: str) -> None:
    """A power cut leaves such; one of them must not take the whole list away."""
    whole, media = added(store), added(store)
    media.path.with_suffix(".json").write_text(broken)
    assert store.list(OWNER) == [whole]
    with pytest.raises(MediaNotFound):
        store.get(media.id, OWNER)


@pytest.mark.parametrize(
    ("field", "value"),
    [("suffix", "/../../passwd"), ("suffix", ".json"), ("name", None), ("media_type", 3), ("created_at", "noon")],
)
def test_a_sidecar_is_checked_field_by_field(store: MediaStore, field: str, value: object) -> None:
    media = added(store)
    sidecar = media.path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {field: value}))
    assert store.list(OWNER) == []


def test_a_sidecar_without_its_file_is_not_found(store: MediaStore) -> None:
    media = added(store)
    media.path.unlink()
    assert store.list(OWNER) == []
    with pytest.raises(MediaNotFound):
        store.get(media.id, OWNER)


@pytest.mark.parametrize("media_id", ["", "a", "../" * 8, "A" * 32, "0" * 31, "0" * 33, "0" * 32, "0" * 32 + "\n"])
def test_unknown_and_malformed_ids_are_not_found(store: MediaStore, media_id: str) -> None:
    with pytest.raises(MediaNotFound):
        store.get(media_id, OWNER)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_file_is_found_by_id_and_by_path(store: MediaStore) -> None:
    media = added(store)
    for reference in (media.id, str(media.path), media.path.name, f"./{media.path.name}"):
        assert store.resolve(reference, OWNER) == media.path


async def test_a_file_can_be_opened_by_what_names_it(store: MediaStore) -> None:
    """As in stores elsewhere, which fetch it first."""
    media = added(store)
    async with store.opened(media.id, OWNER) as path:
        assert path == media.path
    with pytest.raises(PathNotAllowed):
        async with store.opened("/etc/passwd", OWNER):
            pass


def test_files_in_further_folders_are_found(store: MediaStore, allowed: Path) -> None:
    (allowed / "deep").mkdir()
    (allowed / "deep" / "a.mp3").write_bytes(b"sound")
    (allowed / "link.mp3").symlink_to(allowed / "deep" / "a.mp3")
    for reference in ("deep/a.mp3", "link.mp3", "deep/../deep/a.mp3"):
        assert store.resolve(str(allowed / reference), OWNER) == allowed / "deep" / "a.mp3"


def test_a_further_folder_that_is_a_link_is_followed(tmp_path: Path, allowed: Path) -> None:
    """/tmp is one on macOS."""
    (allowed / "a.mp3").write_bytes(b"sound")
    (tmp_path / "link").symlink_to(allowed)
    store = MediaStore(tmp_path / "media", (tmp_path / "link",))
    assert store.resolve(str(tmp_path / "link" / "a.mp3"), OWNER) == allowed / "a.mp3"


@pytest.mark.parametrize("name", ["secret.mp3", "absent.mp3", "allowed-not/a.mp3", "", "secret.mp3/deeper"])
def test_what_lies_outside_is_refused_whether_it_exists_or_not(store: MediaStore, tmp_path: Path, name: str) -> None:
    """A different answer would tell which files there are on this machine."""
    (tmp_path / "secret.mp3").write_bytes(b"sound")
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not" / "a.mp3").write_bytes(b"sound")
    for reference in (str(tmp_path / name), f"../{name}", f"x/../../{name}"):
        with pytest.raises(PathNotAllowed) as refused:
            store.resolve(reference, OWNER)
        assert refused.value.message == PathNotAllowed.default_message()


@pytest.mark.parametrize("target", ["secret.mp3", "absent.mp3", "."])
def test_links_that_lead_out_are_refused(store: MediaStore, allowed: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret.mp3").write_bytes(b"sound")
    (allowed / "link").symlink_to(tmp_path / target)
    (allowed / "again").symlink_to(allowed / "link")
    for reference in ("link", "again", "link/secret.mp3"):
        with pytest.raises(PathNotAllowed):
            store.resolve(str(allowed / reference), OWNER)


@pytest.mark.parametrize(
    "reference", ["", "absent.mp3", "a\0b", "\ud800", "x" * 5000, "x/" * 3000 + "y", ".", "folder", "loop"]
)
def test_what_is_inside_and_no_file_is_not_found(store: MediaStore, reference: str) -> None:
    (store.root / "folder").mkdir()
    (store.root / "loop").symlink_to(store.root / "loop")
    with pytest.raises(MediaNotFound):
        store.resolve(reference, OWNER)


def test_a_name_longer_than_a_path_is_not_looked_up(store: MediaStore, allowed: Path) -> None:
    """Each part costs a look, and more the more came before: a megabyte of them took a minute and a half."""
    (allowed / "a.mp3").write_bytes(b"sound")
    room = MAX_REFERENCE_CHARS - len(f"{allowed}/a.mp3")
    name = f"{allowed}/{'./' * (room // 2)}{'/' * (room % 2)}a.mp3"
    assert store.resolve(name, OWNER) == allowed / "a.mp3"
    with pytest.raises(MediaNotFound):
        store.resolve(f"{allowed}/" + name.removeprefix(str(allowed)), OWNER)


def test_devices_and_pipes_are_no_media(store: MediaStore, allowed: Path) -> None:
    """Reading one would wait for ever."""
    os.mkfifo(allowed / "pipe.mp3")
    with pytest.raises(MediaNotFound):
        store.resolve(str(allowed / "pipe.mp3"), OWNER)


def test_the_stores_own_files_are_no_media(store: MediaStore, tmp_path: Path) -> None:
    """Sidecars hold the links of other people's downloads, incoming what is not whole yet."""
    media = added(store)
    half = store.new_place(".mp3")
    half.write_bytes(b"half")
    wider = MediaStore(store.root, (tmp_path,))
    for reader in (store, wider):
        for reference in (f"{media.id}.json", str(half), f"incoming/{half.name}"):
            with pytest.raises(MediaNotFound):
                reader.resolve(reference, OWNER)


def test_an_unknown_id_is_not_found(store: MediaStore) -> None:
    with pytest.raises(MediaNotFound):
        store.resolve("0" * 32, OWNER)


# --- whose it is -----------------------------------------------------------------------------------------------------


def not_found(store: MediaStore, reference: str, owner: str = OTHER) -> bool:
    """Whether it is as if there were no such file, to the letter."""
    try:
        found = store.resolve(reference, owner)
    except MediaNotFound as error:
        return error.message == MediaNotFound.default_message()
    assert found.is_file()
    return False


def test_each_sees_and_deletes_its_own_alone(store: MediaStore) -> None:
    own, others = added(store), added(store, owner=OTHER)
    assert store.list(OWNER) == [own]
    assert store.list(OTHER) == [others]
    for look in (store.get, store.delete, store.check):
        with pytest.raises(MediaNotFound):
            look(others.id, OWNER)
    assert store.get(others.id, OTHER) == others
    assert others.path.exists()


@pytest.mark.parametrize(
    "reference",
    ["{id}", "{id}.mp3", "./{id}.mp3", "x/../{id}.mp3", "{path}", "{allowed}/file", "{allowed}/folder/{id}.mp3"],
)
def test_anothers_file_is_not_found_by_any_name(store: MediaStore, allowed: Path, reference: str) -> None:
    """Its owner finds it by each of them."""
    media = added(store)
    (allowed / "file").symlink_to(media.path)
    (allowed / "folder").symlink_to(store.root)
    reference = reference.format(id=media.id, path=media.path, allowed=allowed)
    assert store.resolve(reference, OWNER) == media.path
    assert not_found(store, reference)


def test_anothers_file_is_not_found_through_a_wider_folder(store: MediaStore, tmp_path: Path) -> None:
    """MEDIA_ROOTS may hold the folder in which the store lies."""
    media, wider = added(store), MediaStore(store.root, (tmp_path,))
    assert not not_found(wider, str(media.path), OWNER)
    assert not_found(wider, str(media.path))


def test_a_file_of_before_there_were_owners_is_nobodys(store: MediaStore) -> None:
    """Nobody knows who may read it; a sweep takes it away in its time."""
    media = added(store)
    sidecar = media.path.with_suffix(".json")
    facts = json.loads(sidecar.read_text())
    del facts["owner"]
    sidecar.write_text(json.dumps(facts))
    for reference in (media.id, media.path.name):
        assert not_found(store, reference, OWNER)
    assert store.list(OWNER) == []
    assert [kept.id for kept in store.kept()] == [media.id]
    store.remove(media.id)
    assert store.kept() == []
    assert not media.path.exists()


def test_a_file_that_is_not_whole_yet_is_nobodys(store: MediaStore) -> None:
    """It is there a moment before its sidecar, which says whose it is."""
    (store.root / f"{'0' * 32}.mp3").write_bytes(b"sound")
    assert not_found(store, f"{'0' * 32}.mp3", OWNER)


@pytest.mark.parametrize(
    "name", ["mine.mp3", "ä.mp3", "0" * 31 + ".mp3", "folder/mine.mp3", f"{'0' * 32}/{'0' * 32}.mp3", "a.json/mine.mp3"]
)
def test_what_an_operator_has_laid_there_is_open_to_all(store: MediaStore, name: str) -> None:
    (store.root / name).parent.mkdir(exist_ok=True)
    (store.root / name).write_bytes(b"put here by hand")
    for owner in (OWNER, OTHER):
        assert store.resolve(name, owner) == store.root / name


def test_other_letters_for_the_same_file_do_not_open_it(store: MediaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where "INCOMING" is found for "incoming", as on a Mac: here both are there, and the folder tells of one."""
    media = added(store)
    names = os.listdir(store.root)
    half = store.new_place(".mp3").name
    (store.root / "INCOMING").mkdir()
    (store.root / "INCOMING" / half).write_bytes(b"half")
    os.link(media.path, store.root / media.path.name.upper())
    # What a file system takes for an "s".
    os.link(media.path.with_suffix(".json"), store.root / f"{media.id}.jſon")
    assert not not_found(store, f"{media.id}.jſon")
    monkeypatch.setattr(os, "listdir", lambda folder: names)
    for reference in (media.path.name.upper(), f"{media.id}.jſon", f"INCOMING/{half}"):
        assert not_found(store, reference)
    assert not not_found(store, media.path.name, OWNER)


def test_a_name_is_told_letter_by_letter() -> None:
    """But for an "ä" that is stored as two letters."""
    assert spelled("a\u0308.mp3", ["b.mp3", "ä.mp3"]) == "ä.mp3"
    assert spelled("A.mp3", ["a.mp3"]) is None


def test_a_folder_is_known_under_another_name(store: MediaStore, tmp_path: Path) -> None:
    """It may be mounted twice."""
    (tmp_path / "again").symlink_to(store.root)
    (store.root / "folder").mkdir()
    place = tmp_path / "again" / "folder" / "a.mp3"
    assert entry_of(store.root, place) == tmp_path / "again" / "folder"
    assert entry_of(store.root, tmp_path / "a.mp3") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("talk.mp3", "audio/mpeg"),
        (".opus", "audio/ogg"),
        (Path("a.b/talk.M4A"), "audio/mp4"),
        ("clip.webm", "video/webm"),
        ("talk", "application/octet-stream"),
        ("talk.html", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_media_types_follow_the_ending(name: str | Path, expected: str) -> None:
    """What is not known is never given a type that a browser would run."""
    assert media_type_of(name) == expected
