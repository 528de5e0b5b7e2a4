"""Figures for Prometheus, by the names that dashboards for vLLM have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlc_rwkv_world.serving.batch import BatchEngine
from mlc_rwkv_world.serving.requests import Event, Failed, Finished, Request
from mlc_rwkv_world.serving.worker import Ticket, Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LABEL = "model_name"


class Metrics:
    """What has happened since the server began. To be used in the event loop."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("prefix_cache_hits", "Tokens of prompts found in the cache")
        self._looked_up = self._counter(
            "prefix_cache_queries", "Tokens of prompts looked up in the cache"
        )
        self._generated = self._counter("generation_tokens", "Tokens of answers")
        self._ended = Counter(
            "vllm:request_success",
            "Requests that ended, by how",
            (_LABEL, "finished_reason"),
            registry=self._registry,
        )
        self._failed = self._counter("request_failure", "Requests that broke off")
        self._first = self._histogram("time_to_first_token_seconds", "Until the first token")
        self._each = self._histogram("time_per_output_token_seconds", "For a token of an answer")
        self._whole = self._histogram("e2e_request_latency_seconds", "Until the answer was over")
        self._queued = self._histogram("request_queue_time_seconds", "Waiting for a slot")

    def watch(self, batch: BatchEngine, worker: Worker) -> None:
        """Show how many requests there are, and what the cache holds, whenever somebody asks."""
        self._registry.register(_Present(self._model, batch, worker))

    def asked(self, requests: Sequence[Request]) -> None:
        """Requests were handed in."""
        self._prompt.inc(sum(len(request.ids) for request in requests))

    def told(self, ticket: Ticket, event: Event) -> None:
        """A ticket was told something."""
        if isinstance(event, Failed):
            self._failed.inc()
        elif isinstance(event, Finished):
            usage = event.usage
            self._ended.labels(self._model, event.reason).inc()
            self._generated.inc(usage.completion_tokens)
            if ticket.request.cached:
                self._looked_up.inc(usage.prompt_tokens)
                self._cached.inc(usage.cached_tokens)
            self._queued.observe(usage.waited)
            self._first.observe(usage.waited + usage.reading)
            self._whole.observe(usage.waited + usage.reading + usage.answering)
            if usage.completion_tokens > 1:
                self._each.observe(usage.answering / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str) -> Counter:
        counter = Counter(f"vllm:{name}", help, (_LABEL,), registry=self._registry)
        labelled: Counter = counter.labels(self._model)
        return labelled

    def _histogram(self, name: str, help: str) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", help, (_LABEL,), registry=self._registry, buckets=_SECONDS
        )
        labelled: Histogram = histogram.labels(self._model)
        return labelled


class _Present(Collector):
    """What is so now."""

    def __init__(self, model: str, batch: BatchEngine, worker: Worker) -> None:
        self._model = model
        self._batch = batch
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        counts, cache = self._batch.counts, self._batch.cache
        running = counts.answering + counts.reading
        values = {
            "num_requests_running": ("Requests with a slot", running),
            "num_requests_waiting": (
                "Requests without a slot",
                max(0, self._worker.open_requests - running),
            ),
            "kv_cache_usage_perc": (
                "Part of the cache of states that is full, from 0 to 1",
                0.0 if cache is None else cache.bytes / cache.budget,
            ),
        }
        for name, (help, value) in values.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", help, labels=(_LABEL,))
            gauge.add_metric((self._model,), value)
            yield gauge
