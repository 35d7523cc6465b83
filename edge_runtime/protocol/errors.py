"""What can go wrong on a device, one class per reason.

::

    EdgeError
      +- BundleError           the model bundle is damaged or of another version
      +- TaskError             the data file or the label words do not fit the task
      +- WireError             bytes from outside are not a message of this protocol
      +- PlanRefusedError      the order was understood and is refused; the antenna stays silent
      +- PromiseError          from these figures no promise of privacy follows
      +- DeviceLedgerError     what was released before cannot be known or written down; silent
      +- LinkError             the broker, or who should answer through it, is not there
      +- DeviceKeysError       private keys cannot be kept, read or destroyed
      +- NonFiniteScalarError  a loss or an estimate is NaN or infinite; silent this round
      +- LatticeError          a weight or a step would leave the exact lattice
"""

from __future__ import annotations


class EdgeError(Exception):
    """Base of every error this package raises on purpose; the message is meant for a person."""


class BundleError(EdgeError):
    """The bundle cannot be used.

    Examples: a digest that does not match; a missing file; a manifest of a later version; a
    graph whose inputs are not the manifest's tensors.
    """


class TaskError(EdgeError):
    """The data do not fit the task.

    Examples: an empty file; a line without a tab; a label without a word; a label word that is
    not one token of this model.
    """


class WireError(EdgeError):
    """Bytes from outside are not a message.

    Examples: a flipped byte; a cut or lengthened frame; an unknown version; a message over the
    size limit; a field of the wrong type.
    """


class PlanRefusedError(EdgeError):
    """A well-formed plan that this device will not carry out.

    Examples: a round index that does not grow; another run; a clip above or noise below the
    device's own limit; an unknown direction generator.
    """


class PromiseError(EdgeError):
    """From these figures no promise of privacy follows.

    Examples: a clip that bounds nothing; noise that is no number; a policy whose rounds are none.
    """


class DeviceLedgerError(EdgeError):
    """A device's own record of its releases cannot be trusted, read or written; it stays silent.

    Examples: a broken hash chain; an older copy of the file; a full disk.
    """


class LinkError(EdgeError):
    """The broker is not there, will not do, or somebody does not answer through it.

    Examples: a wrong port; a broker that is too old; a name that is no address.
    """


class LinkRenewedError(EdgeError):
    """The link was lost, and the server has not proved since that its orders are of now.

    Example: an order that a broker has held back through an outage.
    """


class JournalError(EdgeError):
    """A host cannot write down which steps it has taken.

    Examples: a full disk; another process that has the file.
    """


class DeviceKeysError(EdgeError):
    """A device's private keys cannot be kept, read or destroyed.

    Examples: a full disk; a damaged file; a file that may not be deleted.
    """


class NonFiniteScalarError(EdgeError):
    """A loss, an estimate or a scalar is not finite. Example: a diverged model."""


class LatticeError(EdgeError):
    """Exactness would be lost.

    Examples: a weight grew past the range of its tensor; a perturbation scale that is not a
    multiple of a tensor's quantum.
    """


class ProfileError(EdgeError):
    """What a step takes cannot be told.

    Examples: a kernel without /proc; a prompt longer than the model's; too little memory for it.
    """
