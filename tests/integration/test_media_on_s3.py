"""Media and uploads in S3-compatible storage, as several machines share them; the server of that protocol is real."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from downloads.local_copies import LocalCopies
from downloads.object_media import ObjectMedia
from downloads.objects import BLOCK_BYTES, Objects
from downloads.stored_files import MediaFile
from errors import ConfigurationError, MediaNotFound, PathNotAllowed, StoreUnavailable, UploadGone
from jobs.uploads import ObjectUploads

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
BUCKET = "recordings"
OWNER, OTHER = "a-key", "another-key"


class Server:
    """A server of the protocol, which can be taken away and brought back empty."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.port = 0
        self.start()

    def start(self) -> None:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                # Compiled anew at each start otherwise, where nobody writes bytecode.
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while "Running on http" not in (told := self._log.read_text()):
            assert time.monotonic() < deadline, told
            assert self._process.poll() is None, told
        self.port = int(told.split("Running on http://127.0.0.1:")[1].split()[0])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bucket(server: Server) -> Iterator[Objects]:
    with pytest.MonkeyPatch.context() as environment:
        # What a person sets.
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "a-key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        environment.setenv("AWS_REGION", "us-east-1")
        objects = Objects.at(f"s3://{BUCKET}/prefix")
        objects._files.mkdir(BUCKET)
        yield objects
        objects.close()


@pytest.fixture
def objects(bucket: Objects) -> Objects:
    """A prefix that no other test uses."""
    return bucket.below(secrets.token_hex(4))


class Machine:
    """One of several that share the storage."""

    def __init__(self, objects: Objects, folder: Path, roots: tuple[Path, ...] = ()) -> None:
        self.objects = objects
        self.folder = folder
        self.copies = LocalCopies(folder / "copies", max_bytes=10**9)
        self.media = ObjectMedia(objects.below("media"), self.copies, roots, clock=lambda: NOON)
        self.uploads = ObjectUploads(objects.below("uploads"), self.copies)

    def written(self, name: str, content: bytes = b"sound") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def stored(self, name: str = "talk.mp3", content: bytes = b"sound", owner: str = OWNER) -> MediaFile:
        return self.media.add(self.written(name, content), owner=owner, name=name)

    def copied(self) -> list[str]:
        return sorted(path.name for path in self.copies.folder.iterdir())


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    (tmp_path / "allowed").mkdir()
    return tmp_path / "allowed"


@pytest.fixture
def here(objects: Objects, tmp_path: Path, allowed: Path) -> Iterator[Machine]:
    machine = Machine(objects, tmp_path / "here", (allowed,))
    yield machine
    machine.copies.close()


@pytest.fixture
def there(objects: Objects, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(objects, tmp_path / "there")
    yield machine
    machine.copies.close()


# --- media -----------------------------------------------------------------------------------------------------------


async def test_what_one_machine_adds_another_reads(here: Machine, there: Machine) -> None:
    place = here.written("made.webm")
    added = here.media.add(
        place,
        owner=OWNER,
        name="Ein Ärger.webm",
        media_type="audio/webm",
        duration_s=1.5,
        title="Ein Ärger",
        extractor="generic",
        source="https://example.org/a",
    )
    assert not place.exists()
    found = there.media.get(added.id, OWNER)
    assert found == MediaFile(
        id=added.id,
        path=there.copies.place(f"{added.id}.webm"),
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
    assert there.copied() == []
    async with there.media.opened(added.id, OWNER) as path:
        assert path == found.path
        assert path.read_bytes() == b"sound"
    assert there.media.resolve(added.id, OWNER).read_bytes() == b"sound"


async def test_the_machine_that_added_a_file_need_not_fetch_it(here: Machine) -> None:
    media = here.stored()
    assert here.copied() == [media.path.name]


async def test_a_file_of_many_blocks_comes_whole(here: Machine, there: Machine) -> None:
    """It is sent in parts and fetched in blocks, none of which is the last one's size."""
    content = os.urandom(2 * BLOCK_BYTES + 12345)
    media = here.stored(content=content)
    async with there.media.opened(media.id, OWNER) as path:
        assert path.read_bytes() == content


async def test_a_file_is_found_by_its_name_and_by_the_path_that_another_machine_told(
    here: Machine, there: Machine
) -> None:
    media = here.stored()
    for reference in (media.path.name, f"./{media.path.name}", str(there.copies.place(media.path.name))):
        async with there.media.opened(reference, OWNER) as path:
            assert path.read_bytes() == b"sound"


async def test_files_of_the_machine_itself_are_found_where_that_is_allowed(here: Machine, allowed: Path) -> None:
    (allowed / "a.mp3").write_bytes(b"sound")
    async with here.media.opened(str(allowed / "a.mp3"), OWNER) as path:
        assert path == allowed / "a.mp3"
    assert here.media.resolve(str(allowed / "a.mp3"), OWNER) == allowed / "a.mp3"
    for outside in ("/etc/passwd", "a.mp3", "../a.mp3", f"/elsewhere/{'0' * 32}.mp3"):
        with pytest.raises(PathNotAllowed):
            here.media.resolve(outside, OWNER)
        with pytest.raises(PathNotAllowed):
            async with here.media.opened(outside, OWNER):
                pass


async def test_a_deleted_file_is_gone_for_all(here: Machine, there: Machine) -> None:
    """Also where a copy of it still lies."""
    media, other = here.stored(), here.stored()
    there.media.resolve(media.id, OWNER)
    here.media.delete(media.id, OWNER)
    assert there.media.list(OWNER) == [there.media.get(other.id, OWNER)]
    for gone in (there.media.get, there.media.delete, there.media.resolve):
        with pytest.raises(MediaNotFound):
            gone(media.id, OWNER)
    with pytest.raises(MediaNotFound):
        async with there.media.opened(media.id, OWNER):
            pass
    assert [kept.id for kept in there.media.kept()] == [other.id]


async def test_a_sidecar_without_its_file_is_not_found(here: Machine, there: Machine) -> None:
    media = here.stored()
    here.objects.below("media").remove(media.path.name)
    with pytest.raises(MediaNotFound):
        async with there.media.opened(media.id, OWNER):
            pass
    assert there.copied() == []


async def test_anothers_file_is_not_found_by_any_name_on_any_machine(here: Machine, there: Machine) -> None:
    """Also where a copy of it lies: the answer is that to an id which nobody has."""
    media = here.stored()
    there.media.resolve(media.id, OWNER)
    assert [found.id for found in there.media.list(OWNER)] == [media.id]
    assert there.media.list(OTHER) == []
    for reference in (media.id, media.path.name, str(there.copies.place(media.path.name))):
        there.media.check(reference, OWNER)
        for asked in (there.media.check, there.media.resolve):
            with pytest.raises(MediaNotFound, match=MediaNotFound.default_message()):
                asked(reference, OTHER)
        with pytest.raises(MediaNotFound):
            async with there.media.opened(reference, OTHER):
                pass
    for look in (there.media.get, there.media.delete):
        with pytest.raises(MediaNotFound):
            look(media.id, OTHER)
    assert here.media.get(media.id, OWNER).bytes == 5


def test_a_file_is_looked_for_without_fetching_it(here: Machine, there: Machine) -> None:
    """A call that is answered with a job must not wait for gigabytes."""
    media = here.stored()
    there.media.check(media.id, OWNER)
    assert there.copied() == []
    here.objects.below("media").remove(media.path.name)
    with pytest.raises(MediaNotFound):
        there.media.check(media.id, OWNER)


def test_a_file_of_before_there_were_owners_is_nobodys(here: Machine) -> None:
    """Nobody knows who may read it; a sweep takes it away in its time."""
    media, objects = here.stored(), here.objects.below("media")
    facts = json.loads(objects.read(f"{media.id}.json"))
    del facts["owner"]
    objects.write(f"{media.id}.json", json.dumps(facts).encode())
    with pytest.raises(MediaNotFound):
        here.media.get(media.id, OWNER)
    assert here.media.list(OWNER) == []
    assert [kept.id for kept in here.media.kept()] == [media.id]
    here.media.remove(media.id)
    assert objects.listed() == []


def test_copies_are_not_read_through_a_wider_folder(objects: Objects, tmp_path: Path) -> None:
    """MEDIA_ROOTS may hold the folder of everybody's copies."""
    machine = Machine(objects, tmp_path / "here", (tmp_path,))
    media = machine.stored()
    (tmp_path / "link.mp3").symlink_to(media.path)
    for reference in (str(tmp_path / "link.mp3"), f"{tmp_path}/here/../here/copies/{media.path.name}"):
        with pytest.raises(MediaNotFound):
            machine.media.resolve(reference, OTHER)
    machine.copies.close()


@pytest.mark.parametrize("media_id", ["", "a", "../" * 8, "A" * 32, "0" * 32, "0" * 32 + "\n"])
def test_unknown_and_malformed_ids_are_not_found(here: Machine, media_id: str) -> None:
    with pytest.raises(MediaNotFound):
        here.media.get(media_id, OWNER)


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"{}", b'{"suffix": "/../x", "created_at": "2026-01-01"}'])
def test_a_broken_sidecar_hides_its_file_alone(here: Machine, broken: bytes) -> None:
    whole, media = here.stored(), here.stored()
    here.objects.below("media").write(f"{media.id}.json", broken)
    assert whole in here.media.list(OWNER)
    assert media.id not in [found.id for found in here.media.list(OWNER)]
    with pytest.raises(MediaNotFound):
        here.media.get(media.id, OWNER)


def test_a_sweep_sees_sizes_and_ages_and_removes_what_is_half_added(here: Machine) -> None:
    media = here.stored()
    objects = here.objects.below("media")
    objects.write("0" * 32 + ".mp3", b"half")
    objects.write("notes.txt", b"put here by hand")
    (kept,) = here.media.kept()
    assert (kept.id, kept.bytes) == (media.id, 5)
    assert abs(kept.since - time.time()) < 600
    assert here.media.remove_strays(time.time() - 3600) == 0
    assert here.media.remove_strays(time.time() + 3600) == 1
    assert {stored.name for stored in objects.listed()} == {media.path.name, f"{media.id}.json", "notes.txt"}


# --- uploads ---------------------------------------------------------------------------------------------------------


async def test_what_one_machine_takes_in_another_works_on(here: Machine, there: Machine) -> None:
    name = here.uploads.keep(here.written("sent"))
    there.uploads.check(name)
    assert there.copied() == []
    async with there.uploads.opened(name) as path:
        assert path is not None
        assert path.read_bytes() == b"sound"
    assert [found for found, _ in there.uploads.names()] == [name]


async def test_a_removed_upload_is_gone(here: Machine, there: Machine) -> None:
    name = here.uploads.keep(here.written("sent"))
    here.uploads.remove(name)
    here.uploads.remove(name)
    assert list(there.uploads.names()) == []
    for gone in (name, "0" * 32, "", "../x"):
        with pytest.raises(UploadGone):
            there.uploads.check(gone)
        with pytest.raises(UploadGone):
            async with there.uploads.opened(gone):
                pass


async def test_where_nothing_was_sent_there_is_nothing_to_read(here: Machine) -> None:
    here.uploads.check(None)
    async with here.uploads.opened(None) as path:
        assert path is None


# --- storage that is wrong, or away ----------------------------------------------------------------------------------


def test_storage_that_can_be_used_is_told_so(objects: Objects) -> None:
    objects.check()
    assert objects.listed() == []


def test_a_bucket_that_is_not_there_is_told_at_start(bucket: Objects) -> None:
    objects = Objects.at("s3://no-such-bucket/prefix")
    with pytest.raises(ConfigurationError, match="no-such-bucket"):
        objects.check()
    objects.close()


@pytest.mark.parametrize("url", ["s3://", "gs://bucket/x", "http://127.0.0.1/x", "s3:bucket"])
def test_storage_of_another_kind_is_told_at_start(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Objects.at(url)


async def test_storage_that_is_away_is_told_and_comes_back(
    bucket: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost on this side, and nobody has to start anything anew."""
    server = Server(tmp_path / "log")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    objects = Objects.at(f"s3://{BUCKET}/away")
    machine = Machine(objects, tmp_path / "here")
    try:
        objects._files.mkdir(BUCKET)
        media = machine.stored()
        server.stop()
        path = machine.written("next.mp3")
        with pytest.raises(StoreUnavailable):
            machine.media.add(path, owner=OWNER, name="next")
        with pytest.raises(StoreUnavailable):
            machine.uploads.keep(path)
        assert path.exists()
        for asked in (
            lambda: machine.media.list(OWNER),
            machine.media.kept,
            lambda: machine.media.get(media.id, OWNER),
        ):
            with pytest.raises(StoreUnavailable):
                asked()
        with pytest.raises(StoreUnavailable):
            async with machine.uploads.opened("0" * 32):
                pass
        server.start()
        objects._files.mkdir(BUCKET)
        assert machine.media.get(machine.stored().id, OWNER).bytes == 5
    finally:
        server.stop()
        machine.copies.close()
        objects.close()
