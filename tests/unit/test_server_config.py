"""The configuration: what is unknown, mistyped or impossible is refused, and says how to go on."""

import dataclasses
import math

import pytest

from radio.software_air.impairments import IMPAIRMENTS
from server.config.files import available_presets, dump_config, load_config, parse_config
from server.config.run_config import RunConfig
from server.errors import ConfigurationError


def parse(**sections):
    return parse_config(sections, source="test.toml")


def refusal(**sections):
    with pytest.raises(ConfigurationError) as caught:
        parse(**sections)
    return str(caught.value)


def test_defaults_are_a_valid_configuration():
    assert parse() == RunConfig()


@pytest.mark.parametrize("name", sorted(available_presets()))
def test_every_preset_loads_and_describes_itself(name):
    config = load_config(name)
    assert config.description == available_presets()[name]
    assert config.description


def test_the_model_of_a_preset_lies_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("smollm2-mr").model.bundle == str(tmp_path / "smollm2")
    assert load_config("snips").model.bundle == "bundled"
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "mine.toml").write_text('[model]\nbundle = "mine"\n')
    assert load_config("below/mine.toml").model.bundle == str(tmp_path / "below" / "mine")


def test_there_is_a_preset_called_snips_with_a_promise():
    config = load_config("snips")
    assert config.privacy.enabled
    assert config.radio.backend == "loopback"


def test_overrides_change_what_they_name_and_nothing_else():
    plain = dump_config(load_config("snips"))
    changed = dump_config(
        load_config("snips", {"radio.snr_db": 3, "federation.num_devices": 2, "run.seed": 9})
    )
    assert changed["radio"].pop("snr_db") == 3.0
    assert changed["federation"].pop("num_devices") == 2
    assert changed["run"].pop("seed") == 9
    for section, key in (("radio", "snr_db"), ("federation", "num_devices"), ("run", "seed")):
        plain[section].pop(key)
    assert changed == plain


def test_overrides_make_a_section_the_file_does_not_have(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[optimizer]\nrounds = 3\n")
    config = load_config(str(path), {"model.trainable": "norms_and_biases"})
    assert config.optimizer.rounds == 3
    assert config.model.trainable == "norms_and_biases"
    assert config.radio == RunConfig().radio


def test_unknown_preset_names_the_nearest_one():
    with pytest.raises(ConfigurationError, match=r"'snip'.*Did you mean 'snips'\?.*Known:.*\.toml"):
        load_config("snip")


def test_unknown_preset_without_a_near_name_lists_all():
    with pytest.raises(ConfigurationError) as caught:
        load_config("qqqqqq")
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in available_presets())


@pytest.mark.parametrize(
    ("document", "nearest"),
    [
        ({"optimiser": {"rounds": 3}}, "optimizer"),
        ({"radios": {}}, "radio"),
        ({"optimizer": {"round": 3}}, "rounds"),
        ({"optimizer": {"learning_rates": 1e-3}}, "learning_rate"),
        ({"privacy": {"epsilom": 3.0}}, "epsilon"),
        ({"federation": {"num_device": 3}}, "num_devices"),
    ],
)
def test_unknown_section_or_key_names_the_nearest_one(document, nearest):
    message = refusal(**document)
    assert message.startswith("test.toml: unknown ")
    assert f"Did you mean {nearest!r}?" in message
    assert "Known:" in message


@pytest.mark.parametrize("dotted", ["radio.snr", "privcy.epsilon", "nonsense.key"])
def test_an_unknown_override_is_refused(dotted):
    with pytest.raises(ConfigurationError, match="unknown"):
        load_config("snips", {dotted: 1})


@pytest.mark.parametrize("dotted", ["description.words", "description.a.b"])
def test_an_override_inside_a_plain_value_is_refused_by_name(dotted):
    with pytest.raises(ConfigurationError, match="description"):
        load_config("snips", {dotted: 1})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("optimizer", "rounds", "ten"),
        ("optimizer", "rounds", 1.5),
        ("optimizer", "rounds", True),
        ("optimizer", "learning_rate", "fast"),
        ("optimizer", "directions", 2.0),
        ("optimizer", "difference", "three_sided"),
        ("radio", "backend", "pluto9000"),
        ("radio", "channel", "rice"),
        ("privacy", "enabled", "yes"),
        ("privacy", "unit", "person"),
        ("privacy", "relation", "swap"),
        ("privacy", "access", "both"),
        ("privacy", "noise_source", "dice"),
        ("model", "trainable", 3),
        ("task", "name", 7),
    ],
)
def test_a_wrong_type_or_choice_names_file_and_key(section, key, value):
    message = refusal(**{section: {key: value}})
    assert message.startswith("test.toml: ")
    assert f"{section}.{key}: got {value!r}" in message


@pytest.mark.parametrize("value", [3, "loopback", [1]])
def test_a_section_that_is_no_table_is_refused(value):
    assert "radio: got " in refusal(radio=value)


OUT_OF_RANGE = [
    ("federation.num_devices", [0, -1]),
    ("optimizer.rounds", [0, -5]),
    ("optimizer.directions", [0, -1, 257]),
    ("optimizer.batch_size", [0]),
    ("optimizer.perturbation_scale_log2", [-21, 1]),
    ("optimizer.learning_rate", [0.0, -1e-4, math.nan]),
    ("optimizer.final_learning_rate_fraction", [-0.1, 1.1, math.nan]),
    ("optimizer.clip", [0.0, -1.0, math.nan]),
    ("radio.snr_db", [-61.0, 121.0, math.nan, math.inf]),
    ("radio.coherence_rounds", [0]),
    ("radio.min_gain", [0.0, -0.1, math.nan]),
    ("radio.pilot_symbols", [15]),
    ("radio.payload_symbols", [0]),
    ("radio.max_amplitude", [0.0, 1.1, math.nan]),
    ("radio.sample_rate_hz", [0.0, math.nan]),
    ("privacy.epsilon", [0.0, -1.0, math.nan]),
    ("privacy.delta", [0.0, 1.0, 1.5, -1e-5, math.nan]),
    ("privacy.csi_failure_fraction", [-0.1, 0.6, math.nan]),
    ("task.max_tokens", [7]),
    ("task.validation_examples", [-1]),
    ("run.evaluation_interval", [0]),
    ("run.digest_interval", [0]),
    ("run.workers", [-1]),
    ("run.intra_op_threads", [0]),
]


@pytest.mark.parametrize(
    ("dotted", "value"), [(name, value) for name, values in OUT_OF_RANGE for value in values]
)
def test_a_value_out_of_range_says_what_it_got_and_what_it_wanted(dotted, value):
    section, _, key = dotted.partition(".")
    message = refusal(**{section: {key: value}})
    assert message.startswith(f"{dotted}: got {value}, wanted ")


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("federation.num_devices", 1),
        ("optimizer.rounds", 1),
        ("optimizer.perturbation_scale_log2", -20),
        ("optimizer.perturbation_scale_log2", 0),
        ("optimizer.final_learning_rate_fraction", 0.0),
        ("radio.snr_db", -60.0),
        ("radio.snr_db", 120.0),
        ("radio.max_amplitude", 1.0),
        ("privacy.csi_failure_fraction", 0.5),
        ("task.max_tokens", 8),
        ("run.workers", 0),
    ],
)
def test_the_limits_themselves_are_allowed(dotted, value):
    section, _, key = dotted.partition(".")
    assert getattr(getattr(parse(**{section: {key: value}}), section), key) == value


@pytest.mark.parametrize(
    "dotted", ["optimizer.learning_rate", "radio.min_gain", "radio.sample_rate_hz"]
)
def test_infinity_is_refused_where_it_means_nothing(dotted):
    section, _, key = dotted.partition(".")
    message = refusal(**{section: {key: math.inf}})
    assert message.startswith(f"{dotted}: got inf, wanted ")


@pytest.mark.parametrize("dotted", ["optimizer.batch_size", "optimizer.rounds"])
def test_a_count_that_cannot_travel_is_refused(dotted):
    section, _, key = dotted.partition(".")
    assert dotted in refusal(**{section: {key: 10**24}})


def test_channel_estimates_need_their_share_of_delta():
    message = refusal(privacy={"csi_failure_fraction": 0.0})
    assert message.startswith("privacy.csi_failure_fraction: got 0, wanted > 0")


def test_privacy_needs_a_finite_clip():
    assert "optimizer.clip" in refusal(optimizer={"clip": math.inf})


def test_an_infinite_clip_needs_the_ideal_link():
    message = refusal(optimizer={"clip": math.inf}, privacy={"enabled": False})
    assert "optimizer.clip" in message
    assert "ideal" in message
    config = parse(
        optimizer={"clip": math.inf}, privacy={"enabled": False}, radio={"backend": "ideal"}
    )
    assert config.optimizer.clip == math.inf


def test_privacy_on_the_ideal_link_is_refused():
    message = refusal(radio={"backend": "ideal"})
    assert "radio.backend" in message
    assert "privacy.enabled = false" in message


def test_access_that_this_version_cannot_plan_is_refused():
    message = refusal(privacy={"access": "slotted"})
    assert message.startswith("privacy.access: ")
    assert "slotted" in message


@pytest.mark.parametrize(
    ("unit", "relation", "is_subsampled", "policy"),
    [
        ("example", "zero_out_one", True, "subsampled"),
        ("example", "replace_one", False, "optimal"),
        ("device", "zero_out_one", False, "optimal"),
        ("device", "replace_one", False, "optimal"),
    ],
)
def test_only_examples_that_are_zeroed_out_gain_from_batches(unit, relation, is_subsampled, policy):
    config = parse(privacy={"unit": unit, "relation": relation})
    assert config.is_subsampled is is_subsampled
    assert config.power_policy == policy


@pytest.mark.parametrize(
    ("unit", "policy", "hint"),
    [
        ("example", "optimal", "subsampled"),
        ("device", "subsampled", "optimal"),
        ("device", "perfect", "keeps no promise"),
        ("device", "paper", "keeps no promise"),
    ],
)
def test_a_policy_that_does_not_plan_such_rounds_is_refused_with_those_that_do(unit, policy, hint):
    message = refusal(privacy={"unit": unit}, power={"policy": policy})
    assert policy in message
    assert hint in message


def test_what_privacy_needs_is_not_asked_of_a_run_without_it():
    config = parse(privacy={"enabled": False, "unit": "device", "csi_failure_fraction": 0.0})
    assert not config.privacy.enabled


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[optimizer\nrounds = 3", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path, content, problem):
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {
            "optimizer": {"clip": math.inf},
            "privacy": {"enabled": False},
            "radio": {"backend": "ideal"},
        },
        {"model": {"trainable": ["*.fc2.*", "*.fc1.*"]}},
    ],
)
def test_dump_and_parse_are_inverse(document):
    config = parse(**document)
    assert parse_config(dump_config(config), source="store") == config


def test_a_configuration_cannot_be_changed_after_its_check():
    config = RunConfig()
    with pytest.raises(AttributeError):
        config.optimizer.clip = math.inf


def test_paths_in_a_file_are_relative_to_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    (folder / "own.toml").write_text(
        '[model]\nbundle = "bun"\n[task]\nname = "own-task.toml"\ntrain = "data/t.tsv"\n'
    )
    monkeypatch.chdir(tmp_path)
    config = load_config("somewhere/own.toml", {"task.validation": "v.tsv"})
    assert config.model.bundle == str(folder / "bun")
    assert config.task.name == str(folder / "own-task.toml")
    assert config.task.train == str(folder / "data" / "t.tsv")
    assert config.task.validation == str(tmp_path / "v.tsv")


def test_names_are_no_paths():
    config = load_config("snips")
    assert (config.model.bundle, config.task.name, config.task.train) == ("bundled", "snips", "")


def test_a_step_that_cannot_travel_is_refused_in_the_users_terms():
    message = refusal(optimizer={"learning_rate": 900.0, "clip": 50.0})
    assert "optimizer.learning_rate" in message
    assert "clip" in message


@pytest.mark.parametrize(("difference", "least_clip"), [("one_sided", 4.0), ("two_sided", 2.0)])
def test_a_clip_that_the_rounding_of_a_loss_swamps_is_refused(difference, least_clip):
    # Losses are known to some 2**-18; over mu = 2**-20 that is 4, over 2 mu it is 2.
    optimizer = {"perturbation_scale_log2": -20, "difference": difference, "clip": least_clip}
    parse_config({"optimizer": optimizer}, source="test.toml")
    message = refusal(optimizer={**optimizer, "clip": 0.99 * least_clip})
    assert message.startswith("optimizer.clip: ")
    assert f"is below {least_clip:g}" in message and difference in message
    assert "Raise perturbation_scale_log2 or the clip" in message


@pytest.mark.parametrize(("directions", "difference", "sweeps"), [
    (1, "two_sided", 2), (1, "one_sided", 2), (8, "two_sided", 16), (8, "one_sided", 9),
])  # fmt: skip
def test_a_round_sweeps_the_batch_so_many_times(directions, difference, sweeps):
    optimizer = {"directions": directions, "difference": difference}
    config = parse_config({"optimizer": optimizer}, source="test.toml")
    assert config.optimizer.sweeps_per_round == sweeps


def test_the_impairments_are_those_of_the_name_but_for_what_is_changed():
    energy = {"waveform": "energy"}
    assert parse().impaired_by == IMPAIRMENTS["ideal"]
    assert parse(radio=energy).impaired_by == IMPAIRMENTS["pluto-stock"]
    assert parse(radio=energy).impairments_label == "pluto-stock"
    config = parse(
        radio={**energy, "impairments": "desk-cabled"},
        impairments={"crystal_ppm": 2, "dac_bits": 8, "leakage_db": -math.inf},
    )
    assert config.impairments_label == "desk-cabled*"
    assert config.impaired_by == dataclasses.replace(
        IMPAIRMENTS["desk-cabled"], crystal_ppm=2, dac_bits=8, leakage_db=-math.inf
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"impairments": {"crystal_pm": 1.0}}, "Did you mean 'crystal_ppm'"),
        ({"impairments": {"crystal_ppm": "ten"}}, "crystal_ppm"),
        ({"impairments": {"adc_bits": 1}}, "adc_bits: got 1, wanted 2 to 24"),
        ({"impairments": {"iq_gain_db": 9.0}}, "iq_gain_db: got 9.0"),
        ({"impairments": {"linewidth_hz": 5.0}}, "leaves marks of each device"),
        ({"radio": {"impairments": "desk"}}, "got 'desk', wanted one of"),
    ],
)
def test_impairments_that_cannot_be_are_refused(changes, message):
    assert message in refusal(**changes)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("radio.channel", "rice", "got 'rice', wanted one of awgn, rayleigh, rician"),
        ("radio.waveform", "votes", "wanted one of coherent, .* Did you mean 'vote'"),
        ("privacy.access", "superposd", "wanted one of superposed, slotted. Did you mean"),
        ("power.limits.max_dutty", 1, r"'max_dutty' in \[power.limits\]. Did you mean 'max_duty'"),
        ("radio.chann", "awgn", r"'chann' in \[radio\]. Did you mean 'channel'"),
        ("rdio.channel", "awgn", r"unknown section \[rdio\]. Did you mean 'radio'"),
        ("optimizer.rounds", "many", "optimizer.rounds: got 'many': Expected `int`"),
        ("pluto.devices", [1], r"pluto.devices\[0\]: got .*Expected `str`"),
    ],
)
def test_what_the_command_line_gets_wrong_is_told_with_what_could_be(setting, value, words):
    with pytest.raises(ConfigurationError, match=f"^--set: .*{words}"):
        load_config("snips", {setting: value})


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config("snips", {"task.train": "~/mine.tsv"})
    assert config.task.train == str(tmp_path / "mine.tsv")
