"""Keys: for their owner only, all or nothing on the disk, and gone when they are destroyed."""

import errno
import json
import os
import stat

import pytest

from edge_runtime.guard import keys as keys_module
from edge_runtime.guard.keys import KEYS_FILE, HostKeys
from edge_runtime.protocol.errors import DeviceKeysError
from server.config.files import load_config
from server.run.local_host import LocalHost

NUM = 5


def test_real_keys_are_new_each_time_and_simulated_ones_are_not():
    assert HostKeys.fresh(NUM) != HostKeys.fresh(NUM)
    assert HostKeys.simulated(0, range(NUM)) == HostKeys.simulated(0, range(NUM))
    assert (
        HostKeys.simulated(0, [3]).commitments == HostKeys.simulated(0, range(NUM)).commitments[3:4]
    )
    assert len(set(HostKeys.fresh(NUM).commitments)) == NUM


def test_a_software_receivers_noise_is_nobodys_to_draw_again_under_real_keys(tmp_path):
    """The superposed promise rests on some of it (`server.privacy.receiver_noise`)."""
    real = load_config("snips", {"privacy.noise_source": "system"})
    host = LocalHost(real, (), HostKeys.fresh(NUM))
    secret = host.software_noise_seed
    assert secret != LocalHost(real, (), HostKeys.fresh(NUM)).software_noise_seed
    host.keep_keys(tmp_path)
    assert LocalHost(real, (), HostKeys.load(tmp_path, NUM)).software_noise_seed == secret
    simulated = load_config("snips")
    assert LocalHost.create(simulated, ()).software_noise_seed == simulated.run.seed


def test_no_text_of_them_holds_a_key(tmp_path):
    keys = HostKeys.fresh(NUM)
    keys.keep(tmp_path)
    for key in json.loads((tmp_path / KEYS_FILE).read_text()):
        assert key not in repr(keys) + str(keys) + " ".join(keys.commitments)


def test_what_is_kept_is_loaded_again(tmp_path):
    keys = HostKeys.fresh(NUM)
    old = os.umask(0)
    try:
        keys.keep(tmp_path)
    finally:
        os.umask(old)
    assert HostKeys.load(tmp_path, NUM) == keys
    assert [path.name for path in tmp_path.iterdir()] == [KEYS_FILE]
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_write_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path, monkeypatch, name):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    keys = HostKeys.fresh(NUM)
    with monkeypatch.context() as patch:
        patch.setattr(keys_module.os, name, no_space)
        with pytest.raises(DeviceKeysError, match="No space left"):
            keys.keep(tmp_path)
    assert not (tmp_path / KEYS_FILE).exists()
    keys.keep(tmp_path)
    assert HostKeys.load(tmp_path, NUM) == keys
    assert [path.name for path in tmp_path.iterdir()] == [KEYS_FILE]


def test_destroyed_keys_are_overwritten_and_gone(tmp_path):
    HostKeys.fresh(NUM).keep(tmp_path)
    second_name = tmp_path / "link"  # what the disk holds after the name is gone
    os.link(tmp_path / KEYS_FILE, second_name)
    assert HostKeys.destroy(tmp_path)
    assert not (tmp_path / KEYS_FILE).exists()
    assert set(second_name.read_bytes()) == {0}
    assert not HostKeys.destroy(tmp_path)
    with pytest.raises(DeviceKeysError, match="private keys cannot be read"):
        HostKeys.load(tmp_path, NUM)


def test_a_half_written_file_is_destroyed_too(tmp_path):
    (tmp_path / ".private_keys.json.partial").write_text('["00ff')
    assert HostKeys.destroy(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_keys_that_cannot_be_deleted_are_named(tmp_path, monkeypatch):
    HostKeys.fresh(NUM).keep(tmp_path)

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(keys_module.Path, "unlink", refused)
    with pytest.raises(DeviceKeysError, match=r"private_keys.json.*Delete the file by hand"):
        HostKeys.destroy(tmp_path)
