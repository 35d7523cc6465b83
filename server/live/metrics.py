"""A status as Prometheus reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.live.status import Evaluated, State, Status


def exposition(status: Status) -> bytes:
    """The text format; every name begins with ``pairzero_``."""
    registry = CollectorRegistry()
    registry.register(_Metrics(status))
    return generate_latest(registry)


class _Metrics(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        s = self._status
        yield _gauge("rounds_done", "rounds that the run has had", s.rounds_done)
        yield _gauge("rounds_planned", "rounds of the run", s.rounds_planned)
        yield _gauge("paused", "1 while too few devices are there", s.state is State.PAUSED)
        yield _gauge("speakers", "devices that spoke in the last round", s.speakers)
        yield _gauge("erased", "packets of the last round that could not be read", s.erased)
        last = s.evaluations[-1] if s.evaluations else Evaluated(rounds=0)
        for name, text, value in (
            ("rounds_per_second", "since this process began", s.rounds_per_s),
            ("loss", "on public validation data", last.loss),
            ("accuracy_ratio", "on public validation data", last.accuracy),
            ("epsilon", "that the device has spent which has spent most", last.epsilon),
            ("epsilon_budget", "of a device", s.epsilon_budget),
        ):
            if value is not None:
                yield _gauge(name, text, value)
        spent = GaugeMetricFamily("pairzero_epsilon_spent", "by a device", labels=["device"])
        for device, epsilon in s.spent.items():
            spent.add_metric([str(device)], math.inf if epsilon is None else epsilon)
        yield spent
        yield _counters("releases", "that a device was charged for", "device", s.releases)
        if s.phases_s is not None:
            yield _counters("phase_seconds", "that rounds took", "phase", s.phases_s)
        yield from self._hosts()
        yield from self._receiver()

    def _hosts(self) -> Iterator[Metric]:
        here = _labelled("host_here", "1 where a host takes part", "host")
        away = _labelled("host_away_seconds", "since one that does not was heard last", "host")
        warm = _labelled("radio_temperature_celsius", "of the chip", "radio")
        short = CounterMetricFamily(
            "pairzero_radio_underflows", "how often a device ran out of samples", labels=["radio"]
        )
        for host in self._status.hosts:
            here.add_metric([host.name], host.is_here)
            if host.away_s is not None:
                away.add_metric([host.name], host.away_s)
            for device, radio in host.radios.items():
                short.add_metric([f"device {device}"], radio.num_underflows)
                if radio.temperature_c is not None:
                    warm.add_metric([f"device {device}"], radio.temperature_c)
        receiver = self._status.receiver
        if receiver is not None and receiver.temperature_c is not None:
            warm.add_metric(["receiver"], receiver.temperature_c)
        yield from (here, away, warm, short)

    def _receiver(self) -> Iterator[Metric]:
        receiver = self._status.receiver
        if receiver is None:
            return
        text = "samples at the end of the converter, of all"
        yield _gauge("receiver_overloaded_ratio", text, receiver.overloaded_share)
        for name, text, value in (
            ("receiver_overflows", "captures that lost samples", receiver.num_overflows),
            ("receiver_captures", "captures", receiver.num_captures),
        ):
            yield CounterMetricFamily(f"pairzero_{name}", text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pairzero_{name}", text, value)


def _labelled(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pairzero_{name}", text, labels=[label])


def _counters(name: str, text: str, label: str, values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(f"pairzero_{name}", text, labels=[label])
    for what, value in values.items():
        family.add_metric([str(what)], value)
    return family
