"""Frozen epsilons: 80-digit arithmetic for plain Gaussians, a fine dp_accounting grid otherwise.

``python tests/golden/test_privacy_gdp_tables.py`` from the repository root writes the file again
(needs mpmath); a regeneration is a commit of its own with the difference explained.
"""

import importlib.metadata
import json
import math
from pathlib import Path

import pytest

from server.privacy.composition import (
    Composer,
    PriceClass,
    grid_index_below,
    grid_multiplier,
    loss_interval_for,
)

TABLE = Path(__file__).with_name("privacy_gdp.json")
FORMAT_VERSION = 1

# (num_rounds, sampling probability, wanted multiplier, delta)
GAUSSIAN = [
    (1, 1.0, 1.0, 1e-5),
    (1, 1.0, 4.0, 1e-6),
    (100, 1.0, 20.0, 1e-5),
    (2000, 1.0, 27.0, 1e-5),
]
SUBSAMPLED = [
    (2000, 16 / 2757, 0.5534, 1e-5),
    (2000, 16 / 2757, 1.0, 1e-5),
    (8000, 0.016, 2.96, 1e-5),
    (500, 0.064, 1.2, 1e-6),
]


def load_rows():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if table["format"] != "pairzero-privacy-gdp" or table["format_version"] != FORMAT_VERSION:
        raise AssertionError(f"{TABLE.name}: unknown format; regenerate it as said in this module.")
    return table["rows"]


# Absent only while the file is being written for the first time.
ROWS = load_rows() if TABLE.exists() else []


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['num_rounds']}-{r['grid_index']}")
def test_composition_is_at_or_just_above_the_table(row):
    exact = float(row["epsilon"])
    composer = Composer(loss_interval=loss_interval_for(exact), delta=row["delta"])
    price = PriceClass(row["sampling_probability"], row["grid_index"])
    epsilon = composer.epsilon(((price, row["num_rounds"]),))
    # Subsampled rows come from a pessimistic grid themselves, so they may lie a hair higher.
    lowest = exact if row["sampling_probability"] == 1.0 else exact - row["tolerance"]
    assert lowest <= epsilon <= exact * 1.003


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['num_rounds']}-{r['grid_index']}")
def test_the_two_stored_witnesses_agree(row):
    assert float(row["epsilon"]) == pytest.approx(row["dp_accounting_epsilon"], rel=5e-4)


def exact_gaussian_epsilon(num_rounds, multiplier, delta, start):
    """Solve delta(epsilon) = delta for a Gaussian with 80 digits; returns 25 of them."""
    import mpmath

    mpmath.mp.dps = 80
    mu = mpmath.sqrt(num_rounds) / mpmath.mpf(multiplier)

    def excess(eps):
        upper = mpmath.ncdf(-eps / mu + mu / 2)
        return upper - mpmath.exp(eps) * mpmath.ncdf(-eps / mu - mu / 2) - mpmath.mpf(delta)

    root = mpmath.findroot(excess, (0.99 * start, 1.01 * start), solver="secant")
    return mpmath.nstr(root, 25)


def regenerate():
    from dp_accounting.pld import privacy_loss_distribution

    rows = []
    for num_rounds, rate, wanted, delta in GAUSSIAN + SUBSAMPLED:
        grid_index = grid_index_below(wanted)
        multiplier = grid_multiplier(grid_index)
        if rate == 1.0:
            distribution = privacy_loss_distribution.from_gaussian_mechanism(
                multiplier / math.sqrt(num_rounds), value_discretization_interval=1e-4
            )
        else:
            distribution = privacy_loss_distribution.from_gaussian_mechanism(
                multiplier, sampling_prob=rate, value_discretization_interval=1e-4
            ).self_compose(num_rounds)
        second = float(distribution.get_epsilon_for_delta(delta))
        exact = (
            exact_gaussian_epsilon(num_rounds, multiplier, delta, second)
            if rate == 1.0
            else repr(second)
        )
        rows.append(
            {
                "num_rounds": num_rounds,
                "sampling_probability": rate,
                "grid_index": grid_index,
                "delta": delta,
                "epsilon": exact,
                "dp_accounting_epsilon": second,
                "tolerance": 0.0 if rate == 1.0 else num_rounds * 1e-8 + 1e-9,
            }
        )
    table = {
        "format": "pairzero-privacy-gdp",
        "format_version": FORMAT_VERSION,
        "generator": "tests/golden/test_privacy_gdp_tables.py",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("dp-accounting", "mpmath", "numpy", "scipy")
        },
        "tolerance_reason": "subsampled rows are pessimistic by about num_rounds * interval^2",
        "rows": rows,
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    regenerate()
