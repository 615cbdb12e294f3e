"""What earlier nights left: taken where it is there, named where it was deleted."""

import shutil
from pathlib import Path

from requant.canonical import digest_of
from requant.execution.past_nights import (
    ADAPTERS,
    DATASETS,
    judging_models,
    lost_datasets,
    nights_ago,
    past_datasets,
    past_role,
)
from requant.store import StageRecord, Store
from requant.store.gc import collect
from requant.store.pins import pin
from requant.store.records import write_record
from tests.support.nights import make_night

CONFIGS = Path(__file__).parents[2] / "configs"


def of_night(record: StageRecord, number: int, started: float, **past: str) -> StageRecord:
    """The record of the same work on another night, with the inputs that it has besides."""
    inputs = {**record.key_fields["inputs"], **past}
    fields = {**record.key_fields, "seed": number, "inputs": inputs}
    changes = {"key": digest_of(fields), "key_fields": fields, "started": started}
    return record.model_copy(update=changes)


def datasets_of_nights(store: Store, count: int) -> list[StageRecord]:
    """Datasets of so many nights, the oldest first, each with a record of its own."""
    nights: list[StageRecord] = []
    for number in range(count):
        made = make_night(store, str(number))["prepare_data"]
        nights.append(of_night(made, number, started=float(number)))
    for record in nights:
        write_record(store, record)
    return nights


def test_a_deleted_dataset_is_named_and_an_older_one_takes_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    *earlier, tonight = datasets_of_nights(store, 4)
    before = [record.digest for record in reversed(earlier)]
    assert [record.digest for record in past_datasets(store, tonight, 2).values()] == before[:2]
    assert lost_datasets(store, tonight, 2) == []
    shutil.rmtree(store.object_path(before[1]))
    taken = past_datasets(store, tonight, 2)
    assert {role: record.digest for role, record in taken.items()} == {
        "past_data_1": before[0],
        "past_data_2": before[2],
    }
    assert [record.digest for record in lost_datasets(store, tonight, 2)] == [before[1]]
    # One night is asked for, and it is there.
    assert lost_datasets(store, tonight, 1) == []


def test_what_is_older_than_the_nights_asked_for_is_not_missed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    *earlier, tonight = datasets_of_nights(store, 6)
    for record in earlier:
        shutil.rmtree(store.object_path(record.digest))
    assert past_datasets(store, tonight, 1) == {}
    assert lost_datasets(store, tonight, 1) == [earlier[-1]]
    assert len(lost_datasets(store, tonight, 9)) == 5


def test_collecting_garbage_keeps_what_the_next_night_evaluates(tmp_path: Path) -> None:
    """As nights run: each one's evaluation was made from the two datasets before its own too."""
    store = Store(tmp_path)
    nights = []
    for number in range(5):
        night = make_night(store, str(number))
        data, evaluation = night["prepare_data"], night["evaluate"]
        data = of_night(data, number, started=float(number))
        past = {role: old.digest for role, old in past_datasets(store, data, 2).items()}
        write_record(store, data)
        write_record(store, of_night(evaluation, number, started=number + 0.5, **past))
        store.record_path(night["prepare_data"].key).unlink()
        store.record_path(night["evaluate"].key).unlink()
        nights.append(data)
    tomorrow = nights[-1].model_copy(update={"digest": "f" * 64, "started": 9.0})
    needed = past_datasets(store, tomorrow, 3)
    assert [item.digest for item in needed.values()] == [item.digest for item in nights[:1:-1]]

    assert collect(store, keep=1).records

    assert past_datasets(store, tomorrow, 3) == needed
    assert lost_datasets(store, tomorrow, 3) == []
    assert not store.object_path(nights[0].digest).exists()


def test_a_role_is_read_as_it_was_named() -> None:
    for kind in (ADAPTERS, DATASETS):
        roles = [past_role(kind, age) for age in (1, 12)]
        assert [nights_ago(kind, role) for role in roles] == [1, 12]
    assert nights_ago(ADAPTERS, past_role(DATASETS, 1)) == 0
    assert nights_ago(DATASETS, "requantized") == 0


def test_a_model_is_held_against_what_served_before_it_and_against_its_anchor(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    first, second, third = (make_night(store, name)["requantize_gptq"] for name in "abc")

    def judges(record: StageRecord) -> dict[str, str]:
        found = judging_models(store, record, "line")
        return {role: judge.digest for role, judge in found.items()}

    assert judges(first) == {}
    pin(store, "line", "anchor", first.digest)
    pin(store, "line", "champion", first.digest)
    # A night that is repeated after its model was promoted is judged as it was.
    assert judges(first) == {}
    assert judges(second) == {"champion": first.digest}
    pin(store, "line", "previous", first.digest)
    pin(store, "line", "champion", second.digest)
    assert judges(second) == {"champion": first.digest}
    assert judges(third) == {"anchor": first.digest, "champion": second.digest}
    assert judging_models(store, third, "another line") == {}
    shutil.rmtree(store.object_path(second.digest))
    assert judges(third) == {"anchor": first.digest}
