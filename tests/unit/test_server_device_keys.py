"""Keys: for their owner only, all or nothing on the disk, and gone when they are destroyed."""

import errno
import json
import os
import stat

import pytest

from server.config.files import parse_config
from server.errors import RunStoreError
from server.store import device_keys
from server.store.device_keys import KEYS_FILE, DeviceKeys

SYSTEM = parse_config({"privacy": {"noise_source": "system"}}, source="test")
SIMULATION = parse_config({"privacy": {"noise_source": "simulation"}}, source="test")


def test_real_keys_are_new_each_time_and_simulated_ones_are_not():
    assert DeviceKeys.create(SYSTEM) != DeviceKeys.create(SYSTEM)
    assert DeviceKeys.create(SIMULATION) == DeviceKeys.create(SIMULATION)
    assert len(set(DeviceKeys.create(SYSTEM).commitments)) == SYSTEM.federation.num_devices


def test_a_software_receivers_noise_is_nobodys_to_draw_again_under_real_keys(tmp_path):
    """The superposed promise rests on some of it (`server.privacy.receiver_noise`)."""
    keys = DeviceKeys.create(SYSTEM)
    secret = keys.software_noise_seed(SYSTEM)
    assert secret != DeviceKeys.create(SYSTEM).software_noise_seed(SYSTEM)
    keys.keep(tmp_path)
    assert DeviceKeys.load(SYSTEM, tmp_path).software_noise_seed(SYSTEM) == secret
    simulated = DeviceKeys.create(SIMULATION).software_noise_seed(SIMULATION)
    assert simulated == SIMULATION.run.seed


def test_no_text_of_them_holds_a_key(tmp_path):
    keys = DeviceKeys.create(SYSTEM)
    keys.keep(tmp_path)
    for key in json.loads((tmp_path / KEYS_FILE).read_text()):
        assert key not in repr(keys) + str(keys) + " ".join(keys.commitments)


def test_what_is_kept_is_loaded_again(tmp_path):
    keys = DeviceKeys.create(SYSTEM)
    old = os.umask(0)
    try:
        keys.keep(tmp_path)
    finally:
        os.umask(old)
    assert DeviceKeys.load(SYSTEM, tmp_path) == keys
    assert [path.name for path in tmp_path.iterdir()] == [KEYS_FILE]
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_write_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path, monkeypatch, name):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    keys = DeviceKeys.create(SYSTEM)
    with monkeypatch.context() as patch:
        patch.setattr(device_keys.os, name, no_space)
        with pytest.raises(RunStoreError, match="No space left"):
            keys.keep(tmp_path)
    assert not (tmp_path / KEYS_FILE).exists()
    keys.keep(tmp_path)
    assert DeviceKeys.load(SYSTEM, tmp_path) == keys
    assert [path.name for path in tmp_path.iterdir()] == [KEYS_FILE]


def test_destroyed_keys_are_overwritten_and_gone(tmp_path):
    DeviceKeys.create(SYSTEM).keep(tmp_path)
    second_name = tmp_path / "link"  # what the disk holds after the name is gone
    os.link(tmp_path / KEYS_FILE, second_name)
    assert DeviceKeys.destroy(tmp_path)
    assert not (tmp_path / KEYS_FILE).exists()
    assert set(second_name.read_bytes()) == {0}
    assert not DeviceKeys.destroy(tmp_path)
    with pytest.raises(RunStoreError, match="private keys cannot be read"):
        DeviceKeys.load(SYSTEM, tmp_path)


def test_a_half_written_file_is_destroyed_too(tmp_path):
    (tmp_path / ".private_keys.json.partial").write_text('["00ff')
    assert DeviceKeys.destroy(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_keys_that_cannot_be_deleted_are_named(tmp_path, monkeypatch):
    DeviceKeys.create(SYSTEM).keep(tmp_path)

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(device_keys.Path, "unlink", refused)
    with pytest.raises(RunStoreError, match=r"private_keys.json.*Delete the file by hand"):
        DeviceKeys.destroy(tmp_path)
