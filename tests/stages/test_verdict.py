"""Two models of one evaluation are judged by what they were both asked."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from requant.canonical import digest_of
from requant.cli import app
from requant.errors import ConfigError, ContractError, ParityError
from requant.evaluation.artifact import SAMPLES
from requant.evaluation.judging import Margins, question
from requant.evaluation.results import compare
from requant.evaluation.samples import read_samples, write_samples
from requant.evaluation.scores import DocumentScore, TaskScores, Terms
from requant.evaluation.verdict import Together, judge
from requant.store import Store, publish
from requant.store.answers import answer_notes
from requant.store.records import write_record
from tests.support.nights import make_night

DOCUMENTS = 400


def scores(mean: float, seed: int, metric: str = "log_likelihood") -> TaskScores:
    """A model's scores: documents differ by 0.3 nats a byte, models on one document by 0.02."""
    hard, noise = random.Random(0), random.Random(seed)
    kind = "log_likelihood" if metric == "log_likelihood" else "own"
    documents = []
    for number in range(DOCUMENTS):
        fine = -1.2 + hard.gauss(0, 0.3) + noise.gauss(mean, 0.02)
        score = fine if kind == "log_likelihood" else float(noise.random() < mean)
        fine = fine if kind == "log_likelihood" else score
        documents.append(DocumentScore(number, f"d{number}", f"p{number}", score, fine))
    return TaskScores({}, tuple(documents), Terms("1", metric, kind, True, 0, None, None, "h"))


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Of a champion; one that gained on new text, one that gained it from the old, and noise."""
    folder = tmp_path / "evaluation"
    (folder / SAMPLES).mkdir(parents=True)
    models = {
        "champion": (0.0, 0.0),
        "requantized": (0.02, 0.0),
        "merged": (0.02, -0.05),
        "continued": (0.0, 0.0),
    }
    for seed, (model, (new, old)) in enumerate(models.items()):
        for task, mean in (("heldout_perplexity", new), ("old_perplexity", old)):
            path = folder / SAMPLES / f"{model}.{task}.parquet"
            write_samples(path, task, scores(mean, 10 * seed + len(task)))
    return folder


def verdict(evaluation: Path, candidate: str, **more: object) -> str:
    together = Together(evaluation, candidate, "champion", "it")
    decision = judge(together, alpha=1e-4, margins=Margins(), **more)  # type: ignore[arg-type]
    assert decision.reasons
    return decision.verdict


def test_a_model_that_was_asked_more_is_judged_by_what_both_were(evaluation: Path) -> None:
    path = evaluation / SAMPLES / "champion.old_perplexity.parquet"
    task, known = read_samples(path)
    write_samples(path, task, replace(known, documents=known.documents[:300]))
    together = Together(evaluation, "requantized", "champion", "it")
    decision = judge(together, alpha=1e-4, margins=Margins())
    assert decision.verdict == "promote"
    assert {each.task: each.n for each in decision.findings} == {
        "heldout_perplexity": 400,
        "old_perplexity": 300,
    }


def test_what_gains_and_loses_nothing_is_promoted_what_trades_is_refused(evaluation: Path) -> None:
    assert verdict(evaluation, "requantized") == "promote"
    assert verdict(evaluation, "merged") == "refuse"
    assert verdict(evaluation, "merged", tasks=["heldout_perplexity"]) == "promote"
    # As good as the champion is no reason to take its place.
    assert verdict(evaluation, "continued") in {"refuse", "not enough evidence"}


def test_the_sign_of_a_score_is_the_tasks_own() -> None:
    before, after = scores(0.4, 1, "exact_match"), scores(0.6, 2, "exact_match")
    rule, found = question("t", "guard", "champion", before, after, Margins())
    assert (found.kind, rule.reach, rule.margin) == ("accuracy", 1.0, 0.02)
    assert sum(found.values) > 0
    wrong, right = found.flips or (0, 0)
    assert right - wrong == sum(found.values)
    assert before.terms is not None
    lower = replace(before.terms, higher_is_better=False)
    turned = [replace(each, terms=lower) for each in (before, after)]
    _, other = question("t", "guard", "champion", turned[0], turned[1], Margins())
    assert other.values == [-value for value in found.values]


@pytest.mark.parametrize(
    ("beside", "verdict"), [("heldout_perplexity", "promote"), ("old_perplexity", "refuse")]
)
def test_broken_documents_are_looked_for_in_a_choice_only_where_no_texts_of_its_rows_guard(
    tmp_path: Path, beside: str, verdict: str
) -> None:
    before, after = scores(0.0, 1), scores(0.1, 2)
    # One in eight loses more than ten margins, and the mean is a gain.
    documents = tuple(
        replace(each, fine=each.fine - (0.6 if each.id % 8 == 0 else 0)) for each in after.documents
    )
    choice = replace(after, documents=documents)
    (tmp_path / SAMPLES).mkdir()
    for model, each, other in (("champion", before, before), ("requantized", choice, after)):
        folder = tmp_path / SAMPLES
        write_samples(folder / f"{model}.response_choice.parquet", "response_choice", each)
        write_samples(folder / f"{model}.{beside}.parquet", beside, other)
    together = Together(tmp_path, "requantized", "champion", "it")
    assert judge(together, alpha=1e-4, margins=Margins()).verdict == verdict


def test_what_cannot_be_judged_is_named(evaluation: Path) -> None:
    with pytest.raises(ConfigError, match=r"--task mmlu: was not scored .* heldout_perp"):
        verdict(evaluation, "merged", tasks=["mmlu"])
    with pytest.raises(ConfigError, match=r"adapted: has no samples .*: champion, continued, me"):
        verdict(evaluation, "adapted")
    plain = scores(0.5, 1, "rouge")
    odd = replace(plain, documents=tuple(replace(d, score=0.3) for d in plain.documents))
    with pytest.raises(ContractError, match="t: its rouge is neither a likelihood nor 0 or 1"):
        question("t", "guard", "champion", odd, odd, Margins())
    path = evaluation / SAMPLES / "merged.old_perplexity.parquet"
    assert plain.terms is not None
    first, *others = scores(0.0, 3).documents
    other = replace(scores(0.0, 3), documents=(replace(first, prompt="another"), *others))
    write_samples(path, "old_perplexity", other)
    with pytest.raises(ParityError, match="old_perplexity: the two models were not asked the same"):
        verdict(evaluation, "merged")


def test_documents_are_looked_at_in_an_order_nobody_chose() -> None:
    before, after = scores(0.0, 1), scores(0.0, 2)
    _, found = question("t", "guard", "champion", before, after, Margins())
    assert len(found.values) == DOCUMENTS
    listed = [b.fine - a.fine for a, b in zip(before.documents, after.documents, strict=True)]
    assert sorted(found.values) == sorted(listed)
    assert list(found.values) != listed
    turned = replace(after, documents=after.documents[::-1])
    assert question("t", "guard", "champion", before, turned, Margins())[1] == found


def test_the_command_says_the_verdict_and_ends_with_its_status(
    evaluation: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "state")
    night = make_night(store)
    scored = night["evaluate"]
    inputs = {
        **scored.key_fields["inputs"],
        "champion": night["prepare_base"].digest,
        "merged": night["merge_fp16"].digest,
    }
    fields = {**scored.key_fields, "inputs": inputs}
    changes = {
        "key": digest_of(fields),
        "key_fields": fields,
        "digest": publish(store, "evaluation", evaluation).digest,
        "started": scored.started + 1,
    }
    write_record(store, scored.model_copy(update=changes))
    champion = night["prepare_base"].digest[:12]
    for stage, status, said in (
        ("requantize_gptq", 0, "promote\n  heldout_perplexity against the champion: +0.02"),
        ("merge_fp16", 1, "refuse\n  old_perplexity against the champion: -0.05"),
    ):
        words = [night[stage].digest[:12], champion, "--state", str(store.root)]
        result = CliRunner().invoke(app, ["gate", *words])
        assert (result.exit_code, result.stdout[: len(said)]) == (status, said)
    words = [night["train_adapter"].digest[:12], champion, "--state", str(store.root)]
    result = CliRunner().invoke(app, ["gate", *words])
    assert result.exit_code == 2
    assert "config.json: is missing" in result.output
    words[0] = champion
    result = CliRunner().invoke(app, ["gate", *words])
    assert result.exit_code == 2
    assert f"{champion} and {champion}: are the same model; name another one" in result.output


def test_models_that_no_night_evaluated_together_are_asked_now(
    tiny_base: Path, tiny_data: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "state")
    scored = make_night(store)["evaluate"]
    shutil.copytree(tiny_data, tmp_path / "data")
    dataset = publish(store, "dataset", tmp_path / "data").digest
    fields = {
        **scored.key_fields,
        "inputs": {**scored.key_fields["inputs"], "data": dataset},
        "config": {"limit": None},
    }
    changes = {"key": digest_of(fields), "key_fields": fields, "started": scored.started + 1}
    write_record(store, scored.model_copy(update=changes))
    served = tmp_path / "served"
    shutil.copytree(tiny_base, served)
    shutil.copytree(tiny_base, tmp_path / "artifact")
    known = publish(store, "model", tmp_path / "artifact").digest
    words = ["gate", str(served), known[:12], "--state", str(store.root)]
    result = CliRunner().invoke(app, words)
    assert "are the same model" in result.output
    broken = load_file(served / "model.safetensors")
    embedding = next(name for name in broken if "embed" in name)
    broken[embedding] = broken[embedding].flip(0)
    save_file(broken, served / "model.safetensors", {"format": "pt"})
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    assert f"asked the documents of dataset {dataset[:12]}" in result.stderr
    assert result.stdout.startswith("refuse\n  ")
    assert "old_perplexity against the reference: -" in result.stdout
    result = CliRunner().invoke(app, [*words, "--task", "mmlu"])
    assert "--task mmlu: is not asked of models that no night evaluated together; those" in str(
        result.output
    )
    (served / "chat_template.jinja").write_text("{{ messages[0].content }}")
    result = CliRunner().invoke(app, words)
    assert "have different chat templates, so they would not be asked the same; " in result.output
    # What a night's models were asked is kept, what nothing names is not.
    (note,) = answer_notes(store)
    assert note.exists()


def test_copies_of_documents_in_one_cluster_are_no_more_evidence() -> None:
    before, after = scores(0.0, 1), scores(0.004, 2)
    few = [replace(each, documents=each.documents[:100]) for each in (before, after)]

    def copied(found: TaskScores) -> TaskScores:
        return replace(
            found,
            documents=tuple(
                replace(each, id=3 * each.id + copy, cluster=each.document)
                for each in found.documents
                for copy in range(3)
            ),
        )

    _, once = question("t", "guard", "champion", few[0], few[1], Margins())
    alike = [copied(each) for each in few]
    _, thrice = question("t", "guard", "champion", alike[0], alike[1], Margins())
    assert sorted(thrice.values) == pytest.approx(sorted(once.values))
    alone = [
        replace(each, documents=tuple(replace(one, cluster="") for one in each.documents))
        for each in alike
    ]
    _, counted = question("t", "guard", "champion", alone[0], alone[1], Margins())
    assert len(counted.values) == 3 * len(once.values)
    (row,) = compare({"base": {"t": alike[0]}, "requantized": {"t": alike[1]}}, pytest.fail)
    assert row["n"] == 100
    assert row["better"] + row["worse"] == 100
