"""Who spoke in a round: unknown from before the first number is sent until the answers are in.

The price of a round is that of its plan, in which everybody speaks and covers the others. Who in
fact speaks is known when all is over; a process that dies in between leaves numbers on the air that
perhaps nobody else covered. So the ledger holds an entry before anything is sent, with what would
cover each device if it were the only one to speak, and another one afterwards. Where the second is
missing, the first is what is paid: whatever set of devices spoke, and however often the round is
carried out again with the same noise, what was heard follows from each device's own noisy number.
"""

from __future__ import annotations

import msgspec

from server.errors import PrivacyError, UnknownMechanismError

NO_DEVICE = -1
"""In a ledger's column of devices."""


class SpeakersUnknown(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="speakers_unknown"
):
    """Written before the first number of a round is sent.

    Attributes:
        round_index: t.
        devices: that were told to speak.
        alone_noise_stds: certified noise of each, were it the only one to speak; in units of the
            scalar.
    """

    round_index: int
    devices: tuple[int, ...]
    alone_noise_stds: tuple[float, ...]

    def __post_init__(self) -> None:
        is_whole = len(self.devices) == len(self.alone_noise_stds) == len(set(self.devices))
        if not is_whole or not all(std >= 0.0 for std in self.alone_noise_stds):
            raise PrivacyError(
                f"round {self.round_index}: devices {self.devices} and noises "
                f"{self.alone_noise_stds}; wanted one at least zero for each device."
            )

    def alone_noise_std(self, device_index: int) -> float:
        """Standard deviation of what covers one of the devices, if it spoke alone."""
        return self.alone_noise_stds[self.devices.index(device_index)]


class SpeakersKnown(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="speakers_known"
):
    """Written when all is over, and what was missing has been charged.

    Attributes:
        round_index: t.
        speakers: who spoke.
    """

    round_index: int
    speakers: tuple[int, ...]


class Configuration(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="configuration"
):
    """Written before the first price: what the prices behind it mean.

    Attributes:
        digest: SHA-256 of the run's configuration as it is stored.
    """

    digest: str


Entry = SpeakersUnknown | SpeakersKnown | Configuration
_DECODER = msgspec.json.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """For the ledger."""
    return msgspec.json.encode(entry)


def decode_entry(data: bytes) -> Entry:
    """Back from there.

    Raises:
        UnknownMechanismError: anything else.
    """
    try:
        entry: Entry = _DECODER.decode(data)
    except (msgspec.MsgspecError, PrivacyError) as error:
        raise UnknownMechanismError(
            f"an entry of the ledger cannot be read: {error} What was spent is unknown."
        ) from error
    return entry
