"""The processor's own converter, `xadc`: voltages of a board at rest. Nothing in it changes."""

from __future__ import annotations

from radio.virtual_pluto.attributes import Channel, Device, fixed, whole, within

_MILLIVOLTS = 0.732421875
_RAW = {
    "vccint": 1374, "vccaux": 2440, "vccbram": 1371, "vccpint": 1367, "vccpaux": 2446,
    "vccoddr": 1832, "vrefp": 1695, "vrefn": -5,
}  # fmt: skip


def make_xadc() -> Device:
    """A fresh one."""
    voltages = [
        Channel(
            f"voltage{index}",
            False,
            {"raw": fixed(str(raw)), "scale": fixed(str(_MILLIVOLTS))},
            name=name,
        )
        for index, (name, raw) in enumerate(_RAW.items())
    ]
    outside = {"raw": fixed("3673"), "scale": fixed("0.244140625")}
    temperature = {
        "offset": fixed("-2219"), "raw": fixed("2637"), "scale": fixed("123.040771484"),
    }  # fmt: skip
    return Device(
        "iio:device1",
        "xadc",
        [Channel("temp0", False, temperature), *voltages, Channel("voltage8", False, outside)],
        attributes={"sampling_frequency": within("961538", 1, 1e6, show=whole)},
    )
