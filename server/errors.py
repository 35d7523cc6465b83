"""What can go wrong on the server side, one class per reason.

::

    ServerError
      +- ConfigurationError     the request itself is wrong; nothing was started
      +- ExportError            a model could not be turned into a bundle
      +- ReportError            a run's pictures or page could not be written; its result is safe
      +- RunStoreError          the run folder cannot be read, written or resumed
      +- ReplicaMismatchError   two replicas of the model hold different bits
      +- HostsError             hosts of devices, or the broker, cannot take part
      +- HostsMissingError      hosts of devices do not answer; the run pauses
      +- PrivacyError           the promise cannot be made or kept; the antenna stays silent
           +- BudgetExhaustedError   the next round cannot be afforded; nothing was overspent
           +- BudgetExceededError    a round turned out dearer than was paid, beyond the budget
           +- TooLittleNoiseError
           +- LedgerCorruptError
           +- UnknownMechanismError
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of every error this package raises on purpose; the message is meant for a person."""


class ConfigurationError(ServerError):
    """The request is wrong.

    Examples: an unknown preset; a misspelt key; zero devices; delta at or above 1/n; a budget
    that no amount of noise can meet.
    """


class ExportError(ServerError):
    """A model could not be exported.

    Examples: not an OPT; the hub is out of reach; torch is not installed; the exported graph
    disagrees with torch; a tensor's use does not move the output.
    """


class RunStoreError(ServerError):
    """The run folder cannot be used.

    Examples: it belongs to another configuration; it was made by other library versions, so the
    same bits cannot be promised; another process has it open; the disk is full.
    """


class ReportError(ServerError):
    """The summary, the pictures or the page of a run could not be written; the result is safe.

    Examples: the disk is full; a file where the folder of the pictures should be.
    """


class ReplicaMismatchError(ServerError):
    """Two replicas that took the same steps hold different bits.

    Examples: a device with other base weights; memory corruption; a changed direction generator.
    """


class HostsError(ServerError):
    """Hosts of devices, or the broker between, cannot take part.

    Examples: no broker's program; a device with another bundle; fewer devices than were waited for.
    """


class HostRenewedError(HostsError):
    """A host has lost its link since it said hello, and says it again."""


class HostsMissingError(ServerError):
    """Hosts of devices have not answered in time; the run pauses, and can be resumed.

    Examples: a cut network; a device that lost its power; a host that is slower than the deadline.
    """


class PrivacyError(ServerError):
    """The privacy promise cannot be made or cannot be kept.

    Examples: noise below what was charged; a repeatable simulation key on a real radio.
    """


class BudgetExhaustedError(PrivacyError):
    """The next round would spend more than the budget. Example: more rounds than were planned."""


class BudgetExceededError(PrivacyError):
    """More than the budget was spent, and what was heard cannot be taken back.

    Example: devices fell silent after the price of a round was paid; their noise was missing from
    the sum.
    """


class TooLittleNoiseError(PrivacyError):
    """So little noise that no finite epsilon is computed for it. It is never counted as free."""


class LedgerCorruptError(PrivacyError):
    """The privacy ledger cannot be trusted. Examples: a broken hash chain; a missing tail."""


class UnknownMechanismError(PrivacyError):
    """A record names a mechanism this version cannot account for. It is never counted as free."""
