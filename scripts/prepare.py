"""What scripts/serve does between installing and starting: find ffmpeg and the default model's weights, and say so.

The server would find both itself; here a person learns in a sentence what is absent, before the log begins.
"""

from __future__ import annotations

import sys

from pydantic import ValidationError

from errors import ServiceError
from ffmpeg import FFmpeg
from settings import Settings
from transcription.models import ModelLibrary, spec


def prepare(settings: Settings) -> None:
    """Raises ServiceError with what to do."""
    print(f"==> ffmpeg: {FFmpeg.locate(settings.ffmpeg).path}", flush=True)
    model = spec(settings.model_size).name
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    library = ModelLibrary(settings.model_path, downloads=settings.model_downloads, hf_token=token)
    if library.find(model) is None:
        print(f"==> Getting the weights of {model} ready in {settings.model_path}", flush=True)
    print(f"==> Weights of {model}: {library.ensure(model)}", flush=True)


def main() -> None:
    try:
        settings = Settings()
        settings.check()
        prepare(settings)
    except ServiceError as error:
        sys.exit(f"Error: {error.message}")
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        sys.exit(f"Error: these settings are wrong: {wrong}.")


if __name__ == "__main__":
    main()
