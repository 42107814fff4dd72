"""Where the weights lie: the library's and the server's are the same files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.speech_set import ROOT
from transcription.models import ModelLibrary

MODEL_DIR = ROOT / "data" / "models"
"""Shared by all runs, so that packaged weights are put together once."""


def weights_folder(model: str) -> Path:
    """The folder of the CTranslate2 model. Raises ModelUnavailable: nothing is fetched for a measurement."""
    return ModelLibrary(MODEL_DIR, downloads=False, hf_token=None).ensure(model)
