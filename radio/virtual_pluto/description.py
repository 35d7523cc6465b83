"""The XML by which a client learns what a context has."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from radio.virtual_pluto.attributes import Channel, Device
from radio.virtual_pluto.pluto import VirtualPluto

_ELEMENTS = {
    "context": "name version-major version-minor version-git description",
    "context-attribute": "name value",
    "device": "id name",
    "channel": "id type name",
    "scan-element": "index format scale",
    "attribute": "name filename",
    "debug-attribute": "name",
    "buffer-attribute": "name",
}
# libxml2 validates: without a document type a client prints warnings.
_DOCUMENT_TYPE = "".join(
    f"<!ELEMENT {element} ANY><!ATTLIST {element} "
    + " ".join(f"{name} CDATA #IMPLIED" for name in names.split())
    + ">"
    for element, names in _ELEMENTS.items()
)


def describe(pluto: VirtualPluto) -> str:
    """The context of one radio."""
    context = _opening(
        "context",
        name="network",
        version_major="0",
        version_minor="25",
        version_git="virtual",
        description=f"virtual pluto {pluto.serial}",
    )
    attributes = "".join(
        _element("context-attribute", name=name, value=value)
        for name, value in pluto.context_attributes.items()
    )
    devices = "".join(_device(device) for device in pluto.devices.values())
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<!DOCTYPE context [{_DOCUMENT_TYPE}]>{context}{attributes}{devices}</context>"
    )


def _device(device: Device) -> str:
    channels = "".join(_channel(channel) for channel in device.channels)
    kinds = (
        ("attribute", device.attributes),
        ("debug-attribute", device.debug),
        ("buffer-attribute", device.buffer),
    )
    attributes = "".join(_element(tag, name=name) for tag, names in kinds for name in names)
    opening = _opening("device", id=device.identifier, name=device.name)
    return f"{opening}{channels}{attributes}</device>"


def _channel(channel: Channel) -> str:
    named = {"name": channel.name} if channel.name else {}
    opening = _opening(
        "channel",
        id=channel.identifier,
        **named,
        type="output" if channel.is_output else "input",
    )
    scan = ""
    if channel.scan_index is not None:
        scan = _element("scan-element", index=str(channel.scan_index), format=channel.scan_format)
    attributes = "".join(
        _element("attribute", name=name, filename=channel.file_name(name))
        for name in channel.attributes
    )
    return f"{opening}{scan}{attributes}</channel>"


def _opening(tag: str, **values: str) -> str:
    words = [tag, *(f"{name.replace('_', '-')}={quoteattr(v)}" for name, v in values.items())]
    return f"<{' '.join(words)}>"


def _element(tag: str, **values: str) -> str:
    return f"{_opening(tag, **values)[:-1]}/>"
