"""Which languages there are, and how people write them. Pure.

Whisper's hundred languages, with its own codes and names (openai/whisper, `tokenizer.py`).
"""

from __future__ import annotations

import difflib
import re
import unicodedata

from errors import UnsupportedLanguage

LANGUAGES: dict[str, str] = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "norwegian nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}
"""Whisper's code -> English name, in small letters as Whisper and OpenAI's answers spell it."""

ADDED_IN_LARGE_V3 = frozenset({"yue"})
"""Codes that only the models of large-v3's family have a token for."""

_OTHER_NAMES = {
    "afghan": "ps",
    "azeri": "az",
    "bangla": "bn",
    "bahasa indonesia": "id",
    "bahasa melayu": "ms",
    "bokmål": "no",
    "norwegian bokmål": "no",
    "brazilian": "pt",
    "brazilian portuguese": "pt",
    "burmese": "my",
    "castilian": "es",
    "farsi": "fa",
    "filipino": "tl",
    "flemish": "nl",
    "haitian": "ht",
    "kreyol": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "mandarin chinese": "zh",
    "simplified chinese": "zh",
    "traditional chinese": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "myanmar": "my",
    "nynorsk": "nn",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
    # What people call their own language, for those most often spoken to this kind of service.
    "deutsch": "de",
    "español": "es",
    "français": "fr",
    "italiano": "it",
    "português": "pt",
    "nederlands": "nl",
    "svenska": "sv",
    "norsk": "no",
    "dansk": "da",
    "suomi": "fi",
    "polski": "pl",
    "čeština": "cs",
    "türkçe": "tr",
    "русский": "ru",
    "中文": "zh",
    "日本語": "ja",
}
"""Further names -> code."""

_OTHER_CODES = {
    "cmn": "zh",
    "fil": "tl",
    "in": "id",
    "iw": "he",
    "ji": "yi",
    "jv": "jw",
    "mo": "ro",
    "nb": "no",
}
"""Codes of other tables, old and new (IANA's language subtag registry), -> Whisper's."""

_CODE_WITH_REGION = re.compile(r"([a-z]{2,3})(?:[-_][a-z]{4})?(?:[-_](?:[a-z]{2}|[0-9]{3}))?")
"""A code, then perhaps a script, then perhaps a region: "en", "pt_BR", "zh-Hant-TW", "es-419"."""


def language_code(name_or_code: str) -> str:
    """Whisper's code for what a person wrote: "en", "en-US", "English", "Castilian", "español".

    Case, accents and surrounding space do not matter. Raises UnsupportedLanguage with the nearest name there is.
    """
    wanted = _plain(name_or_code)
    if wanted in _CODE_OF_NAME:
        return _CODE_OF_NAME[wanted]
    if match := _CODE_WITH_REGION.fullmatch(wanted):
        code = _OTHER_CODES.get(match[1], match[1])
        if code in LANGUAGES:
            return code
    raise UnsupportedLanguage(_refusal(name_or_code, wanted))


def _plain(text: str) -> str:
    """*text* in small letters, without accents, inner space made single."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(char for char in decomposed if not unicodedata.combining(char)).split())


_CODE_OF_NAME = {_plain(name): code for code, name in LANGUAGES.items()} | {
    _plain(name): code for name, code in _OTHER_NAMES.items()
}


def _refusal(written: str, wanted: str) -> str:
    shown = written if len(written) <= 40 else written[:39] + "…"
    nearest = difflib.get_close_matches(wanted[:40], _CODE_OF_NAME, n=1)
    guess = f" Did you mean {nearest[0]!r} ({_CODE_OF_NAME[nearest[0]]})?" if nearest else ""
    return (
        f"There is no language {shown!r} here.{guess} "
        "Give a code such as en, or an English name; leave it out to have it detected."
    )
