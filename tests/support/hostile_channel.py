"""A control channel whose network does what networks do, on a clock of its own."""

from collections import defaultdict

from edge_runtime.control.channel import ControlChannel
from edge_runtime.protocol import wire
from edge_runtime.protocol.orders import Answer


class HostileChannel(ControlChannel):
    """Hosts behind a network that fails as it is told to.

    Does not model: time that passes while a host works.

    Args:
        run_id: of the run.
        ends: of the hosts.
        deadline_s: of every order.

    Attributes:
        faults: host -> faults of its next answers, one each: functions of the answer's bytes, that
            return what arrives, in this order; each a pair of bytes and how many seconds late.
        orders: host -> likewise for what it is told, without lateness.
    """

    def __init__(self, run_id, ends, deadline_s=5.0):
        self.now_s = 0.0
        hosts = {end.host: end.device_indices for end in ends}
        super().__init__(run_id, hosts, deadline_s=deadline_s, clock=lambda: self.now_s)
        self._ends = {end.host: end for end in ends}
        self._arriving = []
        self.faults, self.orders = defaultdict(list), defaultdict(list)

    def send(self, data, hosts):
        for host in hosts:
            told = self.orders[host].pop(0)(data) if self.orders[host] else [data]
            for one in told:
                reply = self._ends[host].answer(one)
                if reply is None:
                    continue
                fault = self.faults[host].pop(0) if self.faults[host] else on_time
                for arrives, late_s in fault(reply):
                    self._arriving.append((self.now_s + late_s, len(self._arriving), arrives))

    def receive(self, timeout_s):
        arriving = sorted(self._arriving, key=lambda one: one[:2])
        if not arriving or arriving[0][0] > self.now_s + timeout_s:
            self.now_s += max(timeout_s, 0.0)
            return None
        self.now_s = max(self.now_s, arriving[0][0])
        self._arriving.remove(arriving[0])
        return arriving[0][2]

    def close(self):
        for end in self._ends.values():
            end.close()


def on_time(data):
    return [(data, 0.1)]


def lost(data):
    return []


def doubled(data):
    return [(data, 0.1), (data, 0.2)]


def doubled_and_late(data):
    return [(data, 0.1), (data, 9.0)]


def late(data):
    return [(data, 7.0)]


def damaged(data):
    return [(data[:30] + bytes([data[30] ^ 4]) + data[31:], 0.1)]


def cut(data):
    return [(data[: len(data) // 2], 0.1)]


def oversized(data):
    return [(data + b"\0" * wire.MAX_BODY_BYTES, 0.1)]


def of_another_version(data):
    return [(data[:4] + b"\0\x01" + data[6:], 0.1)]


def noise(data):
    return [(b"\x93garbage" * 9, 0.1)]


def altered(**changes):
    """An answer that says something else, with a right digest."""

    def alter(data):
        said = wire.decode(data)
        fields = {name: getattr(said, name) for name in Answer.__struct_fields__}
        return [(wire.encode(Answer(**{**fields, **changes})), 0.1)]

    return alter
