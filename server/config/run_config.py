"""The configuration of a run: one TOML file, typed, every key known, every value checked.

A file names only what it changes; the rest are the defaults below. A misspelt key is an error
with the nearest valid name, never a silent default. Presets in `server/presets` are such files.
"""

from __future__ import annotations

from radio.virtual_pluto.server import Bench
from server.config.learning import ModelSection, TaskSection
from server.config.plan_config import PlanConfig
from server.config.radio import PlutoSection, VirtualPlutoSection
from server.errors import ConfigurationError


class RunConfig(PlanConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole configuration: what is planned, what learns, and which radios; see the sections."""

    description: str = ""
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection()
    pluto: PlutoSection = PlutoSection()
    virtual_pluto: VirtualPlutoSection = VirtualPlutoSection()

    def __post_init__(self) -> None:
        """Check what the plan's sections must agree on, and the radios if there are some."""
        PlanConfig.__post_init__(self)
        if self.radio.has_plutos:
            self._check_plutos()

    @property
    def evaluates_in_public(self) -> bool:
        """Whether the model may be evaluated: nobody is promised anything, or the data are public.

        See `TaskSection.validation_is_public`.
        """
        return self.task.validation_is_public or not self.privacy.has_system_keys

    @property
    def bench(self) -> Bench:
        """The virtual radios of ``radio.backend = "virtual-pluto"``, the receiver first.

        Raises:
            ConfigurationError: a number that cannot be.
        """
        return self.virtual_pluto.bench(
            self.federation.num_devices, self.impaired_by, self.run.seed
        )

    def _check_plutos(self) -> None:
        radio, num_devices = self.radio, self.federation.num_devices
        if radio.backend == "pluto":
            self.pluto.check_radios(num_devices)
            self.pluto.settings([self.pluto.receiver, *self.pluto.devices], radio)
            return
        if self.pluto.devices or self.pluto.receiver:
            raise ConfigurationError(
                'pluto.devices: radio.backend = "virtual-pluto" starts radios of its own. Leave '
                'the URIs out, or set radio.backend = "pluto".'
            )
        _ = self.bench
        self.pluto.settings(["ip:127.0.0.1"] * (1 + num_devices), radio)
