"""Hosts with radios of their own: whatever dies while a burst is held, nobody hears it for long.

Server, broker and hosts are processes that are killed; the radios are served by another one and
outlive them, as hardware does. A further radio, that nobody else has, listens.
"""

import time

import pytest
from radio_site import DEATHS, ENERGY, MAX_HOLD_S, SLOTTED, Site

from server.hosts.own_radios import SILENT_WITHIN_S
from tests.support.federation import until


@pytest.fixture
def site(tmp_path, start_virtual_plutos):
    """site(**settings) -> a Site whose rounds have begun."""
    made = []

    def make(settings):
        # A listener of its own: what is loud at the server's receiver is loud there, too.
        uris = start_virtual_plutos(4, "--path-loss-db", "30", "--clock", "stepped").uris
        made.append(Site(tmp_path, uris, settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("waveform", [ENERGY, SLOTTED], ids=["energy", "slotted"])
@pytest.mark.parametrize("what", DEATHS)
def test_whoever_dies_in_a_hold_nobody_is_heard_for_long(site, what, waveform):
    there = site(waveform)
    until(there.is_loud, there.said)
    DEATHS[what](there)
    killed_s = time.monotonic()
    until(lambda: not there.is_loud(), "somebody is still on the air")
    took_s = time.monotonic() - killed_s
    assert took_s < MAX_HOLD_S + SILENT_WITHIN_S, there.said()
    if what == "server":
        assert "ended what it held: held for 2.5 s" in there.said()
        assert all(host.poll() is None for host in there.hosts.values())
    if what == "broker":
        assert "ended what it held: the link was lost" in there.said()
    assert not any(there.is_loud() for _ in range(5))
