"""Walks over the records of a real store, and what people are shown of them."""

import re
from pathlib import Path

import pytest

from requant.errors import ArtifactError
from requant.report.lineage import causes_first, lineage_html, lineage_tree, tree_lines
from requant.report.notes import MAX_LED_TO, Crumb, breadcrumb, flat, model_note, with_led_to
from requant.store import StageRecord, Store
from tests.support.nights import make_night


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageRecord]:
    return make_night(Store(tmp_path_factory.mktemp("state")))


def test_unknown_digest_is_named_with_the_way_out(night: dict[str, StageRecord]) -> None:
    with pytest.raises(ArtifactError, match=r"digest 0{12}: no record .*requant status CONFIG"):
        lineage_tree(night.values(), "0" * 64)


def test_a_loop_among_parents_ends() -> None:
    assert causes_first("a", lambda item: {"a": "b", "b": "a"}[item]) == ("b", "a")


def test_tree_unfolds_each_artifact_once(night: dict[str, StageRecord]) -> None:
    lines = tree_lines(lineage_tree(night.values(), night["requantize_gptq"].digest))

    assert lines[0].startswith("requantize_gptq  " + night["requantize_gptq"].digest[:12])
    assert "kl 0.03, 98.1% agree" in lines[0]
    assert sum("corpus:" in line for line in lines) == 1
    assert any("original: prepare_base" in line and line.endswith("(see above)") for line in lines)
    assert any(line.endswith("outside the store") for line in lines)


def test_page_needs_no_network_and_shows_every_artifact(night: dict[str, StageRecord]) -> None:
    records = list(night.values())
    page = lineage_html(records, cached=["prepare_base"], title="<script>tiny</script>")

    assert not re.search(r"<script|<link|<img|https?://|@import|url\(", page)
    for record in records:
        assert f'id="{record.digest}"' in page
    # Every link inside the page has its target there.
    assert set(re.findall(r'href="#(\w+)"', page)) <= {record.digest for record in records}
    assert page.count('class="cached">cached') == 1
    assert page.count('class="done">executed') == len(records) - 1
    assert page == lineage_html(records, cached=["prepare_base"], title="<script>tiny</script>")


def test_page_links_artifacts_that_have_a_page(night: dict[str, StageRecord]) -> None:
    base = night["prepare_base"]
    page = lineage_html([base], {base.digest: "http://127.0.0.1:5000/#/experiments/1"})
    assert 'href="http://127.0.0.1:5000/#/experiments/1"' in page


def test_arrows_stand_only_below_what_a_box_was_made_from(night: dict[str, StageRecord]) -> None:
    records = [night["prepare_base"], night["prepare_data"], night["continue_train"]]
    assert lineage_html(records).count("&darr;") == 0
    assert lineage_html([night["prepare_base"], night["quantize_base"]]).count("&darr;") == 1


def test_note_leads_from_the_base_to_the_model(
    night: dict[str, StageRecord], tmp_path: Path
) -> None:
    gptq = night["requantize_gptq"]
    crumbs = [Crumb("prepare_base", "a" * 64, "#/m-1"), Crumb(gptq.stage, gptq.digest, None)]

    first = model_note(gptq, crumbs, tmp_path.as_uri()).splitlines()[0]
    assert first == f"[base `aaaaaaaa`](#/m-1) &rsaquo; **gptq `{gptq.digest[:8]}`**"
    assert breadcrumb(crumbs * 20).startswith("… ")


def test_led_to_is_written_once_and_keeps_the_latest() -> None:
    children = [Crumb("train_adapter", f"{i:064x}"[::-1], f"#/m-{i}") for i in range(30)]
    note = "text"
    for child in [*children, children[-1]]:
        note = with_led_to(note, child)

    assert note.startswith("text\n\n**Led to:**")
    assert note.count("- [adapter") == MAX_LED_TO
    assert note.endswith("(#/m-29)")
    assert note.count("(#/m-29)") == 1


def test_flat_names_nested_fields() -> None:
    assert flat({"a": {"b": 1, "c": ["x"]}, "d": "text", "e": None}) == {
        "a.b": "1",
        "a.c": '["x"]',
        "d": "text",
        "e": "null",
    }


def test_a_stage_that_changed_nothing_does_not_hide_what_made_its_input(
    night: dict[str, StageRecord],
) -> None:
    data = night["prepare_data"]
    fields = {"stage": "filter_data", "inputs": {"data": data.digest}}
    same = data.model_copy(update={"stage": "filter_data", "key_fields": fields})
    for records in ([*night.values(), same], [same, *night.values()]):
        assert lineage_tree(records, data.digest).record == data
        assert "filter_data" not in "\n".join(tree_lines(lineage_tree(records, data.digest)))
