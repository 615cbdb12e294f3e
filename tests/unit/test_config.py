"""The configuration refuses what cannot work, and says what would."""

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from requant.config import Config
from requant.config.loading import json_schema, load_config, parse_config
from requant.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())


HUB = {"kind": "hub", "repo": "a/b"}


def changed(**fields: Any) -> dict[str, Any]:
    document = copy.deepcopy(TINY)
    for path, value in fields.items():
        *parents, leaf = path.split("__")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return document


def test_names_that_exist_are_taken() -> None:
    tasks = ["tmmluplus_education_(profession_level)", "mmlu_pro-plus", "arc_challenge"]
    config = parse_config(
        changed(
            evaluate__tasks=tasks,
            prepare_base__source={
                "kind": "hub",
                "repo": "Qwen/Qwen3-0.6B",
                "revision": "refs/pr/1",
            },
            prepare_data__source={
                **HUB,
                "revision": "v1.0+b",
                "subset": "mød",
                "train_split": "a[:9]",
            },
        ),
        "t.yaml",
    )
    assert list(config.evaluate.tasks) == tasks


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_every_line_teaches(path: Path) -> None:
    assert load_config(path).name
    knobs = [line for line in path.read_text().splitlines() if line.partition(":")[2].strip()]
    silent = [line for line in knobs if not line.startswith("#") and "#" not in line]
    # The name, a flag, or a knob that a block further up already explains.
    assert len(silent) < len(knobs) / 3


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"train_adapter__rank": 0}, "train_adapter.rank: got 0. Expected a number of at least 1"),
        ({"train_adapter__rnak": 8}, r"train_adapter.rnak: unknown field; did you mean 'rank'\?"),
        ({"quantize_base__method": "nf5"}, "got 'nf5'. Expected one of nf4, int8 or gptq"),
        ({"quantize_base__method": "int8"}, "'dora' cannot train on quantize_base.method='int8'"),
        ({"quantize_base__method": "gptq"}, "'dora' cannot train on quantize_base.method='gptq'"),
        ({"merge_fp16__enabled": False}, "continue_train would lose the adapter; set merge_fp16."),
        (
            {"train_adapter__method": "prefix_tuning"},
            r"'prefix_tuning' adds tokens, not weights: .* serve it as an adapter \(merge",
        ),
        (
            {"merge_fp16__base": "measured", "quantize_base__enabled": False},
            "merge_fp16.base: 'measured' with quantize_base.enabled=false: nothing was quantized",
        ),
        (
            {
                "merge_fp16__base": "dequantized",
                "train_adapter__method": "lora",
                "quantize_base": {"method": "gptq", "group_size": 64},
                "requantize_gptq": {"group_size": 64},
            },
            "rounded to the same grid again, which takes back most of what was trained",
        ),
        (
            {"merge_fp16__weights": [0.5, 0.5], "merge_fp16__past_nights": 2},
            r"weights=\[0.5, 0.5\]: give past_nights \+ 1 = 3 of them",
        ),
        ({"merge_fp16__weights": [0.5]}, r"are of several adapters; give past_nights too"),
        (
            {"merge_fp16__weights": [1.0, 0.0], "merge_fp16__past_nights": 1},
            "got 0.0. Expected a number greater than 0",
        ),
        (
            {"merge_fp16__untie": True, "merge_fp16__past_nights": 1},
            "past_nights=1, untie=true: an adapter that unties the output layer cannot be combined",
        ),
        ({"train_adapter__enabled": False}, "would merge nothing; set merge_fp16.enabled=false"),
        (
            {"train_adapter__enabled": False, "merge_fp16__enabled": False},
            "quantizes a base that nothing uses; set quantize_base.enabled=false",
        ),
        (
            {"train_on_grid": {"enabled": True, "optimisation": {"max_steps": 2}}},
            "train_on_grid.enabled: true with train_adapter.enabled=true, merge_fp16.enabled=true, "
            "continue_train.enabled=true, requantize_gptq.enabled=true, quantize_base.method='nf4':"
            " the codes of a GPTQ base are trained .* set train_adapter.enabled=false, .*"
            "quantize_base.method=gptq, or train_on_grid.enabled=false",
        ),
        (
            {"prepare_data__replay": {"written": 0.1}},
            "prepare_data.replay.written: 0.1 with write_replay.enabled=false: nobody writes the "
            "rows; set write_replay.enabled=true, or prepare_data.replay.written=0",
        ),
        (
            {"write_replay": {"enabled": True}},
            "write_replay.enabled: true with prepare_data.replay.written=0: no night would train "
            "on what .* set prepare_data.replay.written, e.g. to 0.1, or write_replay.enabled=fals",
        ),
        (
            {
                "write_replay": {"enabled": True},
                "prepare_data__replay": {"written": 0.1},
                "train_adapter__optimisation__too_long": "refuse",
            },
            "train_adapter.optimisation.too_long: 'refuse' with write_replay.enabled=true: one .* "
            "that the base wrote would end every night that draws it; set cut or drop",
        ),
        ({"write_replay": {"top_p": 0.0}}, "write_replay.top_p: got 0.0. Expected a number"),
        (
            {"train_on_grid": {"enabled": True}},
            "train_on_grid.optimisation: missing; it has no default",
        ),
        (
            {"evaluate__gate__guard": ["heldout_perplexity", "mmlu"]},
            "evaluate.gate.guard: 'mmlu' will not be evaluated; the tasks of this night are heldou",
        ),
        (
            {"evaluate__gate__floors": {"mmlu": 0.3}},
            "evaluate.gate.floors: 'mmlu' will not be evaluated",
        ),
        ({"promote__guard": ["old_perplexity"]}, "guard: has moved: leave it out, and all generat"),
        (
            {
                "promote__auto": True,
                "evaluate__generated_tasks": False,
                "evaluate__tasks": ["hellaswag"],
                "evaluate__gate__target": ["hellaswag"],
            },
            "evaluate.generated_tasks=false and evaluate.gate.guard=null: nothing would be judged",
        ),
        (
            {"evaluate__gate__first_margins": 50},
            "accuracy_margin=0.02 times the greater of anchor_margins=3 and first_margins=50 is 1;",
        ),
        (
            {"promote__auto": True, "evaluate__enabled": False},
            "promote.auto: true with evaluate.enabled=false: only a 4-bit model that was",
        ),
        (
            {"promote__auto": True, "requantize_gptq__enabled": False},
            "promote.auto: true with requantize_gptq.enabled=false",
        ),
        (
            {
                "evaluate__gate__guard": ["old_perplexity", "past_heldout_perplexity"],
                "evaluate__past_nights": 0,
            },
            "'past_heldout_perplexity' with evaluate.past_nights=0: nothing of earlier nights is",
        ),
        ({"train_adapter__optimisation__epochs": 2}, "set exactly one of max_steps=60 and epochs"),
        ({"continue_train__layers": 2}, "layers=2 with scope='full'"),
        ({"prepare_data__source__night": 9}, "night=9 is past nights=3"),
        ({"prepare_base__source__heads": 3}, "heads=3 must divide hidden_size=256"),
        ({"prepare_base__source": {"kind": "hub", "repo": "x"}}, "repo: got 'x'"),
        ({"prepare_data__source": {"kind": "files", "train": ["a.csv"]}}, "a.csv must end in"),
        (
            {"prepare_data__source": {"kind": "files", "train": "a.jsonl"}},
            r"list of strings, such as \[a.jsonl\]",
        ),
        (
            {"prepare_data__source": {"kind": "files", "train": ["a.jsonl"], "night": 2}},
            r"prepare_data.source: night: of kind stdlib, and kind is 'files'; valid: heldout, "
            r"kind, old_text, train\. .*--set 'prepare_data.source=\{kind: files, train: ...\}'",
        ),
        ({"prepare_data__columns": {"prompt": "q"}}, "give either messages, or prompt and respo"),
        ({"train_adapter__alpha": float("nan")}, "train_adapter.alpha: got nan"),
        ({"evaluate__generated_tasks": False}, "leave nothing to evaluate"),
        ({"prepare_base__source": {"kind": "folder"}}, "prepare_base.source.path: missing"),
        (
            {"deploy__action": {"kind": "post", "url": "http://x", "folder": "y"}},
            r"deploy.action: folder: of kind copy, and kind is 'post'; valid: kind, plain_http",
        ),
        ({"runtime__ranks": 2}, "ranks=2 with launcher='inline': only accelerate starts ranks"),
        ({"runtime__stage_minutes": 5}, "only a stage in its own process can be stopped"),
        (
            {"runtime": {"launcher": "accelerate", "ranks": 3}},
            "train_adapter.optimisation.batch_size: 8 cannot be shared by runtime.ranks=3",
        ),
        (
            {"deploy__action__folder": ".requant/objects/ab"},
            r"deploy.action.folder: .requant/objects/ab lies in objects/ of the state folder "
            r"\(state: .requant\); give a folder outside of it, or .*, e.g. .requant/served",
        ),
        ({"deploy__action__folder": ".requant/x/../pins"}, "folder: .* lies in pins/ of the state"),
        (
            {"deploy__action__folder": ".requant/mlflow.db-wal"},
            "folder: .* lies in mlflow.db-wal/ of the state folder",
        ),
        ({"deploy__action__folder": ".requant/mlflow.db"}, "lies in mlflow.db/ of the state"),
        (
            {"deploy__action__folder": ".requant/.mlflow.db.migrating/x"},
            "lies in .mlflow.db.migrating/ of",
        ),
        ({"deploy__action__folder": ""}, "action.folder: expected a path that is not empty; "),
        (
            {"state": ""},
            r"state: got ''. Expected a path .*; a command's own folder is written \.$",
        ),
        (
            {"prepare_data__source": {"kind": "files", "train": [""]}},
            "prepare_data.source.train.0: got ''. Expected a path",
        ),
        ({"deploy__action__folder": ".requant"}, "folder: .requant is the state folder itself"),
        ({"deploy__action__folder": "."}, r"folder: . holds the state folder \(state: .requant"),
        ({"name": "a b"}, "name: got 'a b'"),
        ({"name": "n" * 101}, "Expected a string of 100 characters at most"),
        ({"train_adapter__rank": "many"}, "rank: got 'many'. Expected a whole number$"),
        ({"train_adapter__rank": 1.5}, "rank: got 1.5. Expected a whole number$"),
        ({"promote__auto": "maybe"}, "promote.auto: got 'maybe'. Expected true or false$"),
        ({"train_adapter": None}, "train_adapter: got null. Expected a mapping of fields$"),
        ({"merge_fp16__scales": 2.0}, r"got 2.0. Expected a list of numbers, such as \[2.0\]$"),
        ({"train_adapter__target_modules": []}, r"got \[\]. Expected a list of 1 or more$"),
        ({"train_adapter__target_modules": ["q" * 201]}, r"a name of one line, [^\n]*$"),
        ({"evaluate__tasks": None}, "got null. Expected a list of strings, such as"),
        (
            {"prepare_base__source": {"kind": "huub"}},
            "source.kind: got 'huub'. Expected one of stdlib, folder, hub$",
        ),
        ({"prepare_base__source": {"path": "x"}}, "got a mapping. Expected a mapping with kind$"),
        ({"evaluate__tasks": ["a task"]}, "evaluate.tasks.0: got 'a task'. Expected the name of"),
        ({"evaluate__tasks": ["m" * 201]}, "of at most 200 letters, .*`lm-eval ls tasks` prints"),
        ({"evaluate__tasks": ["\x1b[31m"]}, r"tasks.0: got '\\x1b\[31m'. Expected the name of a"),
        (
            {"evaluate__gate__guard": ["../x"]},
            "gate.guard.0: got '../x'. Expected the name of a t",
        ),
        (
            {"prepare_base__source": {**HUB, "repo": "é/b"}},
            "repo: got 'é/b'. Expected owner/name, ea",
        ),
        (
            {"prepare_base__source": {**HUB, "repo": "a/.."}},
            "got 'a/..'. Expected owner/name, each o",
        ),
        ({"prepare_base__source": {**HUB, "repo": "a/" + "b" * 97}}, "each of at most 96 letters"),
        (
            {"prepare_base__source": {**HUB, "revision": "../x"}},
            "source.revision: got '../x'. Expected a branch, a tag or a commit, of at most 200",
        ),
        ({"prepare_data__source": {**HUB, "subset": "x\n"}}, r"subset: got 'x\\n'. Expected a na"),
        ({"tracking__experiment": "e" * 201}, "tracking.experiment: expected a name of one line"),
        ({"evaluate__gate__margin": 1000}, r"margin: got 1000. Expected a number of at most 1\.0"),
        ({"evaluate__gate__tests_a_year": 10**8}, "Expected a number of at most 8784"),
        (
            {"evaluate__gate__floors": {"old_perplexity": 0}},
            "floors.old_perplexity: 0 is more than any model reaches; give nats a byte, below 0",
        ),
        (
            {"evaluate__gate__floors": {"describe_choice": 2}},
            "floors.describe_choice: 2 is more than any model reaches; give a share, at most 1",
        ),
        (
            {"evaluate__gate__guard": ["old_perplexity"] * 2},
            "gate.guard: .* 'old_perplexity' more than once; name each once",
        ),
        ({"evaluate__tasks": ["mmlu", "mmlu"]}, "'mmlu' more than once; name each once"),
        (
            {"evaluate__tasks": ["old_perplexity"]},
            "tasks: 'old_perplexity' is made from each night's data .* take it out of tasks",
        ),
        ({"requantize_gptq__bits": 5}, "got 5. Expected 2, 3, 4 or 8: what loads GPTQ's format"),
        (
            {"requantize_gptq__method": "best_of"},
            "got 'best_of'. Expected gptq or auto_round: .* requantize_gptq.candidates ships",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_field_and_way_out(
    fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_config(changed(**fields), origin="t.yaml")


def test_a_link_to_what_requant_keeps_is_refused_as_a_folder_to_deploy_to(tmp_path: Path) -> None:
    (tmp_path / "state/objects").mkdir(parents=True)
    (tmp_path / "served").symlink_to(tmp_path / "state/objects")
    action = {"kind": "copy", "folder": str(tmp_path / "served")}
    with pytest.raises(ConfigError, match="served lies in objects/ of the state folder"):
        parse_config(changed(deploy__action=action, state=str(tmp_path / "state")), origin="t.yaml")


def test_a_configuration_is_frozen() -> None:
    config = parse_config(TINY, origin="t.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_overrides_reach_any_depth_and_keep_their_neighbours() -> None:
    path = CONFIGS / "tiny.yaml"
    config = load_config(
        path, ["train_adapter.rank=4", "train_adapter.optimisation.learning_rate=1e-4"]
    )
    assert config.train_adapter.rank == 4
    assert config.train_adapter.optimisation.learning_rate == 1e-4
    assert config.train_adapter.optimisation.batch_size == 8


def test_a_home_is_written_out_in_every_path() -> None:
    config = load_config(
        CONFIGS / "tiny.yaml",
        [
            "state=~/night",
            "prepare_base.source={kind: folder, path: ~/base}",
            "prepare_data.source={kind: files, train: [~/a.jsonl], heldout: ~/b.jsonl}",
            "deploy.action={kind: copy, folder: ~/served}",
        ],
    )
    text = config.model_dump_json()
    assert "~" not in text
    assert text.count(f'"{Path.home()}/') == 5


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train_adapter.rank", "expected section.field=value"),
        ("seed.x=1", "--set seed.x: there is no field x inside a number"),
        ("train_adapter.rank=[", "the value is not YAML"),
        ("nothing.at=1", "nothing: unknown field"),
    ],
)
def test_a_bad_override_is_refused(override: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(CONFIGS / "tiny.yaml", [override])


def test_a_file_that_is_missing_or_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read .*expected a YAML file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds list, expected a mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "bad.yaml")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: one\nseed: 1\nname: two\n")
    with pytest.raises(
        ConfigError, match=r"not YAML: line 3, column 1: 'name' is given twice; keep"
    ):
        load_config(path)


def test_a_state_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match=r"tiny.yaml: state: .*/state is a file; give the path"):
        load_config(CONFIGS / "tiny.yaml", [f"state={tmp_path}/state"])


def test_the_schema_beside_the_configs_is_the_one_of_the_code() -> None:
    assert json.loads((CONFIGS / "schema.json").read_text()) == json_schema()


def test_a_configuration_survives_json() -> None:
    config = parse_config(TINY, origin="t.yaml")
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_what_can_be_chosen_is_what_the_table_of_methods_says() -> None:
    from requant.config.training import TrainAdapter
    from requant.methods import METHODS

    offered = get_args(TrainAdapter.model_fields["method"].annotation)
    assert list(offered) == [name for name, method in METHODS.items() if method.trained]
    assert all(method.merges != method.prompts for method in METHODS.values() if method.trained)
