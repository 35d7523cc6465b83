"""The private keys of a host's devices: made, kept, loaded and destroyed here and nowhere else.

Noise and batches of a run are functions of these keys, so whoever has them can take the noise off
every number that was heard. They never leave the host: a server knows their public names
(`PrivateRandom.commitment`). A run that was interrupted needs them to say the same again; a run
that has ended needs them no longer, and then they go.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.private_random import PrivateRandom
from edge_runtime.protocol.errors import DeviceKeysError

KEYS_FILE = "private_keys.json"
_PARTIAL = ".private_keys.json.partial"


@dataclass(frozen=True, slots=True)
class HostKeys:
    """One private key per device, in device order."""

    _keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def fresh(cls, num_devices: int) -> HostKeys:
        """From the operating system's generator; they are on no disk until `keep`."""
        return cls(tuple(PrivateRandom.generate_key() for _ in range(num_devices)))

    @classmethod
    def simulated(cls, seed: int, device_indices: Sequence[int]) -> HostKeys:
        """Repeatable ones, which protect nobody from whoever knows the seed."""
        return cls(tuple(PrivateRandom.simulated_key(seed, index) for index in device_indices))

    @classmethod
    def load(cls, folder: Path, num_devices: int) -> HostKeys:
        """The keys of a run that was interrupted.

        Raises:
            DeviceKeysError: they are missing, damaged, or not as many as the run has devices.
        """
        path = folder / KEYS_FILE
        try:
            keys = cls(tuple(bytes.fromhex(text) for text in json.loads(path.read_text())))
            if len(keys._keys) != num_devices:
                raise ValueError(f"{len(keys._keys)} keys for {num_devices} devices")
            keys.private_randoms()  # refuses a key of another size
        except (OSError, ValueError, TypeError) as error:
            raise DeviceKeysError(
                f"{path}: the devices' private keys cannot be read ({error}). Without them a "
                "repeated round would be a second release, so the run cannot be continued."
            ) from error
        return keys

    def keep(self, folder: Path) -> None:
        """Write the keys down for their owner alone, on the disk when this returns.

        Raises:
            DeviceKeysError: they could not be written; nothing is left behind.
        """
        path, partial = folder / KEYS_FILE, folder / _PARTIAL
        try:
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump([key.hex() for key in self._keys], file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                _destroy_file(partial)
            raise DeviceKeysError(
                f"{path}: the devices' private keys cannot be written ({error.strerror}). Nothing "
                "was started; free some disk space or name another folder with --out."
            ) from error

    @staticmethod
    def destroy(folder: Path) -> bool:
        """Overwrite and delete the keys of a run, if there are any; returns whether there were.

        After it nobody can take the noise off what the run released, and the run cannot be
        continued. Leaves out: copies that a backup or a flash disk's own bookkeeping may hold;
        only an encrypted disk covers those.

        Raises:
            DeviceKeysError: they could not be deleted and are still there.
        """
        found = False
        for path in (folder / KEYS_FILE, folder / _PARTIAL):
            try:
                found = _destroy_file(path) or found
            except OSError as error:
                raise DeviceKeysError(
                    f"{path}: the devices' private keys cannot be deleted ({error.strerror}). "
                    "Delete the file by hand: whoever reads it can take the noise off this run."
                ) from error
        return found

    def shared_secret(self, purpose: str) -> str:
        """Something that nobody can know without all of the keys, and that reveals none."""
        return hashlib.sha256(f"pairzero/{purpose}/".encode() + b"".join(self._keys)).hexdigest()

    def private_randoms(self) -> list[PrivateRandom]:
        """Each device's source of noise and batches."""
        return [PrivateRandom(key) for key in self._keys]

    @property
    def commitments(self) -> list[str]:
        """Public names of the keys; they tell keys apart and reveal none."""
        return [private_random.commitment for private_random in self.private_randoms()]


def _destroy_file(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    """A new or a missing name is on the disk only when the folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
