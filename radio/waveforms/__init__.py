"""From a scalar to samples and back: at the device, and at the receiver.

``coherent`` adds amplitudes: the devices undo their channels, signals arrive in phase, and the
receiver reads the signed sum. ``energy`` adds powers of paired bands, for radios that share neither
carrier nor clock. Each has a model of how far off its sums are (``error_model``,
``energy_error_model``); ``zadoff_chu`` makes the coherent one's sequences.
"""

import enum


class WaveformName(enum.StrEnum):
    """The waveforms, as configuration, ledger and reports call them."""

    COHERENT = "coherent"
    ENERGY = "energy"
