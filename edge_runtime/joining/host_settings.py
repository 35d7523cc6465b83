"""What a host is started with: its devices' data, its owners' policies, its own disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.guard.policy import DevicePolicy, load_policy
from edge_runtime.protocol.errors import EdgeError, TaskError


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a host is started with.

    Attributes:
        host: its name.
        data: name of each device -> file of its examples.
        bundle: folder of the model; None for the one that comes with pairzero, or, where the run
            has another, that from the broker.
        state: folder of the host's own disk, for its ledger and keys.
        policies: name of each device -> what the owner of its data allows; of a run that promises
            nothing none is needed.
        radios: name of each device -> URI of its own radio, where the run is over real ones.
        xo_corrections: name -> what its radio's crystal is taken to be, Hz; who is left out keeps
            the radio's own.
        tx_attenuation_db: of these radios while they send, at least, whatever the run says.
        workers: threads that move weights.
        prefix_cache_mb: of ``state``, for what frozen layers give for each prompt; 0 keeps nothing.
        may_simulate: whether keys may follow from the run's seed, which protects nobody.
        wait_s: how long a server is waited for.
        gone_s: how long broker or server may be away once the run has been joined.
    """

    host: str
    data: Mapping[str, Path]
    state: Path
    bundle: Path | None = None
    policies: Mapping[str, DevicePolicy] = field(default_factory=dict)
    radios: Mapping[str, str] = field(default_factory=dict)
    xo_corrections: Mapping[str, int] = field(default_factory=dict)
    tx_attenuation_db: float = 0.0
    workers: int = 1
    prefix_cache_mb: int = 0
    may_simulate: bool = False
    wait_s: float = 60.0
    gone_s: float = 60.0

    def fetched_bundle(self, digest: str) -> Path:
        """Folder of a bundle that came from a broker."""
        return self.state / "bundles" / digest[:16]

    @property
    def journal(self) -> Path:
        """File of the steps that the host has taken."""
        return self.state / f"journal-{self.host}.sqlite"


def devices_of(data: Path, host: str) -> Mapping[str, Path]:
    """Name of each device -> its file: one file is one device, a folder has one in each file.

    Raises:
        TaskError: there is none.
    """
    if not data.is_dir():
        if not data.is_file():
            raise TaskError(f"{data}: no such file, wanted label<TAB>text lines or a folder.")
        return {host: data}
    files: Sequence[Path] = sorted(path for path in data.iterdir() if path.is_file())
    if not files:
        raise TaskError(f"{data}: no file in it, wanted one for each device.")
    return {path.stem: path for path in files}


def by_device(option: str, given: Sequence[str], names: Collection[str]) -> Mapping[str, str]:
    """Name of each device -> what an option says of it: VALUE of the one there is, or NAME=VALUE.

    Args:
        option: its name, for messages.
        given: as it was given, perhaps several times.
        names: of the devices.

    Raises:
        EdgeError: of a device that is not there, or twice of one.
    """
    said: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            name, value = (next(iter(names)) if len(names) == 1 else ""), text
        if name not in names or not value:
            raise EdgeError(
                f"{option}: got {text!r}, wanted NAME=VALUE, of one of the devices here: "
                f"{', '.join(sorted(names))}."
            )
        if name in said:
            raise EdgeError(f"{option}: device {name!r} is named twice.")
        said[name] = value
    return said


def policies_of(path: Path | None, names: Iterable[str]) -> Mapping[str, DevicePolicy]:
    """Name of each device -> its owner's policy: of one file for all, or NAME.toml in a folder.

    Raises:
        PromiseError: a file is missing, or none.
    """
    if path is None:
        return {}
    if not path.is_dir():
        policy = load_policy(path)
        return dict.fromkeys(names, policy)
    return {name: load_policy(path / f"{name}.toml") for name in names}
