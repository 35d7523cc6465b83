"""Benchmarks run: their quick forms, and what they write is what they show.

`make test` runs the one that is no study, CI the others too (`make test-studies`).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fault_lab import MUST_BE_NONE

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, check=True, timeout=600, capture_output=True, text=True
    )


@pytest.mark.study
@pytest.mark.takes_long
def test_the_error_study_goes_on_where_it_was_and_its_formulas_hold(tmp_path):
    results, document, picture = (tmp_path / name for name in ("n.jsonl", "n.json", "n.png"))
    command = ["benchmarks/nmse.py", results, "--quick", "--json", document, "--plot", picture]
    first = run(*command)
    lines = results.read_text().splitlines()
    assert first.stderr.count("/52 {") == len(lines) == 52
    results.write_text("\n".join(lines[:-3]) + "\n")
    again = run(*command)
    assert again.stderr.count("/3 {") == 3
    # The same seeds give the same figures, whenever a cell is measured.
    written = json.loads(document.read_text())
    assert [strip(json.loads(line)) for line in lines] == [strip(row) for row in written["cells"]]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert all(0 < share < 5 for share in written["demodulation_shares_of_airtime"].values())
    assert written["environment"]["onnxruntime"]
    waveforms = written["settings"]["waveforms"]
    assert (waveforms["coherent"]["payload_symbols"], waveforms["energy"]["taper"]) == (4096, 0.1)
    assert written["settings"]["impairments"]["pluto-stock"]["crystal_ppm"] == 10.0
    for row in written["cells"]:
        cell, result = row["cell"], row["result"]
        if cell["waveform"] == "coherent" and cell["impairments"] != "ideal":
            assert "every device was silent" in result["failure"]
        else:
            assert result["agrees"], cell


def strip(row):
    return row | {"result": {k: v for k, v in row["result"].items() if k != "seconds"}}


@pytest.mark.study
def test_the_planning_study_finds_the_closed_forms_optimal(tmp_path):
    results, document = tmp_path / "p.jsonl", tmp_path / "p.json"
    command = ["benchmarks/power_planning.py", results, "--quick", "--json", document]
    run(*command)
    lines = results.read_text().splitlines()
    assert len(lines) == 24
    results.write_text("\n".join(lines[:-2]) + "\n")
    assert run(*command).stderr.count("/2 ") == 2
    written = json.loads(document.read_text())
    for row in written["instances"]:
        assert "failure" not in row
        assert row["worse_by"] <= (1e-3 if row["kind"] == "limited" else 1e-6), row
        assert row["spent"] <= 1.0 + 1e-9, row


@pytest.mark.study
def test_the_online_study_exceeds_no_budget(tmp_path):
    results, document = tmp_path / "o.jsonl", tmp_path / "o.json"
    run("benchmarks/online_planning.py", results, "--quick", "--json", document)
    for row in json.loads(document.read_text())["paths"]:
        for rule in ("even", "weighted", "one_step", "mpc"):
            assert row[rule]["spent"] <= 1.0
            assert 1.0 - 1e-9 <= row[rule]["over_hindsight"] < 1.2


def test_the_feasibility_study_says_what_rounds_were_worth(tmp_path):
    results, document = tmp_path / "f.jsonl", tmp_path / "f.json"
    command = ["benchmarks/feasibility.py", results, "--quick", "--json", document]
    first = run(*command)
    (row,) = json.loads(document.read_text())["runs"]
    assert 0.0 < row["effective_rounds"] < row["rounds"] == 5
    assert "epsilon   worth rounds" in first.stdout
    again = run(*command)
    assert again.stderr == ""


@pytest.mark.study
def test_the_audit_stays_below_the_claim_and_sees_a_key_that_is_used_twice(tmp_path):
    """Few runs prove little; the study of 80,000 a cell is in benchmarks/results."""
    results, document = tmp_path / "a.jsonl", tmp_path / "a.json"
    command = ["benchmarks/privacy_audit.py", results, "--quick", "--json", document]
    run(*command)
    cells = {row["cell"]: row for row in json.loads(document.read_text())["cells"]}
    sound, faulty = cells["two rounds"], cells["one noise for two rounds"]
    assert sound["runs"] == faulty["runs"] == 1000
    assert sound["is_sound"]
    assert not sound["is_refuted"]
    assert sound["proved"] <= sound["charged"] <= 8.0
    assert not faulty["is_sound"]
    assert faulty["is_refuted"]
    assert faulty["proved"] > 2 * faulty["charged"]
    assert run(*command).stderr == ""


@pytest.mark.study
def test_the_one_run_audit_sees_what_a_run_without_noise_gives_away(tmp_path):
    results, document = tmp_path / "o.jsonl", tmp_path / "o.json"
    command = ["benchmarks/one_run_audit.py", results, "--quick", "--json", document]
    run(*command)
    private, noiseless = json.loads(document.read_text())["runs"]
    assert private["proved"] <= private["claimed"] <= 1.0
    # Coins would be right 75 times of 150, give or take 6.
    assert noiseless["guesses"][-1]["guesses"] == 150
    assert noiseless["guesses"][-1]["right"] > 90
    assert run(*command).stderr == ""


@pytest.mark.study
def test_the_policy_study_pairs_seeds_and_says_what_is_real(tmp_path):
    results, document = tmp_path / "p.jsonl", tmp_path / "p.json"
    command = ["benchmarks/power_policies.py", results, "--quick", "--json", document]
    run(*command)
    written = json.loads(document.read_text())
    cells = {line["policy"]: line for line in written["cells"]}
    assert set(cells) == {"static", "sign", "perfect"}
    by_seed = {(row["policy"], row["seed"]): row["accuracy"] for row in written["runs"]}
    pairs = [by_seed["perfect", seed] - by_seed["static", seed] for seed in (0, 1)]
    assert abs(cells["perfect"]["accuracy_over_static"] - sum(pairs) / 2) < 1e-12
    assert "accuracy_over_static" not in cells["static"]
    for row in written["runs"]:
        assert row["outcome"] == "complete"
        assert row["epsilon"] is None or row["epsilon"] <= 60.0
    assert run(*command).stderr == ""


@pytest.mark.study
def test_the_study_of_replays_ends_with_equal_weights(tmp_path):
    results, document = tmp_path / "r.jsonl", tmp_path / "r.json"
    run("benchmarks/replay.py", results, "--quick", "--json", document)
    found = json.loads(document.read_text())
    assert len({row["digest"] for row in found["rows"]}) == 1
    assert len(found["rows"]) == 4


@pytest.mark.study
def test_the_study_of_catching_up_ends_with_equal_weights_and_fetches_no_piece_twice(tmp_path):
    results, document = tmp_path / "u.jsonl", tmp_path / "u.json"
    run("benchmarks/catch_up.py", results, "--quick", "--json", document)
    found = json.loads(document.read_text())
    assert found["rounds"] == 50
    assert len({row["digest"] for row in found["rows"] if "digest" in row}) == 1
    bundle = found["bundle"]
    # What was killed may have fetched more than it had said.
    assert bundle["killed"]["pieces"] == bundle["pieces"] // 3
    assert bundle["went on"]["pieces"] <= bundle["pieces"] - bundle["killed"]["pieces"]


@pytest.mark.study
@pytest.mark.takes_long
def test_a_run_over_hosts_that_die_and_stop_ends_whole(tmp_path):
    results, document = tmp_path / "f.jsonl", tmp_path / "f.json"
    run("benchmarks/fault_campaign.py", results, "--quick", "--json", document)
    found = json.loads(document.read_text())
    assert [row["kind"] for row in found["rows"]] == ["secured", "plain", "radios"]
    for row in found["rows"]:
        assert row["outcome"] == "complete"
        assert [row[what] for what in MUST_BE_NONE] == [0] * len(MUST_BE_NONE)
    assert 8 <= sum(found["faults"].values()) <= 10  # a run may end first


@pytest.mark.study
def test_the_study_of_the_control_plane_has_ratios_and_memory_of_hosts(tmp_path):
    results, document = tmp_path / "c.jsonl", tmp_path / "c.json"
    run("benchmarks/control_plane.py", results, "--quick", "--json", document)
    rows = json.loads(document.read_text())["rows"]
    assert [row["is_secured"] for row in rows] == [False, True]
    for row in rows:
        assert row["num_hosts"] == 1
        # A plan and a result, each with an answer, take longer than one request.
        assert row["ratio_of_medians"] > 1.0
        assert 30.0 < row["host_peak_rss_mb"] < 300.0


@pytest.mark.study
def test_the_study_of_rounds_counts_what_they_wait_for(tmp_path):
    results, document = tmp_path / "t.jsonl", tmp_path / "t.json"
    run("benchmarks/round_time.py", results, "--quick", "--json", document)
    cells = {row["waveform"]: row["result"] for row in json.loads(document.read_text())["cells"]}
    assert len(cells) == 5
    for name, result in cells.items():
        # One device: plan, hold, silence; a pilot's three in every tenth round.
        assert result["orders"] == pytest.approx(3.0 if "packets" in name else 3.3)
        assert result["captures"] == pytest.approx(1.0 if "packets" in name else 2.2)
        (timed,) = result["delays"]
        # It settles for 50 ms, on the air.
        assert timed["round_s"] > 0.05
        assert timed["on_air_s"] > 0.05


@pytest.mark.study
def test_what_a_profile_costs_and_how_near_it_is(tmp_path):
    results, document = tmp_path / "c.jsonl", tmp_path / "c.json"
    run("benchmarks/profile_cost.py", results, "--quick", "--json", document)
    (row,) = json.loads(document.read_text())["rows"]
    assert row["metered_to_bare"] > 0.0
    assert row["largest_phase"] == pytest.approx(row["never_set_back"], rel=0.03)
    assert row["predicted"] == pytest.approx(row["largest_phase"], rel=0.10)


@pytest.mark.study
def test_the_study_of_silence_over_hosts_hears_nobody_for_long(tmp_path):
    results, document = tmp_path / "s.jsonl", tmp_path / "s.json"
    run("benchmarks/silence_over_hosts.py", results, "--quick", "--json", document)
    found = json.loads(document.read_text())
    assert found["loud"] == 0
    after_s = {row["what"]: row["silent_after_s"] for row in found["rows"]}
    assert 0.0 < after_s["host"] and after_s["server"] < found["within_s"]


@pytest.mark.study
def test_the_study_of_hosted_devices_says_where_a_round_goes(tmp_path):
    results, document = tmp_path / "h.jsonl", tmp_path / "h.json"
    run("benchmarks/hosted_devices.py", results, "--quick", "--json", document)
    (row,) = json.loads(document.read_text())["rows"]
    # A round holds its passes; they are timed apart, so with room for a machine that is busy.
    assert 0.0 < row["bare_cpu_s"] < 1.2 * row["round_cpu_s"]
    assert {"passes", "moves", "charged", "numbers said"} <= set(row["phases"])
    # Phases that hold others are told without them: together they are no more than the round.
    assert sum(phase["s"] for phase in row["phases"].values()) < 1.2 * row["round_s"]


@pytest.mark.study
@pytest.mark.takes_long
def test_the_memory_table_holds_the_claim_of_the_readme(tmp_path):
    results, document = tmp_path / "m.jsonl", tmp_path / "m.json"
    run("benchmarks/memory_table.py", results, "--quick", "--json", document)
    found = json.loads(document.read_text())
    rows = {row["cell"]: row for row in found["rows"]}
    # Peaks of small batches, so nearer to the weights alone than the table's.
    assert rows["zeroth order, float32"]["part_of_adamw"] < 0.22
    assert rows["zeroth order, int16"]["part_of_adamw"] < 0.14
    assert rows["zeroth order, int8 mapped"]["part_of_adamw"] < 0.07
    assert rows["torch, AdamW"]["part_of_adamw"] == 1.0
    assert rows["zeroth order, int8 mapped"]["trainable"] == 14_175_744
    assert found["paper_mb"]["zeroth order"] == 250.0


@pytest.mark.study
def test_the_uplink_table_counts_what_gradients_would_take(tmp_path):
    results, document = tmp_path / "u.jsonl", tmp_path / "u.json"
    run("benchmarks/uplink_table.py", results, "--quick", "--json", document)
    ours, gradients = json.loads(document.read_text())["rows"]
    assert (ours["cell"], gradients["cell"]) == ("coherent", "FedAvg, rate 0.1")
    assert ours["bits"] is None and ours["numbers"] == 8
    assert gradients["bits"] == 16 * gradients["numbers"] == 16 * 196_608
    assert gradients["airtime_s"] > 1000 * ours["airtime_s"]
    first, *_, last = ours["curve"]
    assert first[0] == 0 and last[0] == 20 and last[1] > first[1]
    assert gradients["curve"][0][1] == pytest.approx(first[1], abs=0.005)


@pytest.mark.study
def test_forms_of_weights_learn_alike(tmp_path):
    results, document = tmp_path / "s.jsonl", tmp_path / "s.json"
    run("benchmarks/stored_forms.py", results, "--quick", "--json", document)
    forms = json.loads(document.read_text())["forms"]
    assert set(forms) == {"float32", "int16"}
    assert abs(forms["int16"]["points_below_float32"]) < 3.0
    assert forms["int16"]["bundle_mb"] < 0.6 * forms["float32"]["bundle_mb"] + 1.0


@pytest.mark.study
def test_the_study_of_a_real_model_shows_what_it_was_given(tmp_path):
    results, document, picture = tmp_path / "r.jsonl", tmp_path / "r.json", tmp_path / "r.png"
    run("benchmarks/real_model.py", results, "--quick", "--json", document, "--plot", picture)
    before, after = json.loads(document.read_text())["rows"]
    assert (before["what"], after["what"]) == ("as it is", "run")
    assert [point[0] for point in after["curve"]] == [0, 3]
    assert 0.0 < after["epsilon_spent"] <= after["epsilon"] == 1.0
    assert before["test_accuracy"] != before["test_accuracy_at_median"]
    assert picture.stat().st_size > 10_000
    run("benchmarks/real_model.py", results, "--quick", "--json", document)
    assert len(results.read_text().splitlines()) == 2  # nothing was done twice


@pytest.mark.study
def test_the_study_of_kept_prefixes_ends_with_equal_weights(tmp_path):
    results, document = tmp_path / "k.jsonl", tmp_path / "k.json"
    run("benchmarks/kept_prefixes.py", results, "--quick", "--json", document)
    (row,) = json.loads(document.read_text())["rows"]
    assert row["digests_are_equal"]
    assert row["kept"] == row["examples"] == 40
    assert row["kept_to_plain"] > 0.0
