"""What earlier nights left: taken where it is there, named where it was deleted."""

import shutil
from pathlib import Path

from requant.history import lost_datasets, past_datasets
from requant.store import StageRecord, Store
from requant.store.records import write_record
from tests.nights import make_night


def test_a_deleted_dataset_is_named_and_an_older_one_takes_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path)
    nights: list[StageRecord] = []
    for number in range(4):
        made = make_night(store, str(number))["prepare_data"]
        nights.append(made.model_copy(update={"key": f"{number:064}", "started": float(number)}))
    for record in nights:
        write_record(store, record)
    *earlier, tonight = nights
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
