"""What Prometheus reads of the whole fleet: the same from every API, so take one of them, or the maximum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.fleet import FleetWatch
from metrics import gauge, gauges
from reservation import Work


class FleetState(Collector):
    """As of the watch's last look, a few seconds ago: whoever reads metrics does not wait for the database."""

    def __init__(self, fleet: FleetWatch) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        members, backlog = self._fleet.members, self._fleet.backlog
        devices = Counter(device for member in members for device in member.facts.devices)
        slots: Counter[str] = Counter()
        for member in members:
            slots.update(member.facts.slots)
        yield gauge("stenogate_workers", "Processes that do jobs, seen in the last minute.", len(members))
        yield gauges("stenogate_worker_devices", "Devices that they compute on.", "device", devices)
        yield gauges("stenogate_worker_slots", "Jobs that they do at once.", "work", slots)
        if backlog is not None:
            yield gauges(
                "stenogate_jobs_queued", "Jobs that wait.", "work", {w: backlog.queued.get(w, 0) for w in Work}
            )
            yield gauges(
                "stenogate_jobs_running", "Jobs under way.", "work", {w: backlog.running.get(w, 0) for w in Work}
            )
            yield gauge(
                "stenogate_oldest_job_seconds", "Waiting of the first in line; 0: none.", backlog.oldest_s or 0.0
            )
