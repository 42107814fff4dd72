"""What containers and people call Whisper's languages: three letters (ISO 639-2/T, else 639-3) and an English name."""

from __future__ import annotations

from transcription.languages import LANGUAGES

UNDETERMINED = "und"

_TAGS = dict(
    pair.split(":")
    for pair in [
        "en:eng",
        "zh:zho",
        "de:deu",
        "es:spa",
        "ru:rus",
        "ko:kor",
        "fr:fra",
        "ja:jpn",
        "pt:por",
        "tr:tur",
        "pl:pol",
        "ca:cat",
        "nl:nld",
        "ar:ara",
        "sv:swe",
        "it:ita",
        "id:ind",
        "hi:hin",
        "fi:fin",
        "vi:vie",
        "he:heb",
        "uk:ukr",
        "el:ell",
        "ms:msa",
        "cs:ces",
        "ro:ron",
        "da:dan",
        "hu:hun",
        "ta:tam",
        "no:nor",
        "th:tha",
        "ur:urd",
        "hr:hrv",
        "bg:bul",
        "lt:lit",
        "la:lat",
        "mi:mri",
        "ml:mal",
        "cy:cym",
        "sk:slk",
        "te:tel",
        "fa:fas",
        "lv:lav",
        "bn:ben",
        "sr:srp",
        "az:aze",
        "sl:slv",
        "kn:kan",
        "et:est",
        "mk:mkd",
        "br:bre",
        "eu:eus",
        "is:isl",
        "hy:hye",
        "ne:nep",
        "mn:mon",
        "bs:bos",
        "kk:kaz",
        "sq:sqi",
        "sw:swa",
        "gl:glg",
        "mr:mar",
        "pa:pan",
        "si:sin",
        "km:khm",
        "sn:sna",
        "yo:yor",
        "so:som",
        "af:afr",
        "oc:oci",
        "ka:kat",
        "be:bel",
        "tg:tgk",
        "sd:snd",
        "gu:guj",
        "am:amh",
        "yi:yid",
        "lo:lao",
        "uz:uzb",
        "fo:fao",
        "ht:hat",
        "ps:pus",
        "tk:tuk",
        "nn:nno",
        "mt:mlt",
        "sa:san",
        "lb:ltz",
        "my:mya",
        "bo:bod",
        "tl:tgl",
        "mg:mlg",
        "as:asm",
        "tt:tat",
        "haw:haw",
        "ln:lin",
        "ha:hau",
        "ba:bak",
        "jw:jav",
        "su:sun",
        "yue:yue",
    ]
)


def tag(code: str | None) -> str:
    """The three letters for Whisper's *code*; "und" where it is None or no code of Whisper's."""
    return _TAGS.get(code or "", UNDETERMINED)


def name(code: str | None) -> str | None:
    """The language's name as it is shown to people: "English"."""
    # NOTE: Whisper's own list spells Portuguese with an accent, which clients compare with.
    return LANGUAGES[code].replace("ê", "e").title() if code in LANGUAGES else None
