"""What the driver relies on of a Pluto beside what it is asked for."""

from __future__ import annotations

import logging

from radio.errors import RadioConfigurationError
from radio.pluto.driver import OpenPluto

_logger = logging.getLogger(__name__)


def put_in_order(pluto: OpenPluto) -> None:
    """What the driver relies on and other programs change: looked at, set, and told.

    A radio in digital loopback or with a part asleep hears nothing, and everything else about
    it looks as it should.

    Raises:
        RadioConfigurationError: a value that does not let itself be set.
    """
    receive, transmit = (pluto.phy.find_channel("voltage0", way) for way in (False, True))
    relied_on = [
        ("loopback", pluto.phy.debug_attrs, "loopback", "0"),
        ("bist_prbs", pluto.phy.debug_attrs, "bist_prbs", "0"),
        ("bist_tone", pluto.phy.debug_attrs, "bist_tone", "0"),
        ("ensm_mode", pluto.phy.attrs, "ensm_mode", "fdd"),
        ("receiver's rf_port_select", receive.attrs, "rf_port_select", "A_BALANCED"),
        ("transmitter's rf_port_select", transmit.attrs, "rf_port_select", "A"),
        ("RX_LO external", pluto.rx_oscillator, "external", "0"),
        ("TX_LO external", pluto.tx_oscillator, "external", "0"),
        ("RX_LO powerdown", pluto.rx_oscillator, "powerdown", "0"),
    ]
    for what, attributes, name, wanted in relied_on:
        if name not in attributes:
            continue
        found = attributes[name].value.strip()
        if found.split()[:1] == [wanted]:
            continue
        attributes[name].value = wanted
        now = attributes[name].value.strip()
        if now.split()[:1] != [wanted]:
            raise RadioConfigurationError(
                f"{pluto.uri}: {what} was {found!r}, was set to {wanted!r} and is {now!r}. "
                "Switch the radio off and on again."
            )
        _logger.warning(
            "%s: %s was %r and is %r now: another program left it so",
            pluto.uri,
            what,
            found,
            now,
        )
