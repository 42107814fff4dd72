"""Speech in a PCM file by WhisperX's pyannote model: `python -m transcription.pyannote_child FILE`.

Prints [[first sample, last sample], …].

The only place of voice activity that imports torch; a process of its own, gone when its recording is done.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings

import numpy as np

from cores import available_cores
from transcription.core import SAMPLE_RATE

SPEECH_ABOVE, SILENCE_BELOW = 0.500, 0.363
"""WhisperX's defaults for this model."""


def speech(path: str) -> list[tuple[int, int]]:
    """Spans of speech in samples, as WhisperX binarizes the model's scores."""
    import torch
    from whisperx.vads.pyannote import Binarize, load_vad_model

    # The engine has the cores as well, and torch's threads wait for each other without letting go of theirs.
    torch.set_num_threads(max(1, available_cores() // 2))
    pipeline = load_vad_model(torch.device("cpu"), vad_onset=SPEECH_ABOVE, vad_offset=SILENCE_BELOW)
    pcm = np.fromfile(path, np.int16)
    waveform = torch.from_numpy(pcm.astype(np.float32) / 32_768)[None]
    scores = pipeline({"waveform": waveform, "sample_rate": SAMPLE_RATE})
    regions = Binarize(onset=SPEECH_ABOVE, offset=SILENCE_BELOW)(scores).get_timeline().support()
    return [(max(0, int(r.start * SAMPLE_RATE)), min(len(pcm), int(r.end * SAMPLE_RATE))) for r in regions]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk; stdout is the answer's alone
        found = speech(sys.argv[1])
    print(json.dumps(found))
