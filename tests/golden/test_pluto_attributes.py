"""A virtual Pluto's context, entry by entry, against what is public of a real one's."""

import errno
from pathlib import Path
from xml.etree import ElementTree

import pytest

from radio.virtual_pluto.attributes import IioError
from radio.virtual_pluto.description import describe
from radio.virtual_pluto.server import Bench

LISTED = [
    tuple(line.split())
    for line in (Path(__file__).parent / "pluto_attributes.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(scope="module")
def pluto():
    return Bench(num_radios=1, is_stepped=True).build()[0]


def entries(pluto):
    """(device, channel, name) of every attribute that clients find: (file, attribute)."""
    found = {}
    for device in pluto.devices.values():
        for channel in device.channels:
            way = "out" if channel.is_output else "in"
            where = f"{way}:{channel.name or channel.identifier}"
            for name, attribute in channel.attributes.items():
                found[device.name, where, name] = channel.file_name(name), attribute
        kinds = {"-": device.attributes, "debug": device.debug, "buffer": device.buffer}
        for where, attributes in kinds.items():
            for name, attribute in attributes.items():
                found[device.name, where, name] = name, attribute
    return found


def test_it_has_what_a_pluto_has_and_nothing_else(pluto):
    assert {key: file for key, (file, _) in entries(pluto).items()} == {
        (device, where, name): file for device, where, name, file, _ in LISTED
    }


@pytest.mark.parametrize("line", LISTED, ids=lambda line: " ".join(line[:3]))
def test_what_can_be_read_and_written_is_what_can_there(pluto, line):
    device, where, name, _, mode = line
    _, attribute = entries(pluto)[device, where, name]
    ways, _, error = mode.partition("/")
    wanted = getattr(errno, error) if error else None if "r" in ways else errno.EACCES
    if wanted is None:
        text = attribute.read()
        assert text
    else:
        text = "0"
        with pytest.raises(IioError) as refusal:
            attribute.read()
        assert refusal.value.code == wanted
    try:
        attribute.write(text)
        code = None
    except IioError as refusal:
        code = refusal.code
    if "w" not in ways:
        assert code == errno.EACCES
    elif name == "filter_fir_config":
        assert code == errno.EINVAL  # what it shows is no filter file
    elif (where, name) == ("in:voltage0", "hardwaregain"):
        assert code == errno.EOPNOTSUPP  # an automatic gain is nobody's to set
    else:
        assert code is None


def test_a_file_that_channels_share_is_one(pluto):
    """Set over one channel, it reads so over the others, as one file below /sys does."""
    receiver, auxiliary = (
        pluto.phy.channel(name, is_output=False).attributes for name in ("voltage0", "voltage2")
    )
    receiver["rf_bandwidth"].write("5000000")
    assert auxiliary["rf_bandwidth"].read() == "5000000"
    receiver["rf_bandwidth"].write("18000000")
    converter = pluto.adc.channel("voltage1", is_output=False).attributes["sampling_frequency"]
    assert converter.read() == receiver["sampling_frequency"].read() == "30720000"


def test_the_description_names_the_files(pluto):
    tree = ElementTree.fromstring(describe(pluto))
    files = {
        (device.get("name"), attribute.get("filename"))
        for device in tree.iter("device")
        for channel in device.iter("channel")
        for attribute in channel.iter("attribute")
    }
    assert files == {
        (device, file) for device, where, _, file, _ in LISTED if where[:2] in ("in", "ou")
    }
