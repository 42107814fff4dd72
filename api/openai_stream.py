"""A transcription as OpenAI streams it: the text in pieces as it is heard, who said what, then the whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

from api.event_stream import message
from api.openai_answers import about, diarized_segments, logprobs
from api.openai_parameters import SpeechFormat, TranscriptionParameters
from api.problems import in_openais_shape
from errors import ServiceError
from jobs.crew import Outcome
from jobs.journal import Told
from transcription.core import Transcript, TranscriptSegment

DELTA, DONE = "transcript.text.delta", "transcript.text.done"

log = structlog.get_logger("api")


class DeltaTeller:
    """A `transcript.text.delta` a segment; together they are the text. Events have no names: their data tells the type.

    Who speaks is known when all is heard: `transcript.text.segment` comes then, before `transcript.text.done`.
    """

    def __init__(self, asked: TranscriptionParameters) -> None:
        self._asked = asked
        self._sent: list[str] = []
        self._space = ""
        """Ends what was heard: sent once there is more, for the text ends without."""

    def heard(self, told: Told) -> Iterable[str]:
        if not isinstance(told, TranscriptSegment):
            return
        text = self._space + told.text if self._sent else told.text.lstrip()
        delta = text.rstrip()
        if not delta:
            self._space = text
            return
        self._space = text[len(delta) :]
        yield self._delta(delta, [told])

    def _delta(self, text: str, heard: Iterable[TranscriptSegment]) -> str:
        self._sent.append(text)
        data: dict[str, Any] = {"type": DELTA, "delta": text}
        if self._asked.logprobs:
            data["logprobs"] = logprobs(heard)
        return message(None, data)

    async def over(self, outcome: Outcome) -> Iterable[str]:
        assert isinstance(outcome, Transcript)
        return list(self._ending(outcome))

    def _ending(self, transcript: Transcript) -> Iterable[str]:
        sent = "".join(self._sent)
        if not transcript.text.startswith(sent):
            log.warning("what was streamed is not how the transcript begins", streamed=len(sent))
        # Of work that was done before, or by others, nothing was told on the way.
        elif rest := transcript.text[len(sent) :]:
            yield self._delta(rest, transcript.segments if not sent else ())
        if self._asked.response_format is SpeechFormat.DIARIZED_JSON:
            for segment in diarized_segments(transcript):
                yield message(None, segment)
        yield message(None, {"type": DONE, "text": transcript.text, **about(transcript, self._asked)})

    def failed(self, error: ServiceError) -> Iterable[str]:
        yield message(None, {"type": "error", **in_openais_shape(error)})
