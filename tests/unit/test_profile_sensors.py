"""What a board says of itself, from files as a kernel writes them; absent is None and never 0."""

import threading

import pytest

from edge_runtime.profiling.sensors import Reading, Sensors, has_throttled


@pytest.fixture
def board(tmp_path):
    """board({file: text}) -> Sensors of a machine that has these files below /sys."""

    def make(files, ask=lambda command: None):
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return Sensors(tmp_path, ask)

    make.write = lambda name, text: (tmp_path / "sys" / name).write_text(f"{text}\n")
    return make


def test_a_board_that_says_nothing_is_not_at_0_degrees(board):
    sensors = board({})
    assert sensors.read() == Reading(None, None, None)
    assert sensors.energy_meter() is None


def test_the_hottest_zone_and_the_slowest_core_count(board):
    sensors = board(
        {
            "class/thermal/thermal_zone0/temp": 48312,
            "class/thermal/thermal_zone1/temp": 51000,
            "class/thermal/thermal_zone2/temp": "disabled",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 2400000,
            "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 1500000,
        }
    )
    assert sensors.read() == Reading(51.0, 1.5e9, None)


@pytest.mark.parametrize(
    ("said", "bits"),
    [
        ("throttled=0x0\n", 0), ("throttled=0x50005\n", 0x50005), (None, None),
        ("error=1", None), ("throttled=much", None), ("", None),
    ],
)  # fmt: skip
def test_a_raspberry_pi_is_asked_whether_it_holds_back(board, said, bits):
    asked = []
    sensors = board({}, lambda command: (asked.append(command), said)[1])
    assert sensors.read().throttled == bits
    assert asked == [["vcgencmd", "get_throttled"]]


@pytest.mark.parametrize(
    ("before", "after", "has"),
    [
        (None, 0, None), (0, None, None), (0, 0, False),
        (0x50000, 0x50000, False),  # long ago
        (0, 0x40000, True),  # meanwhile, and over
        (0x40000, 0x50000, True),
        (0x4, 0x40000, True), (0, 0x1, True),
    ],
)  # fmt: skip
def test_times_are_void_if_the_clock_was_held_back_in_between(before, after, has):
    assert has_throttled(Reading(throttled=before), Reading(throttled=after)) is has


def test_energy_that_the_processor_counts_wraps_and_nested_ranges_count_once(board):
    name = "class/powercap/intel-rapl:0/energy_uj"
    sensors = board(
        {
            name: 900_000, "class/powercap/intel-rapl:0/max_energy_range_uj": 1_000_000,
            "class/powercap/intel-rapl:0:0/energy_uj": 77,
            "class/hwmon/hwmon0/energy1_input": 5,
        }
    )  # fmt: skip
    meter = sensors.energy_meter()
    assert meter.counter == "powercap"
    assert meter.joules() == 0.0
    board.write(name, 950_000)
    assert meter.joules() == pytest.approx(0.05)
    board.write(name, 50_000)
    assert meter.joules() == pytest.approx(0.15)
    board.write(name, "gone")
    assert meter.joules() == pytest.approx(0.15)
    meter.close()


def test_energy_that_a_sensor_counts_comes_next(board):
    sensors = board({"class/hwmon/hwmon1/energy1_input": 2_000_000})
    meter = sensors.energy_meter()
    assert meter.counter == "hwmon energy"
    board.write("class/hwmon/hwmon1/energy1_input", 5_000_000)
    assert meter.joules() == pytest.approx(3.0)


def test_power_alone_is_summed_over_time(board):
    sensors = board({"class/hwmon/hwmon1/power1_input": 4_000_000})
    meter = sensors.energy_meter()
    assert meter.counter == "hwmon power, integrated"
    first = meter.joules()
    threading.Event().wait(0.3)
    second = meter.joules()
    meter.close()
    # 4 watts for 0.3 s at least; a busy machine waits longer.
    assert second - first >= 1.2
    assert not [thread for thread in threading.enumerate() if thread.name == "power"]
