import json
import math
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from string import ascii_letters

import pytest
from scipy.stats import ttest_rel

from requant.config.evaluation import Evaluate
from requant.data.rows import conversation
from requant.data.samples import read_rows
from requant.errors import ConfigError, ContractError, ParityError
from requant.evaluation.artifact import read_paired
from requant.evaluation.examples import read_examples
from requant.evaluation.pairs import joined
from requant.evaluation.samples import read_samples
from requant.evaluation.survival import survival
from requant.evaluation.tasks import answer_documents, write_perplexity_task
from requant.stages import evaluate
from requant.statistics import paired_difference
from requant.store.manifest import describe
from tests.stages.conftest import make_context

QUESTION = conversation("What is a list?", "A mutable sequence.")


def altered(base: Path, target: Path, name: str, value: float) -> Path:
    """A copy of a model folder with one weight set to `value`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, target)
    weights = load_file(target / "model.safetensors")
    weights[name].view(-1)[0] = value
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def evaluated(
    tiny_base: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("evaluated")
    name = "model.layers.0.mlp.down_proj.weight"
    merged = altered(tiny_base, folder / "merged", name, 20.0)
    context = make_context(folder)
    metrics = evaluate.execute(
        Evaluate(), context, data=tiny_data, base=tiny_base, merged=merged, requantized=tiny_base
    )
    return context.out, metrics


def test_every_model_has_every_metric(evaluated: tuple[Path, dict[str, float]]) -> None:
    out, metrics = evaluated
    names = {
        "describe_choice/acc_norm",
        "heldout_perplexity/word_perplexity",
        "heldout_perplexity/byte_perplexity",
        "old_perplexity/word_perplexity",
        "old_perplexity/byte_perplexity",
    }
    wanted = {f"{model}/{name}" for model in ("base", "merged", "requantized") for name in names}
    tasks = {name.partition("/")[0] for name in names}
    wanted |= {
        f"{model}/{task}/step_{figure}"
        for model in ("merged", "requantized")
        for task in tasks
        for figure in ("change", "low", "high", "better", "worse")
    }
    assert set(metrics) == wanted
    assert all(math.isfinite(value) for value in metrics.values())
    scores = json.loads((out / "scores.json").read_text())
    acc = scores["base"]["describe_choice"]["acc_norm"]
    assert acc["value"] == metrics["base/describe_choice/acc_norm"]
    assert acc["stderr"] > 0
    assert (
        metrics["merged/heldout_perplexity/byte_perplexity"]
        != metrics["base/heldout_perplexity/byte_perplexity"]
    )


def test_a_step_there_and_back_again_is_in_the_ledger(
    evaluated: tuple[Path, dict[str, float]],
) -> None:
    ledger = survival(read_paired(evaluated[0]))
    there, back = (step for step in ledger.steps if step.task == "old_perplexity")
    assert (there.name, back.name) == ("up to merge_fp16", "requantize_gptq")
    assert there.change.mean == pytest.approx(-back.change.mean)
    assert there.better + there.worse == there.change.n == 12
    assert (there.better, there.worse) == (back.worse, back.better)
    assert ledger.totals[-1].change.mean == 0
    assert ledger.survived("old_perplexity") in {None, 0}


def test_three_models_answer_the_same_held_out_questions(
    evaluated: tuple[Path, dict[str, float]], tiny_data: Path
) -> None:
    examples = read_examples(evaluated[0])
    assert len(examples) == Evaluate().examples
    rows = {
        row["messages"][-1]["content"].strip() for row in read_rows(tiny_data / "heldout.jsonl")
    }
    for each in examples:
        assert each.wanted in rows
        assert each.question
        # The same weights write the same.
        assert each.answers["base"] == each.answers["requantized"]
        assert each.answers.keys() == {"base", "requantized"}


def test_samples_add_up_to_the_scores(
    evaluated: tuple[Path, dict[str, float]], tiny_data: Path
) -> None:
    out, metrics = evaluated

    def samples(task: str) -> list[float]:
        name, scores = read_samples(out / "samples" / f"base.{task}.parquet")
        assert name == task
        assert [each.id for each in scores.documents] == list(range(len(scores.documents)))
        return [each.score for each in scores.documents]

    hits = samples("describe_choice")
    assert sum(hits) / len(hits) == pytest.approx(metrics["base/describe_choice/acc_norm"])
    lines = (tiny_data / "evaluation" / "old_perplexity.jsonl").read_text().splitlines()
    size = sum(len(json.loads(line)["text"].encode()) for line in lines)
    byte_perplexity = math.exp(-sum(samples("old_perplexity")) / size)
    assert byte_perplexity == pytest.approx(metrics["base/old_perplexity/byte_perplexity"])


def test_the_log_likelihood_is_the_models_own(
    evaluated: tuple[Path, dict[str, float]], tiny_base: Path, tiny_data: Path
) -> None:
    import torch

    from requant.models.load import load_model
    from requant.models.tokenizer import load_tokenizer

    tokenizer, model = load_tokenizer(tiny_base), load_model(tiny_base, "cpu")

    def log_likelihood(prompt: str, text: str) -> float:
        given = len(tokenizer(prompt)["input_ids"])
        tokens = tokenizer(prompt + text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(tokens).logits[0, given - 1 : -1].log_softmax(-1)
        return float(logits.gather(-1, tokens[0, given:, None]).sum())

    def first(task: str) -> tuple[dict[str, str], float, float]:
        line = (tiny_data / "evaluation" / f"{task}.jsonl").read_text().splitlines()[0]
        _, scores = read_samples(evaluated[0] / "samples" / f"base.{task}.parquet")
        return json.loads(line), scores.documents[0].score, scores.documents[0].fine

    asked, score, fine = first("heldout_perplexity")
    turn = [{"role": "user", "content": asked["question"]}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    # lm-eval counts the line break before the answer as a part of it.
    expected = log_likelihood(prompt.rstrip(), "\n" + asked["text"])
    assert score == pytest.approx(expected, rel=1e-4)
    assert fine == pytest.approx(expected / len(asked["text"].encode()), rel=1e-4)
    plain, score, _ = first("old_perplexity")
    assert score == pytest.approx(log_likelihood("<|endoftext|>", plain["text"]), rel=1e-4)


def test_an_answer_is_asked_once_for_its_perplexity_and_the_choice(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    context = make_context(tmp_path)
    evaluate.execute(Evaluate(examples=0), context, data=tiny_data, base=tiny_base)
    documents = [
        [*read_rows(tiny_data / "evaluation" / f"{task}.jsonl")]
        for task in ("describe_choice", "heldout_perplexity")
    ]
    asked = {
        *((each["question"], choice) for each in documents[0] for choice in each["choices"]),
        *((each["question"], each["text"]) for each in documents[1]),
    }
    steps = context.reporter.steps  # type: ignore[attr-defined]
    assert len(asked) in [total for done, total, _ in steps if done == total]
    assert len(asked) <= 4 * len(documents[0])


def test_rows_with_and_without_a_question_are_one_task(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    rows = [*({"text": f"A text of its own, number {n}."} for n in range(2)), QUESTION]
    documents = answer_documents(rows)
    assert [each.get("question") for each in documents] == [None, None, "What is a list?"]
    shutil.copytree(tiny_data, tmp_path / "data")
    write_perplexity_task(tmp_path / "data/evaluation", "heldout_perplexity", documents)
    context = make_context(tmp_path / "run")
    evaluate.execute(
        Evaluate(), context, data=tmp_path / "data", base=tiny_base, requantized=tiny_base
    )
    _, scores = read_samples(context.out / "samples" / "base.heldout_perplexity.parquet")
    assert len(scores.documents) == 3
    assert scores.terms is not None
    assert scores.terms.metric == "log_likelihood"


def test_pairs_follow_the_chain_and_end_with_first_against_last(
    evaluated: tuple[Path, dict[str, float]],
) -> None:
    pairs = json.loads((evaluated[0] / "paired.json").read_text())
    old = {(p["earlier"], p["later"]): p for p in pairs if p["task"] == "old_perplexity"}
    assert list(old) == [("base", "merged"), ("merged", "requantized"), ("base", "requantized")]
    there, back = old["base", "merged"], old["merged", "requantized"]
    assert there["mean"] == pytest.approx(-back["mean"])
    assert there["mean"] != 0
    assert there["low"] < there["mean"] < there["high"]
    assert there["n"] == 12
    same = old["base", "requantized"]
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)
    assert all(p["higher_is_better"] for p in pairs)
    base = json.loads((evaluated[0] / "scores.json").read_text())["base"]
    assert base["describe_choice"]["acc_norm"]["higher_is_better"] is True
    assert base["old_perplexity"]["byte_perplexity"]["higher_is_better"] is False
    assert {p["metric"] for p in pairs} == {"acc_norm", "log_likelihood"}


def test_the_interval_is_the_paired_t_tests() -> None:
    earlier, later = [0.1, 0.5, -2.0, 3.0, 1.5], [0.3, 0.4, -1.0, 3.5, 1.4]
    ours = paired_difference([after - before for before, after in zip(earlier, later, strict=True)])
    theirs = ttest_rel(later, earlier).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    one = paired_difference([-0.5])
    assert asdict(one) == {"mean": -0.5, "stderr": None, "low": None, "high": None, "n": 1}


def test_evaluation_is_reproducible(
    evaluated: tuple[Path, dict[str, float]], tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    contexts = [make_context(tmp_path / str(index)) for index in range(2)]
    for context in contexts:
        evaluate.execute(Evaluate(limit=4), context, data=tiny_data, base=tiny_base)
    assert describe(contexts[0].out) == describe(contexts[1].out)
    steps = contexts[0].reporter.steps  # type: ignore[attr-defined]
    assert {unit for _, _, unit in steps} == {"requests of base, model 1 of 1"}
    # Four documents of four choices, and three answers that are none of them; four texts in eight
    # windows; three answers to read. The passes through the model alone reach what was foreseen,
    # and the end of the work says it again.
    assert sorted(total for done, total, _ in steps if done == total) == [3, 3, 8, 8, 19, 19]
    assert steps[0][0] < steps[0][1]
    files = [
        out / "samples" / "base.describe_choice.parquet" for out in (contexts[0].out, evaluated[0])
    ]
    (_, four), (_, whole) = map(read_samples, files)
    # Whichever four they are, the others change nothing of their scores.
    assert set(four.documents) < set(whole.documents)
    with pytest.raises(ParityError, match="limit was 4 for one and None for the other"):
        joined("describe_choice", four, whole)


def test_a_broken_model_is_refused_by_model_task_and_document(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    broken = altered(tiny_base, tmp_path / "broken", "model.norm.weight", math.nan)
    with pytest.raises(ParityError, match=r"merged on describe_choice, document \d+: a score is n"):
        evaluate.execute(
            Evaluate(limit=2), make_context(tmp_path), data=tiny_data, base=tiny_base, merged=broken
        )


def test_what_cannot_be_evaluated_is_refused_before_a_model_is_loaded(
    tiny_data: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    section = Evaluate(tasks=("no_such_task",))
    with pytest.raises(ConfigError, match=r"evaluate\.tasks: lm-eval has no 'no_such_task'"):
        evaluate.execute(section, make_context(tmp_path / "a"), data=tiny_data, base=nowhere)
    with pytest.raises(
        ContractError, match=r"got models \['teacher'\]; expected some of anchor, champion, base"
    ):
        evaluate.execute(Evaluate(), make_context(tmp_path / "b"), data=tiny_data, teacher=nowhere)
    with pytest.raises(
        ContractError, match=r"got models \[\]; expected some of anchor, champion, base"
    ):
        evaluate.execute(Evaluate(), make_context(tmp_path / "c"), data=tiny_data, adapter=nowhere)


def test_a_figure_of_all_documents_is_kept_and_said_not_to_be_compared(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    import yaml

    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    tasks = data / "evaluation"
    choice = yaml.safe_load((tasks / "describe_choice.yaml").read_text())
    for path in tasks.glob("*.yaml"):
        path.unlink()
    for name, metrics in (("whole", ["brier_score"]), ("later", ["brier_score", "acc_norm"])):
        task = {**choice, "task": name, "metric_list": [{"metric": metric} for metric in metrics]}
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(task))
    context = make_context(tmp_path / "run")
    metrics = evaluate.execute(
        Evaluate(limit=3), context, data=data, base=tiny_base, requantized=tiny_base
    )
    assert 0 <= metrics["base/whole/brier_score"] <= 2
    pairs = json.loads((context.out / "paired.json").read_text())
    assert [(pair["task"], pair["metric"]) for pair in pairs] == [("later", "acc_norm")]
    said = (
        "not compared document by document, as no metric is a number for each: whole (brier_score)"
    )
    assert said in context.reporter.messages  # type: ignore[attr-defined]


def test_text_without_a_space_and_answers_longer_than_the_model_are_evaluated(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    # A folder whose name would be a pattern that does not match itself.
    data = tmp_path / "data [v1]"
    shutil.copytree(tiny_data, data)
    word = "".join(random.Random(0).choices(ascii_letters, k=600))
    tasks = data / "evaluation"
    (tasks / "old_perplexity.jsonl").write_text(json.dumps({"id": 0, "text": word}) + "\n")
    choices = {"question": "Which?", "choices": [word, "a", "b", "c"], "answer": 0}
    lines = (json.dumps({"id": number, **choices}) + "\n" for number in range(2))
    (tasks / "describe_choice.jsonl").write_text("".join(lines))
    context = make_context(tmp_path / "run")
    metrics = evaluate.execute(
        Evaluate(limit=2), context, data=data, base=tiny_base, requantized=tiny_base
    )
    assert metrics["base/old_perplexity/byte_perplexity"] > 1
    assert "base/old_perplexity/word_perplexity" not in metrics
    messages = context.reporter.messages  # type: ignore[attr-defined]
    assert "base on old_perplexity: word_perplexity is too large for a number: left out" in messages
    (cut,) = [text for text in messages if text.startswith("base: 2 requests are longer than")]
    assert cut.endswith("their prompts lost tokens from the beginning, 2 answers from the end")
    # The guard judges by log-likelihoods, which are ordinary numbers.
    pairs = json.loads((context.out / "paired.json").read_text())
    assert {pair["metric"] for pair in pairs if pair["task"] == "old_perplexity"} == {
        "log_likelihood"
    }


def test_tasks_of_the_users_own_run_with_their_code_and_generate(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"ask": f"Say {word}.", "answer": word} for word in ("one", "two", "three")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "utils.py").write_text(
        "def prepare(docs):\n    return docs.map(lambda row: {'ask': row['ask'].upper()})\n"
    )
    (folder / "says.yaml").write_text(
        """
task: says
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
process_docs: !function utils.prepare
doc_to_text: "{{ask}}"
doc_to_target: "{{answer}}"
generation_kwargs: {max_gen_toks: 5, until: ["."]}
metric_list: [{metric: exact_match}]
"""
    )
    section = Evaluate(tasks=("says",), task_folder=folder, task_code=True, limit=3)
    contexts = [make_context(tmp_path / str(number)) for number in range(2)]
    metrics = evaluate.execute(
        section, contexts[0], data=tiny_data, base=tiny_base, requantized=tiny_base
    )
    assert metrics["base/says/exact_match"] == 0
    assert metrics["requantized/says/step_change"] == 0
    found = read_samples(contexts[0].out / "samples" / "base.says.parquet")[1]
    assert len(found.documents) == 3
    before = evaluate.STAGE.content_digests(section)
    (folder / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert evaluate.STAGE.content_digests(section) != before
    with pytest.raises(ConfigError, match=r"evaluate\.task_code: true allows it"):
        evaluate.execute(
            Evaluate(tasks=("says",), task_folder=folder),
            contexts[1],
            data=tiny_data,
            base=tiny_base,
        )
