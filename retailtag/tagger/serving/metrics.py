"""What the server counts, for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from retailtag.tagger.drift.monitor import DriftMonitor
from retailtag.tagger.serving.batching import Observer, Outcome

# Seconds: from a small model on one image to a request at its time limit.
_LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

log = logging.getLogger(__name__)


class _Drift(Collector):
    """Gauges of a monitor, computed when they are asked for."""

    def __init__(self, monitor: DriftMonitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterable[Metric]:
        text = "How the last images differ from those that the model was tested on."
        gauge = GaugeMetricFamily("retailtag_drift", text, labels=["figure"])
        for name, value in self._monitor.summary().items():
            gauge.add_metric([name], value)
        yield gauge


class Metrics(Observer):
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(
        self, facts: dict[str, str], tags: Iterable[str], monitor: DriftMonitor | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        if monitor is not None:
            self.registry.register(_Drift(monitor))
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        PlatformCollector(registry=self.registry)
        Info("retailtag_model", "The model served.", registry=self.registry).info(facts)
        self._requests = Counter(
            "retailtag_requests", "Requests by route and status.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = self._histogram(
            "retailtag_request_seconds", "Time of a request to /predict that was answered with 200."
        )
        self._decode = self._histogram(
            "retailtag_decode_seconds", "Time to decode and preprocess one image."
        )
        self._compute = self._histogram("retailtag_batch_seconds", "Time of one forward pass.")
        self._batch = self._histogram(
            "retailtag_batch_images", "Images of one forward pass.", _BATCHES
        )
        self._queue = Gauge(
            "retailtag_queue_images", "Images in the server, waiting or computed.",
            registry=self.registry,
        )  # fmt: skip
        self._images = Counter(
            "retailtag_images", "Images by what became of them.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self._tags = Counter(
            "retailtag_tags", "Images given a tag.", ["tag"], registry=self.registry
        )
        for tag in tags:  # a series that begins with its first event has no rate for it
            self._tags.labels(tag)
        for result in ("tagged", "untagged", "unreadable"):
            self._images.labels(result)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = _LATENCIES
    ) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def queued(self, images: int) -> None:
        """Take the number of images in the server."""
        self._queue.set(images)

    def decoded(self, seconds: float) -> None:
        """Take the time of one image."""
        self._decode.observe(seconds)

    def computed(self, images: int, seconds: float) -> None:
        """Take one batch."""
        self._batch.observe(images)
        self._compute.observe(seconds)

    def failed(self, error: Exception) -> None:
        """Log an error that ended requests."""
        log.error("A batch failed.", exc_info=error)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        if route == "/predict" and status == 200:
            self._seconds.observe(seconds)

    def given(self, outcomes: Iterable[Outcome]) -> None:
        """Count what images were given."""
        for outcome in outcomes:
            if outcome.tags is None:
                self._images.labels("unreadable").inc()
                continue
            self._images.labels("tagged" if outcome.tags else "untagged").inc()
            for tag in outcome.tags:
                self._tags.labels(tag).inc()

    def text(self) -> bytes:
        """All of it in the text format of Prometheus."""
        return generate_latest(self.registry)
