"""Records tests/golden/pluto_capture: two devices of three numbers, through the client stack.

Run from the repository's root, after deleting the old files::

    .venv/bin/python tests/golden/make_pluto_capture.py
"""

import datetime
import json
import platform
from pathlib import Path

import numpy as np

from radio.pluto.settings import PlutoSettings, Role
from radio.pluto.transceiver import PlutoTransceiver
from radio.recordings.replay import RecordingTransceiver
from radio.software_air.impairments import impairments_from_name
from radio.virtual_pluto.process import VirtualPlutoProcess
from radio.virtual_pluto.server import Bench
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import Moment, calibrate

FOLDER = Path(__file__).parent
NUMBERS = ((0.4, -0.2, 0.3), (0.2, -0.5, -0.1))
CARRIER_HZ = 915e6
PLATEAU = 8192


def main() -> None:
    """Silence, a pilot of each device, all their numbers."""
    waveform = EnergyWaveform(plateau_samples=PLATEAU, num_scalars=3)
    rng = np.random.default_rng(20261126)
    labels, energies = [], []
    bench = Bench(
        num_radios=3,
        path_spread_db=3.0,
        impairments=impairments_from_name("desk-cabled"),
        is_stepped=True,
        seed=4,
    )
    with VirtualPlutoProcess(bench) as served:
        receiver = RecordingTransceiver(
            PlutoTransceiver(PlutoSettings(served.uris[0], Role.RECEIVER, rx_gain_db=50.0)),
            carrier_hz=CARRIER_HZ,
        )
        devices = [
            PlutoTransceiver(PlutoSettings(uri, Role.TRANSMITTER, tx_attenuation_db=10.0))
            for uri in served.uris[1:]
        ]

        def listen(label: str) -> None:
            labels.append(label)
            energies.append(waveform.energies(receiver.capture(PLATEAU, timeout_s=5.0)))

        listen("silence")
        for index, device in enumerate(devices):
            device.hold(waveform.pilot(1.0, rng))
            listen(f"pilot of device {index}")
            device.fall_silent()
        calibration = calibrate(
            waveform,
            num_devices=2,
            silence=energies[0],
            pilots=dict(enumerate(energies[1:3])),
            amplitude=1.0,
            made=Moment(0, 0.0),
        )
        gains = [calibration.gains(index) for index in range(2)]
        level = float(np.min(gains))
        for device, shares, own in zip(devices, NUMBERS, gains, strict=True):
            device.hold(waveform.burst(shares, level / own, rng).samples)
        listen("numbers")
        for device in devices:
            device.fall_silent()
        receiver.save(FOLDER / "pluto_capture", labels)
        receiver.close()
        for device in devices:
            device.close()
    described = {
        "format": 1,
        "what": "two virtual Plutos heard by a third, through libiio and pyadi-iio",
        "regenerate": "tests/golden/make_pluto_capture.py",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "level": level,
        "true_sums": [sum(column) for column in zip(*NUMBERS, strict=True)],
        "energies": [e.tolist() for e in energies],
        "tolerance": 1e-9,
        "tolerance_reason": "energies are sums of squares of a float64 transform",
    }
    (FOLDER / "pluto_capture.json").write_text(json.dumps(described, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
