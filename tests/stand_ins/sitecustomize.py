"""A small English alignment model, and a pipeline that tells speakers apart, in place of what WhisperX would fetch.

For child processes of tests: with PYTHONPATH=tests/stand_ins, Python imports this module at its start. Nothing else is
imported then. When the program itself imports `whisperx.alignment`, that module's `load_align_model` is replaced by one
which gives the stand-in for "en" where no model is named or WhisperX's default, and asks WhisperX's own for all else.
When it imports `whisperx.diarize`, the config.yaml of the pipeline in the folder DIARIZATION_DIR is written.

The stand-in lies in MODELS_SHARED_DIR (default: ../shared/models beside the project), its encoder is Whisper `base`
from the packaged weights, which ALIGNMENT_WHISPER_DIR may name as a joined folder; without it they are joined in a
temporary folder that is kept for the next process. It needs the project on the import path.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def models_shared_dir() -> Path:
    """The folder with models that no package has."""
    return Path(os.environ.get("MODELS_SHARED_DIR") or ROOT.parent / "shared" / "models").expanduser().resolve()


def whisper_dir() -> str:
    """The folder of Whisper `base` in CTranslate2's format."""
    if named := os.environ.get("ALIGNMENT_WHISPER_DIR"):
        return named
    from transcription.models import ModelLibrary

    folder = Path(tempfile.gettempdir()) / f"stenogate-stand-ins-{os.getuid()}"
    return str(ModelLibrary(folder, downloads=False, hf_token=None).ensure("base"))


def load_stand_in() -> tuple[Any, dict[str, Any]]:
    """(model, metadata) in the shape that `whisperx.alignment.load_align_model` gives."""
    folder = models_shared_dir() / "alignment"
    spec = importlib.util.spec_from_file_location("offline_align_model", folder / "offline_align_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: tuple[Any, dict[str, Any]] = module.load(whisper_dir(), str(folder / "ctc_head_whisper_base.pt"))
    return found


def replace_in(module: ModuleType) -> None:
    """Put the stand-in's loader into `whisperx.alignment`."""
    original = module.load_align_model

    def load_align_model(language_code: str, device: str, model_name: str | None = None, **more: Any) -> Any:
        if language_code == "en" and model_name in (None, module.DEFAULT_ALIGN_MODELS_TORCH["en"]):
            return load_stand_in()
        return original(language_code, device, model_name=model_name, **more)

    module.load_align_model = load_align_model  # type: ignore[attr-defined]


def write_pipeline(_: ModuleType) -> None:
    """Here, since it takes pyannote: for a process of its own, that alone would be most of the work."""
    if folder := os.environ.get("DIARIZATION_DIR"):
        runpy.run_path(f"{folder}/write_config.py")


ON_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "whisperx.alignment": replace_in,
    "whisperx.diarize": write_pipeline,
}


class Adding(Loader):
    """Loads the module as usual, then does what is to be done with it."""

    def __init__(self, usual: Loader, then: Callable[[ModuleType], None]) -> None:
        self._usual = usual
        self._then = then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._usual.exec_module(module)
        self._then(module)


class Finder(MetaPathFinder):
    """Finds these modules where Python would, and gives them the loader above."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in ON_IMPORT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Adding(spec.loader, ON_IMPORT[name])
        return spec


for name in ON_IMPORT.keys() & sys.modules.keys():
    ON_IMPORT[name](sys.modules[name])
if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
