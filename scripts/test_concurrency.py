#!/usr/bin/env python3
"""How many recordings at once this server takes best: `python scripts/test_concurrency.py --test-all`.

Any Python may start it: where the project's packages are absent, it goes on in .venv, made by scripts/environment.
It is no test for pytest, which looks into tests/ alone. All else is in benchmarks/concurrency.py.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("ctranslate2", "fastapi", "httpx", "matplotlib", "psutil", "pydantic_settings", "rich")
MEASURE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from benchmarks.concurrency import main; main()"


def is_the_projects() -> bool:
    """Whether this Python has what is needed."""
    return sys.version_info >= (3, 11) and all(importlib.util.find_spec(name) for name in NEEDED)


def main() -> None:
    python = sys.executable
    if not is_the_projects():
        made = subprocess.run(["sh", "-c", ". scripts/environment && environment test >&2"], cwd=ROOT)
        if made.returncode:
            sys.exit(made.returncode)
        python = str(ROOT / ".venv" / "bin" / "python")
    # The caller's folder stays the current one: --file and --dir are told from there.
    os.execv(python, [python, "-c", MEASURE, str(ROOT), *sys.argv[1:]])


if __name__ == "__main__":
    main()
