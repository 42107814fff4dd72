"""`python -m command_line`, which `scripts/transcribe` starts."""

from __future__ import annotations

import sys

from command_line.running import main

if __name__ == "__main__":
    sys.exit(main())
