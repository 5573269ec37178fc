import json
import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import CheckpointError, DataError
from pennyweight.core.record import Record, record_key
from pennyweight.records import Clock, Store, provenance
from pennyweight.records.export import export_records
from pennyweight.records.store import VERSION


def record(number=0, study="toy", metric="kl_nats", **values):
    subject = {"model": "pylm", "unit": number}
    return Record(
        study=study, key=record_key(subject), subject=subject, metric=metric,
        **({"value": float(number), "lower": -1.0, "upper": 1.0, "confidence": 0.95} | values),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "toy.sqlite")


def test_what_goes_in_comes_out(store):
    full = record(1, **provenance(Clock()), seed=3, detail={"a": [1, None, "x"]})
    assert store.add([full, record(2)]) == 2
    assert store.find() == [full, record(2)]
    assert Store.open(store.path).find() == [full, record(2)]


def test_find_and_keys_filter(store):
    store.add([record(1), record(2), record(1, metric="ppl"), record(1, study="other")])
    assert store.find(study="other") == [record(1, study="other")]
    assert store.find(metric="ppl", subject={"unit": 1}) == [record(1, metric="ppl")]
    assert store.find(subject={"unit": 7}) == []
    assert store.keys("toy") == {record(1).key, record(2).key}
    assert store.studies() == {"toy": 3, "other": 1}


def test_a_study_continues_with_what_has_no_key(store):
    wanted = [record(number) for number in range(5)]
    store.add(wanted[:2])
    left = [each for each in wanted if each.key not in store.keys("toy")]
    assert [each.subject["unit"] for each in left] == [2, 3, 4]
    store.add(left)
    assert store.find() == wanted


def test_a_measurement_is_kept_once_and_as_it_was(store):
    assert store.add([record(1)]) == 1
    assert store.add([record(1, value=9.0), record(2)]) == 1
    assert [each.value for each in store.find()] == [1.0, 2.0]


@given(st.permutations(list("abcd")))
def test_a_key_does_not_depend_on_the_order(names):
    subject = {name: ord(name) for name in "abcd"}
    assert record_key({name: subject[name] for name in names}) == record_key(subject)
    assert record_key(subject | {"a": 0}) != record_key(subject)


def _write(path, first, barrier):
    barrier.wait()
    for number in range(first, first + 20):
        Store.open(path).add([record(number)])


def test_two_processes_make_and_fill_one_store(tmp_path):
    path = tmp_path / "shared.sqlite"
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_write, args=(path, first, barrier)) for first in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(each.value for each in Store.open(path).find()) == list(range(30))


def test_a_writer_that_is_killed_leaves_all_or_nothing(tmp_path):
    path = tmp_path / "killed.sqlite"
    Store.open(path).add([record(0)])
    code = (
        "import sqlite3, sys, time\n"
        "from pennyweight.records.store import _row\n"
        "from tests.records.test_store import record, Store\n"
        "store = Store.open(sys.argv[1])\n"
        "with store._connected(writes=True) as connection:\n"
        "    row = _row(record(1))\n"
        "    names = ', '.join(record(1).__dataclass_fields__)\n"
        "    places = ', '.join('?' for _ in row)\n"
        "    connection.execute(f'INSERT INTO records ({names}) VALUES ({places})', row)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"written\n"
    finally:
        process.kill()
        process.communicate()
    started = time.monotonic()
    assert Store.open(path).add([record(2)]) == 1  # the dead writer's lock is gone
    assert time.monotonic() - started < 30
    assert [each.value for each in Store.open(path).find()] == [0.0, 2.0]


def test_a_newer_store_is_left_alone(store):
    store.add([record(1)])
    with sqlite3.connect(store.path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = store.path.read_bytes()
    with pytest.raises(CheckpointError, match=r"newer pennyweight \(store version 2"):
        Store.open(store.path)
    assert store.path.read_bytes() == before


def test_what_is_no_store_is_refused_and_unchanged(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but a text that is long enough to be looked at " * 20)
    with pytest.raises(CheckpointError, match=r"notes.txt: not a store that can be used"):
        Store.open(text)
    assert text.read_text().startswith("not a database")
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.commit()
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.close()
    with pytest.raises(CheckpointError, match="a SQLite file, but not one with records"):
        Store.open(other)
    with pytest.raises(CheckpointError, match="there is no folder"):
        Store.open(tmp_path / "none" / "a.sqlite")
    with pytest.raises(CheckpointError, match="there is no such file"):
        Store.existing(tmp_path / "none.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to anything")
def test_reading_needs_no_permission_to_write(store):
    store.add([record(1)])
    store.path.chmod(0o400)
    assert len(Store.existing(store.path).find()) == 1
    with pytest.raises(CheckpointError, match="readonly"):
        store.add([record(2)])


def test_readers_do_not_wait_for_a_writer(store):
    store.add([record(1)])
    with store._connected(writes=True):
        assert len(Store.open(store.path).find()) == 1


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_exports_can_be_read_back(store, tmp_path, suffix):
    pandas = pytest.importorskip("pandas")
    records = [record(1, seed=5), record(2, lower=None, upper=None, detail={"a": 1})]
    export_records(records, path := tmp_path / f"out.{suffix}")
    read = {"csv": pandas.read_csv, "json": pandas.read_json, "parquet": pandas.read_parquet}
    found = read[suffix](path)
    assert found["value"].tolist() == [1.0, 2.0]
    assert math.isnan(found["lower"][1])
    subject = found["subject"][0]
    assert (subject if suffix == "json" else json.loads(subject))["model"] == "pylm"
    assert sorted(os.listdir(tmp_path)) == sorted([f"out.{suffix}", "toy.sqlite"])


def test_exports_to_nowhere_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"ends in .csv, .json, .parquet"):
        export_records([], tmp_path / "out.xlsx")
    with pytest.raises(DataError, match="there is no folder"):
        export_records([], tmp_path / "none" / "out.csv")
