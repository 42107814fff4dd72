"""The process in which yt-dlp works, for one download. A script, run isolated (`python -I`); imports nothing of ours.

One JSON line on stdin asks; JSON lines on stdout answer: {"event": "progress"}, then one {"event": "done"} or
{"event": "failed"}. All other output goes to stderr. The working folder is the download's own. The end of stdin means
that the parent is gone: the whole process group ends at once.

yt-dlp is kept on a leash in three ways, each of which fails closed: its options, what is overridden below, and an audit
hook that lets the interpreter connect to the proxy, start the given ffmpeg on local files and write here, and no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

PROGRESS_INTERVAL_S = 0.25
SCHEMES = ("http", "https")
REDIRECTS = 10
PROTOCOLS = {"http", "https", "m3u8", "m3u8_native", "http_dash_segments", "http_dash_segments_generator", "ism"}
"""What yt-dlp downloads itself, over HTTP. Not here: rtmp, mms, ftp, web sockets, live chats."""

FFMPEG_INPUT = [
    # A "video" may be a playlist that names other files and hosts: only plain containers, only this one file.
    "-protocol_whitelist",
    "file",
    "-format_whitelist",
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,aac,ac3,eac3,mp3,flac,ogg,wav,flv",
]


class Stop(Exception):
    """The download ends here, for *reason*, one of the words that downloads/fetch.py knows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _limit_process(request["parent_pid"], request["cpu_s"], request["memory_bytes"], request["max_bytes"])
    try:
        answer = {"event": "done", **_download(request, out)}
    except BaseException as error:
        answer = {"event": "failed", **_reason(error)}
        if answer["reason"] == "failed":
            # Only what is not understood: yt-dlp has said the rest, and callers may cause it as often as they like.
            traceback.print_exc()
    _send(out, answer)
    os._exit(0)  # NOTE: not sys.exit: a thread waits on stdin, and yt-dlp's own threads may hang


def _send(out: TextIO, event: dict[str, Any]) -> None:
    out.write(json.dumps(event) + "\n")
    out.flush()


# --- the leash -------------------------------------------------------------------------------------------------------


def _die_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def _limit_process(parent_pid: int, cpu_s: int, memory_bytes: int, max_bytes: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: works also while a regular expression holds the interpreter
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if os.getppid() != parent_pid:
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The header and index of a merged file come on top of its parts.
    file_bytes = max_bytes + max_bytes // 50 + (1 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def confined(launcher: list[str]) -> list[str]:
    """What stands before ffmpeg's own arguments, so that it has no network: told by the parent, but for our own id."""
    return [str(os.getpid()) if part == "PARENT" else part for part in launcher]


def _install_guard(proxy_port: int, ffmpeg: str, launcher: Sequence[str] = ()) -> None:
    """Refuse, inside the interpreter, whatever would go around the proxy. Cannot be taken out again."""
    here = os.path.realpath(".") + os.sep
    closed = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "socket.bind"}
    closed |= {"socket.sendto", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendmsg"}

    def guard(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "r" not in (mode or "r")
            if not writes or not isinstance(path, str | bytes):
                return
            real = os.path.realpath(os.fsdecode(path))
            allowed = real.startswith(here) or real == os.devnull or "__pycache__" in Path(real).parts
        elif event == "socket.connect":
            allowed = args[1] == ("127.0.0.1", proxy_port)
        elif event == "socket.getaddrinfo":
            allowed = args[0] in ("127.0.0.1", b"127.0.0.1")
        elif event == "subprocess.Popen":
            command = [str(part) for part in args[1]]
            launched = bool(launcher) and command[: len(launcher)] == list(launcher)
            if launched:
                command = command[len(launcher) :]
            # Bare, it is asked for its version and tells no more.
            starts = args[0] == launcher[0] and command[:1] == [ffmpeg] if launched else args[0] == ffmpeg
            allowed = starts and _reads_local_files_only(command)
        else:
            allowed = event not in closed
        if not allowed:
            raise PermissionError(f"closed to downloads: {event}")

    sys.addaudithook(guard)


def _reads_local_files_only(command: list[str]) -> bool:
    inputs = [index for index, part in enumerate(command) if part == "-i"]
    return all(command[index - 4 : index] == FFMPEG_INPUT for index in inputs) and all(
        command[index + 1].startswith("file:media.") for index in inputs
    )


# --- the download ----------------------------------------------------------------------------------------------------


def _download(request: dict[str, Any], out: TextIO) -> dict[str, Any]:
    import urllib.request

    import yt_dlp
    import yt_dlp.globals
    import yt_dlp.postprocessor.ffmpeg as ffmpeg_steps
    from yt_dlp.downloader import PROTOCOL_MAP
    from yt_dlp.downloader.external import FFmpegFD
    from yt_dlp.networking.common import _REQUEST_HANDLERS
    from yt_dlp.networking.exceptions import RequestError

    yt_dlp.globals.plugin_dirs.value = []
    yt_dlp.globals.all_plugins_loaded.value = True
    urllib.request.HTTPRedirectHandler.max_redirections = REDIRECTS
    for client in set(_REQUEST_HANDLERS) - {"Urllib"}:
        # curl's sockets are out of the audit hook's sight, web sockets know no HTTP proxy, and `requests` may be there
        # or not: one client, the standard library's, behaves the same everywhere.
        del _REQUEST_HANDLERS[client]
    for protocol in set(PROTOCOL_MAP) - PROTOCOLS:
        del PROTOCOL_MAP[protocol]

    def closed(*args: Any, **kwargs: Any) -> None:
        raise Stop("unsupported")

    # NOTE: yt-dlp hands live and oddly encrypted streams to ffmpeg, whose traffic would not be filtered in full.
    FFmpegFD.available = classmethod(lambda cls, path=None: False)
    FFmpegFD.real_download = closed

    class LocalFfmpeg(ffmpeg_steps.Popen):  # type: ignore[misc]
        def __init__(self, args: list[str], *others: Any, **options: Any) -> None:
            contained = confined(request["launcher"])
            for part in args:
                contained += [*FFMPEG_INPUT, part] if part == "-i" else [part]
            super().__init__(contained, *others, **options)

    ffmpeg_steps.Popen = LocalFfmpeg

    class Downloader(yt_dlp.YoutubeDL):  # type: ignore[misc]
        """Takes one thing, over HTTP, of a bounded size."""

        taken: dict[str, Any] | None = None
        met_closed_scheme = False

        def urlopen(self, req: Any) -> Any:
            url = req if isinstance(req, str) else req.url
            if urlsplit(url).scheme.lower() not in SCHEMES:
                self.met_closed_scheme = True
                raise RequestError("scheme closed to downloads")
            if not isinstance(req, str):
                req.headers.pop("Ytdl-Request-Proxy", None)
                req.proxies = {}
            return super().urlopen(req)

        def process_info(self, info_dict: dict[str, Any]) -> None:
            if self.taken is not None:
                raise Stop("format")
            _check_choice(info_dict, request["max_bytes"])
            self.taken = {}
            super().process_info(info_dict)
            self.taken = dict(info_dict)  # a copy: yt-dlp strips its own of the title and more

    _install_guard(urlsplit(request["proxy"]).port or 0, request["ffmpeg"], confined(request["launcher"]))
    with Downloader(_options(request, out)) as downloader:
        try:
            downloader.extract_info(request["url"], download=True)
        except Exception as error:
            if downloader.met_closed_scheme:
                raise Stop("scheme") from error
            raise
        taken = downloader.taken
    if not taken:
        raise Stop("no_media")
    return {
        "name": os.path.basename(taken["filepath"]),
        "title": str(taken.get("title") or ""),
        "extractor": str(taken.get("extractor") or ""),
        "duration_s": taken.get("duration"),
        "has_video": taken.get("vcodec") != "none",
    }


def _check_choice(info: dict[str, Any], max_bytes: int) -> None:
    """Refuse what was chosen before it is fetched. Raises Stop."""
    if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
        raise Stop("live")
    formats = info.get("requested_formats") or [info]
    for chosen in formats:
        if urlsplit(chosen.get("url") or "").scheme.lower() not in SCHEMES:
            raise Stop("scheme")
        if (chosen.get("protocol") or "https") not in PROTOCOLS:
            raise Stop("unsupported")
    if sum(chosen.get("filesize") or 0 for chosen in formats) > max_bytes:
        raise Stop("too_large")


def _options(request: dict[str, Any], out: TextIO) -> dict[str, Any]:
    """yt-dlp's options. What is off by default is named all the same where its being on would open a door."""
    return {
        "format": request["format"],
        "outtmpl": {"default": "media.%(ext)s"},
        "merge_output_format": "mp4/mkv",
        "ffmpeg_location": request["ffmpeg"],
        "proxy": request["proxy"],
        "geo_verification_proxy": None,
        "source_address": None,
        "socket_timeout": request["socket_timeout_s"],
        "retries": 2,
        "fragment_retries": 2,
        "extractor_retries": 1,
        "skip_unavailable_fragments": False,  # a recording with holes is no success
        "noplaylist": True,
        "playlist_items": "1",
        "external_downloader": {"default": "native"},
        "external_downloader_args": None,
        "postprocessors": [],  # --exec is one
        "compat_opts": set(),  # one of them lets files be called anything
        "write_pages": False,
        "writelink": False,
        "writeurllink": False,
        "writewebloclink": False,
        "writedesktoplink": False,
        "hls_prefer_native": True,
        "js_runtimes": {},
        "remote_components": (),
        "enable_file_urls": False,
        "cachedir": False,
        "usenetrc": False,
        "netrc_cmd": None,
        "username": None,
        "password": None,
        "client_certificate": None,
        "nocheckcertificate": False,
        "cookiefile": None,
        "cookiesfrombrowser": None,
        "geo_bypass": False,
        "updatetime": False,
        "ignoreerrors": False,
        "default_search": "error",
        "quiet": True,
        "noprogress": True,
        "color": "never",
        "progress_hooks": [_Meter(request["max_bytes"], out)],
    }


class _Meter:
    """Tells the parent how far the download is, and ends it when it grows too large."""

    def __init__(self, max_bytes: int, out: TextIO) -> None:
        self._max_bytes = max_bytes
        self._out = out
        self._by_file: dict[str, int] = {}
        self._sent_at_s = float("-inf")

    def __call__(self, status: dict[str, Any]) -> None:
        self._by_file[status.get("filename") or ""] = status.get("downloaded_bytes") or 0
        downloaded_bytes = sum(self._by_file.values())
        total_bytes = status.get("total_bytes")
        if max(downloaded_bytes, total_bytes or 0) > self._max_bytes:
            raise Stop("too_large")
        now_s = time.monotonic()
        if status.get("status") == "finished" or now_s - self._sent_at_s >= PROGRESS_INTERVAL_S:
            self._sent_at_s = now_s
            _send(
                self._out,
                {
                    "event": "progress",
                    "downloaded_bytes": downloaded_bytes,
                    "total_bytes": total_bytes or status.get("total_bytes_estimate"),
                },
            )


# --- what went wrong -------------------------------------------------------------------------------------------------


def _reason(error: BaseException) -> dict[str, Any]:
    """The word for *error* that downloads/fetch.py knows, read from the whole chain of its causes."""
    from yt_dlp.networking.exceptions import HTTPError
    from yt_dlp.utils import ExtractorError, UnsupportedError

    chain = list(_causes(error))
    for link in chain:
        if isinstance(link, Stop):
            return {"reason": link.reason}
    if any(isinstance(link, MemoryError) for link in chain):
        return {"reason": "too_large"}
    text = str(error)
    if "[Errno 28]" in text or "[Errno 122]" in text:  # no space left, quota exceeded
        return {"reason": "disk_full"}
    if "[Errno 27]" in text:  # file too large: RLIMIT_FSIZE
        return {"reason": "too_large"}
    if any(isinstance(link, UnsupportedError) for link in chain) or "No video formats found" in text:
        return {"reason": "no_media"}
    if "Requested format is not available" in text or any(isinstance(link, SyntaxError) for link in chain):
        return {"reason": "format"}
    for link in chain:
        if isinstance(link, HTTPError):
            # urllib follows a redirect to ftp as far as the proxy, which refuses it.
            for url in (link.response.headers.get("Location"), link.response.url):
                scheme = urlsplit(url or "").scheme.lower()
                if scheme and scheme not in SCHEMES:
                    return {"reason": "scheme"}
            return {"reason": "http", "status": link.status}
    if told := re.search(r"HTTP Error (\d{3})", text):  # of a segment: yt-dlp keeps the words only
        return {"reason": "http", "status": int(told[1])}
    for link in chain:
        if isinstance(link, ExtractorError) and link.expected and link.cause is None:
            return {"reason": "said", "message": str(link.orig_msg)}
    return {"reason": "failed"}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """*error* and all that led to it, nearest first."""
    waiting, seen = [error], set()
    while waiting:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        carried = getattr(link, "exc_info", None)  # yt-dlp keeps causes in attributes of its own
        found = [getattr(link, "cause", None), link.__cause__, link.__context__, carried[1] if carried else None]
        found += getattr(link, "unexpected_errors", ())
        waiting += [cause for cause in found if isinstance(cause, BaseException)]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
