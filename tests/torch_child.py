"""A child as `transcription.torch_process` knows one, without torch: what its calls say is what it does.

`do` of a call: "echo" answers with what it was told, "fail" with an error, "memory" with one of memory, "die" ends it,
"pid" answers with the process's number, "config" with the line it was started with, "hang" never answers.
"""

from __future__ import annotations

import json
import os
import signal
import sys


def main() -> None:
    config = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        call = json.loads(line)
        match call["do"]:
            case "die":
                os._exit(3)
            case "hang":
                signal.pause()
            case "fail":
                reply = {"error": "failed"}
            case "memory":
                reply = {"error": "failed", "out_of_memory": True}
            case "pid":
                reply = {"pid": os.getpid()}
            case "config":
                reply = {"config": config}
            case _:
                reply = {"told": call}
        print(json.dumps({"id": call["id"]} | reply), flush=True)


if __name__ == "__main__":
    main()
