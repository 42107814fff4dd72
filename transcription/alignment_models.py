"""Which model aligns which language: WhisperX's defaults, what the operator sets, what each takes in memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from errors import ConfigurationError, InvalidRequest

DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "en": "WAV2VEC2_ASR_BASE_960H",
        "fr": "VOXPOPULI_ASR_BASE_10K_FR",
        "de": "VOXPOPULI_ASR_BASE_10K_DE",
        "es": "VOXPOPULI_ASR_BASE_10K_ES",
        "it": "VOXPOPULI_ASR_BASE_10K_IT",
        "ja": "jonatasgrosman/wav2vec2-large-xlsr-53-japanese",
        "zh": "jonatasgrosman/wav2vec2-large-xlsr-53-chinese-zh-cn",
        "nl": "jonatasgrosman/wav2vec2-large-xlsr-53-dutch",
        "uk": "Yehor/wav2vec2-xls-r-300m-uk-with-small-lm",
        "pt": "jonatasgrosman/wav2vec2-large-xlsr-53-portuguese",
        "ar": "jonatasgrosman/wav2vec2-large-xlsr-53-arabic",
        "cs": "comodoro/wav2vec2-xls-r-300m-cs-250",
        "ru": "jonatasgrosman/wav2vec2-large-xlsr-53-russian",
        "pl": "jonatasgrosman/wav2vec2-large-xlsr-53-polish",
        "hu": "jonatasgrosman/wav2vec2-large-xlsr-53-hungarian",
        "fi": "jonatasgrosman/wav2vec2-large-xlsr-53-finnish",
        "fa": "jonatasgrosman/wav2vec2-large-xlsr-53-persian",
        "el": "jonatasgrosman/wav2vec2-large-xlsr-53-greek",
        "tr": "mpoyraz/wav2vec2-xls-r-300m-cv7-turkish",
        "da": "saattrupdan/wav2vec2-xls-r-300m-ftspeech",
        "he": "imvladikon/wav2vec2-xls-r-300m-hebrew",
        "vi": "nguyenvulebinh/wav2vec2-base-vi-vlsp2020",
        "ko": "kresnik/wav2vec2-large-xlsr-korean",
        "ur": "kingabzpro/wav2vec2-large-xls-r-300m-Urdu",
        "te": "anuragshas/wav2vec2-large-xlsr-53-telugu",
        "hi": "theainerd/Wav2Vec2-large-xlsr-hindi",
        "ca": "softcatala/wav2vec2-large-xlsr-catala",
        "ml": "gvs/wav2vec2-large-xlsr-malayalam",
        "no": "NbAiLab/nb-wav2vec2-1b-bokmaal-v2",
        "nn": "NbAiLab/nb-wav2vec2-1b-nynorsk",
        "sk": "comodoro/wav2vec2-xls-r-300m-sk-cv8",
        "sl": "anton-l/wav2vec2-large-xlsr-53-slovenian",
        "hr": "classla/wav2vec2-xls-r-parlaspeech-hr",
        "ro": "gigant/romanian-wav2vec2",
        "eu": "stefan-it/wav2vec2-large-xlsr-53-basque",
        "gl": "ifrz/wav2vec2-large-xlsr-galician",
        "ka": "xsway/wav2vec2-large-xlsr-georgian",
        "lv": "jimregan/wav2vec2-large-xlsr-latvian-cv",
        "tl": "Khalsuu/filipino-wav2vec2-l-xls-r-300m-official",
        "sv": "KBLab/wav2vec2-large-voxrex-swedish",
        "id": "cahya/wav2vec2-large-xlsr-indonesian",
    }
)
"""By Whisper's code, as WhisperX 3.8 has them; names of torchaudio's pipelines, or repositories of the model hub."""

BASE_BYTES = 380 * 2**20
LARGE_BYTES = 1_270 * 2**20
LARGEST_BYTES = 3_850 * 2**20
"""wav2vec 2.0 with 95, 315 and 965 million parameters in float32."""


class AlignmentModels:
    """The models that may be used. Callers may name these and no others: a name could be any path or repository."""

    def __init__(self, own: Mapping[str, str] | None = None) -> None:
        """*own*: by language, in place of the defaults."""
        self._own = dict(own or {})

    def name_for(self, language: str, asked: str | None = None) -> str | None:
        """The model for *language*; None where there is none."""
        return asked or self._own.get(language) or DEFAULTS.get(language)

    def check(self, name: str) -> None:
        """Raises InvalidRequest where callers may not name it."""
        if name not in self.names:
            raise InvalidRequest(
                f"align_model: {name!r} is not one of this server's. Its operator can add it to ALIGN_MODELS."
            )

    @property
    def names(self) -> set[str]:
        return {*self._own.values(), *DEFAULTS.values()}


def read_own(pairs: Iterable[str]) -> dict[str, str]:
    """`language=name` as the operator writes it. Raises ConfigurationError."""
    found = {}
    for pair in pairs:
        language, equals, name = pair.partition("=")
        if not (equals and language.strip() and name.strip()):
            raise ConfigurationError(
                f"ALIGN_MODELS: {pair!r} must be a language's code, =, and a model's name or folder."
            )
        found[language.strip()] = name.strip()
    return found


def weights_bytes(name: str | None) -> int:
    """What the model of that name takes in memory once loaded: of a folder its files, else by its family."""
    if name is None:
        return BASE_BYTES
    folder = Path(name)
    if folder.is_dir():
        return max((file.stat().st_size for file in folder.iterdir() if file.is_file()), default=BASE_BYTES)
    lower = name.lower()
    if "-1b" in lower:
        return LARGEST_BYTES
    is_base = "base" in lower
    return BASE_BYTES if is_base else LARGE_BYTES
