import sqlite3

import privacy_records
import pytest

from edge_runtime.guard.chained_table import GENESIS
from edge_runtime.protocol.rounds import Access
from server.errors import LedgerCorruptError, PrivacyError
from server.privacy.ledger import PrivacyLedger


def make_record(round_index=0, device_index=0, *, stream=None, **changes):
    own = {"certified_noise_std": 1.0}
    if stream is not None:
        own["noise_stream"] = stream
    return privacy_records.make_record(round_index, device_index, **{**own, **changes})


def fresh(round_index, device_index, **changes):
    return make_record(
        round_index, device_index, stream=f"f{round_index:07x}{device_index:08x}", **changes
    )


@pytest.fixture
def connection(tmp_path):
    connection = sqlite3.connect(tmp_path / "run.sqlite")
    connection.execute("PRAGMA synchronous=FULL")
    yield connection
    connection.close()


@pytest.fixture
def ledger(connection):
    return PrivacyLedger(connection)


def whole_round(round_index, num_devices=3, **changes):
    return [make_record(round_index, k, **changes) for k in range(num_devices)]


def test_a_new_ledger_is_empty(ledger):
    assert ledger.records() == ()
    assert ledger.head == (0, GENESIS)


def test_what_was_appended_is_read_back_by_another_process(ledger, connection):
    for round_index in range(4):
        assert ledger.append(whole_round(round_index)) == tuple(whole_round(round_index))
    again = PrivacyLedger(connection)
    assert again.records() == ledger.records()
    assert again.head == ledger.head
    assert again.head[0] == 12


def test_an_append_is_committed_when_it_returns(ledger, connection, tmp_path):
    ledger.append(whole_round(0))
    assert not connection.in_transaction
    other = sqlite3.connect(tmp_path / "run.sqlite")
    assert other.execute("SELECT count(*) FROM privacy_ledger").fetchone() == (3,)
    other.close()


def test_a_round_in_which_nobody_speaks_charges_nothing(ledger):
    assert ledger.append([]) == ()
    assert ledger.append_correction([]) == ()
    assert ledger.head == (0, GENESIS)


def test_the_same_release_again_costs_nothing(ledger, connection):
    ledger.append(whole_round(0))
    assert ledger.append(list(reversed(whole_round(0)))) == ()
    assert PrivacyLedger(connection).append(whole_round(0)) == ()
    assert ledger.head[0] == 3


def test_a_round_with_fresh_noise_everywhere_is_a_further_release(ledger, connection):
    ledger.append(whole_round(0))
    second = [fresh(0, k) for k in range(3)]
    assert ledger.append(second) == tuple(second)
    assert ledger.head[0] == 6
    assert ledger.append(whole_round(0)) == ()
    assert PrivacyLedger(connection).append(second) == ()


@pytest.mark.parametrize(
    "second",
    [
        [make_record(0, 0), make_record(0, 1), fresh(0, 2)],
        [make_record(0, 0), make_record(0, 1)],
        [make_record(0, k) for k in range(4)],
        [make_record(0, k, certified_noise_std=2.0) for k in range(3)],
        [make_record(0, k, stream=make_record(0, (k + 1) % 3).noise_stream) for k in range(3)],
    ],
    ids=["one device draws again", "one drops", "one joins", "other promise", "streams swapped"],
)
def test_a_superposed_round_is_repeated_whole_or_not_at_all(ledger, second):
    ledger.append(whole_round(0))
    with pytest.raises(PrivacyError, match="cancel"):
        ledger.append(second)
    assert ledger.head[0] == 3


def test_slotted_devices_repeat_by_themselves(ledger):
    first = whole_round(0, access=Access.SLOTTED)
    ledger.append(first)
    mixed = [first[0], fresh(0, 1, access=Access.SLOTTED), first[2]]
    assert ledger.append(mixed) == (mixed[1],)
    assert ledger.append(mixed) == ()
    with pytest.raises(PrivacyError, match="cancel"):
        ledger.append([make_record(0, 0, access=Access.SLOTTED, certified_noise_std=3.0)])
    with pytest.raises(PrivacyError, match="another access mode"):
        ledger.append([fresh(0, 0)])


def test_missing_noise_is_charged_on_top(ledger, connection):
    ledger.append(whole_round(0))
    weaker = [make_record(0, k, certified_noise_std=0.8) for k in range(2)]
    assert ledger.append_correction(weaker) == tuple(weaker)
    assert ledger.append_correction(weaker) == ()
    assert len(PrivacyLedger(connection).records()) == 5


@pytest.mark.parametrize(
    "records",
    [
        [make_record(0, 0, certified_noise_std=1.5)],
        [make_record(0, 7, certified_noise_std=0.5)],
        [fresh(0, 0, certified_noise_std=0.5)],
        [make_record(1, 0, certified_noise_std=0.5)],
    ],
)
def test_a_correction_only_ever_charges_more_for_a_known_release(ledger, records):
    ledger.append(whole_round(0))
    with pytest.raises(PrivacyError, match="correction"):
        ledger.append_correction(records)


@pytest.mark.parametrize(
    "records",
    [
        [make_record(0, 0), make_record(1, 1)],
        [make_record(0, 0), fresh(0, 0)],
        [make_record(0, 0), make_record(0, 1, access=Access.SLOTTED)],
    ],
)
def test_records_that_are_not_one_round_are_refused(ledger, records):
    with pytest.raises(PrivacyError):
        ledger.append(records)
    assert ledger.head[0] == 0


@pytest.mark.parametrize("pragma", ["synchronous=OFF", "synchronous=NORMAL", "journal_mode=OFF"])
def test_a_connection_that_may_lose_a_commit_is_refused(connection, pragma):
    connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(PrivacyError, match="synchronous"):
        PrivacyLedger(connection)


def test_an_append_inside_a_transaction_is_refused(ledger, connection):
    connection.execute("BEGIN")
    with pytest.raises(PrivacyError, match="transaction"):
        ledger.append(whole_round(0))
    connection.rollback()


def test_durability_is_asked_again_at_every_append(ledger, connection):
    connection.execute("PRAGMA synchronous=OFF")
    with pytest.raises(PrivacyError, match="synchronous"):
        ledger.append(whole_round(0))


def test_two_writers_do_not_share_a_ledger(ledger, connection):
    other = PrivacyLedger(connection)
    ledger.append(whole_round(0))
    with pytest.raises(LedgerCorruptError, match="Another process"):
        other.append(whole_round(1))
    assert PrivacyLedger(connection).head[0] == 3


def test_a_full_disk_is_not_called_damage(connection):
    """A copy of the run folder would help nobody; some space does."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute("CREATE TABLE filling (bytes BLOB)")
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(PrivacyError, match=r"database or disk is full\. Nothing was charged"):
        PrivacyLedger(connection)
    connection.execute("PRAGMA max_page_count = 100000")
    assert PrivacyLedger(connection).records() == ()
