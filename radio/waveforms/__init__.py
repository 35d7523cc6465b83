"""From a scalar to samples and back: at the device, and at the receiver.

``coherent`` adds amplitudes: the devices undo their channels, signals arrive in phase, and the
receiver reads the signed sum. ``energy`` adds powers of paired bands, for radios that share neither
carrier nor clock. Either can carry signs instead of numbers (``vote``, ``coherent_vote``): the sum
then counts votes, and its sign is the majority. Each has a model of how far off its sums are
(``error_model``, ``energy_error_model``); ``zadoff_chu`` makes the coherent one's sequences.
``slotted`` is the digital baseline: a packet from each device, one after the other, or
``side_by_side``.
"""

import enum


class WaveformName(enum.StrEnum):
    """The waveforms, as configuration, ledger and reports call them."""

    COHERENT = "coherent"
    ENERGY = "energy"
    VOTE = "vote"
    COHERENT_VOTE = "coherent_vote"
    SLOTTED = "slotted"

    @property
    def superposes(self) -> bool:
        """Signals of all devices on one another; otherwise each in a slot of its own."""
        return self is not WaveformName.SLOTTED

    @property
    def needs_common_clock(self) -> bool:
        """Carried by amplitudes at positions of a time axis."""
        return self in (WaveformName.COHERENT, WaveformName.COHERENT_VOTE)

    @property
    def adds_powers(self) -> bool:
        """Carried by powers of two bands, held."""
        return self in (WaveformName.ENERGY, WaveformName.VOTE)

    @property
    def carries_signs(self) -> bool:
        """A device says which way, not how far."""
        return self in (WaveformName.VOTE, WaveformName.COHERENT_VOTE)

    @property
    def reads(self) -> tuple[str, ...]:
        """Keys of a configuration that it asks for; others' would change nothing."""
        signs = ("optimizer.vote_value", "optimizer.vote_decision", "privacy.vote_noise")
        keys: tuple[str, ...] = _PACKETS_READ
        if self.needs_common_clock:
            keys = _AT_POSITIONS_READ
        elif self.adds_powers:
            keys = _HELD_READ
        return (*keys, *signs) if self.carries_signs else keys


_AT_POSITIONS_READ = (
    "radio.min_gain", "radio.pilot_symbols", "radio.payload_symbols", "radio.coherence_rounds",
)  # fmt: skip
_HELD_READ = (
    "radio.min_band_gain", "radio.plateau_samples", "radio.energy_mapping",
    "radio.calibration_max_age_s", "radio.coherence_rounds",
)  # fmt: skip
_PACKETS_READ = ("radio.slots",)
