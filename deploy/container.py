"""The container's first process: makes sure that DATA_DIR can be written, gives up root, becomes the server.

    python container.py COMMAND …     run COMMAND as the service's user
    python container.py --healthy     exit 0 when the server answers /health

Platforms (Railway among them) mount volumes as root's, where a user without rights cannot write. Started as root
(`RAILWAY_RUN_UID=0`) this hands the folder over and goes on as the service's user, so that no server runs as root.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

USER_ID = 10001
"""The Dockerfile's `stenogate`."""


def prepare(data_dir: Path, user_id: int = USER_ID) -> None:
    """Hand *data_dir* to the service's user and become that user. Only root can, and for others there is no need.

    Raises SystemExit with what to do where the folder cannot be written.
    """
    if os.getuid() == 0:
        data_dir.mkdir(parents=True, exist_ok=True)
        if data_dir.stat().st_uid != user_id:
            hand_over(data_dir, user_id)
        os.setgroups([])
        os.setgid(user_id)
        os.setuid(user_id)
        os.environ["HOME"] = "/home/stenogate"
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise SystemExit(
            f"DATA_DIR={data_dir} cannot be written by user {os.getuid()}. On Railway set the variable "
            f"RAILWAY_RUN_UID=0; elsewhere: chown -R {os.getuid()} on the folder that is mounted there."
        )


def hand_over(folder: Path, user_id: int) -> None:
    """Give the folder and all in it to the user. Links are given themselves, not what they lead to."""
    os.chown(folder, user_id, user_id)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(parent, name), user_id, user_id, follow_symlinks=False)


def healthy(port: str) -> bool:
    """Whether the server on this machine answers /health."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=4) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    if sys.argv[1:] == ["--healthy"]:
        raise SystemExit(0 if healthy(os.environ.get("PORT", "8000")) else 1)
    prepare(Path(os.environ.get("DATA_DIR", "/data")))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
