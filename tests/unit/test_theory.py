"""docs/theory.md: what the code cites is there, and what it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEORY = (ROOT / "docs/theory.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^##+ (\d+(?:\.\d+)?) (.+)$", THEORY, flags=re.MULTILINE))
CITED = re.compile(
    r"theory\.md,?\s+(?:sections?\s+)?((?:\d+(?:\.\d+)?)(?:(?:,|\s+and)\s+\d+(?:\.\d+)?)*)"
)


def citations():
    found = []
    for package in ("server", "edge_runtime", "radio", "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for match in CITED.finditer(path.read_text("utf-8").replace("\n", " ")):
                for number in re.findall(r"\d+(?:\.\d+)?", match.group(1)):
                    found.append((path.relative_to(ROOT), number))
    return found


def test_there_is_something_to_check():
    assert len(citations()) > 20
    assert len(SECTIONS) > 15


@pytest.mark.parametrize(("path", "number"), citations(), ids=str)
def test_a_section_that_is_cited_is_there(path, number):
    assert number in SECTIONS, f"{path} cites section {number}"


def test_every_file_it_names_is_there():
    named = re.findall(r"`((?:server|edge_runtime|radio|benchmarks|tests)/[\w./-]+)`", THEORY)
    assert len(named) > 40
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("two-sided", "edge_runtime/spsa.py"),
        ("Y_fit", "server/power/round_costs.py"),
        ("argmin", "server/power/policies/selection.py"),
        ("Phi(-eps", "server/privacy/gaussian.py"),
        ("exp(Delta^2 u) - 1", "server/power/policies/subsampled.py"),
    ],
)
def test_an_equation_leads_to_its_file_at_first_sight(what, path):
    """The lines around the first hit name the file."""
    at = THEORY.index(what)
    around = THEORY[at : at + 400]
    assert path in around


def test_it_fits_on_a_few_pages():
    assert len(THEORY.splitlines()) <= 170
