"""Scores are joined by what was asked, and decide by likelihoods where those are known."""

import math
from dataclasses import replace
from typing import Any

import pytest

from requant.errors import ParityError
from requant.evaluation.fine_scores import fine_scores
from requant.evaluation.pairs import joined
from requant.evaluation.scores import DocumentScore, Ran, TaskScores, Terms, task_scores

TERMS = Terms("1.0", "acc_norm", "log_likelihood", True, 0, None, None, "lm_eval 1")


def scores(values: list[float], **terms: Any) -> TaskScores:
    documents = tuple(
        DocumentScore(number, f"d{number}", f"p{number}", value, value)
        for number, value in enumerate(values)
    )
    return TaskScores({}, documents, replace(TERMS, **terms))


def test_documents_are_paired_by_what_was_asked() -> None:
    before, after = scores([1.0, 2.0]), scores([1.5, 1.0])
    turned = replace(after, documents=after.documents[::-1])
    pairs = joined("t", before, turned)
    assert [later.score - earlier.score for earlier, later in pairs] == [0.5, -1.0]


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"version": "2.0"}, "version was '1.0' for one and '2.0' for the other"),
        ({"few_shot": 5}, "few_shot was 0 for one and 5"),
        ({"limit": 8}, "limit was None for one and 8"),
        ({"template": "abc"}, "template was None for one and 'abc'"),
        ({"harness": "lm_eval 2"}, "harness was 'lm_eval 1' for one and 'lm_eval 2'"),
        ({"metric": "acc"}, "metric was 'acc_norm' for one and 'acc'"),
    ],
)
def test_scores_made_on_other_terms_are_refused_by_the_term(
    terms: dict[str, Any], said: str
) -> None:
    with pytest.raises(ParityError, match=f"^t: the two models' scores cannot be compared: {said}"):
        joined("t", scores([1.0]), scores([1.0], **terms))


def test_another_document_or_prompt_is_refused() -> None:
    before = scores([1.0, 2.0])
    first, second = before.documents
    for change in ({"document": "other"}, {"prompt": "other"}):
        after = replace(before, documents=(first, replace(second, **change)))
        with pytest.raises(ParityError, match="were not asked the same: 2 documents or prompts"):
            joined("t", before, after)


def choice(right: Any, *likelihoods: float, prompts: tuple[str, ...] = ()) -> dict[str, Any]:
    prompts = prompts or ("q",) * len(likelihoods)
    return {
        "target": right,
        "arguments": [(prompt, " four") for prompt in prompts],
        "filtered_resps": [(value, False) for value in likelihoods],
    }


def test_a_choice_is_scored_by_how_much_likelier_the_right_option_is() -> None:
    samples = [choice(1, -8.0, -4.0, -12.0), choice(0, -8.0, -4.0, -12.0)]
    assert fine_scores("acc_norm", samples, [1.0, 0.0]) == ("log_likelihood", [1.5, 0.0])
    # The same for every option tells nothing of the right one.
    assert fine_scores("acc", [choice(0, -2.0, -2.0)], [1.0])[1] == [0.0]
    # Mutual information asks for the options without the question as well.
    asked = ("q", "q", "", "")
    assert fine_scores("acc", [choice(0, -4.0, -8.0, -1.0, -1.0, prompts=asked)], [1.0])[1] == [1.0]


def test_what_is_no_choice_of_one_right_option_keeps_its_score() -> None:
    for sample in (
        choice([0, 1], -1.0, -2.0),
        choice("four", -1.0, -2.0),
        choice(0, -1.0, -2.0, prompts=("one", "two")),
        {"target": "x", "arguments": [("q", {"until": []})], "filtered_resps": ["x"]},
    ):
        assert fine_scores("acc", [sample, choice(0, -1.0, -2.0)], [0.0, 1.0]) == (
            "own",
            [0.0, 1.0],
        )


def test_a_text_is_scored_by_its_bytes() -> None:
    sample = {"target": "äb", "arguments": [("äb",)], "filtered_resps": [-6.0]}
    assert fine_scores("word_perplexity", [sample], [-6.0]) == ("log_likelihood", [-2.0])


def test_the_main_metric_is_the_first_the_task_names_that_documents_have() -> None:
    sample = {
        **choice(0, -1.0, -2.0),
        "metrics": ["acc", "f1", "acc_norm"],
        "acc": 1.0,
        "f1": (0, 0),
        "acc_norm": 0.0,
        "filter": "none",
        "doc": {},
        "doc_id": 0,
        "doc_hash": "d",
        "prompt_hash": "p",
    }
    results = {
        "results": {"t": {"acc,none": 1.0, "acc_norm,none": 0.0}},
        "samples": {"t": [sample]},
        "configs": {"t": {"metric_list": [{"metric": "f1"}, {"metric": "acc_norm"}]}},
        "higher_is_better": {"t": {"acc": True, "acc_norm": False}},
        "versions": {"t": 1.0},
    }
    found = task_scores(Ran("base", 0, None, None, "h"), "t", results, lambda text: None)
    assert found.terms is not None
    assert (found.terms.metric, found.terms.higher_is_better) == ("acc_norm", False)
    assert found.documents[0].score == 0.0
    assert math.isclose(found.documents[0].fine, 0.25)


def test_documents_that_name_no_cluster_beside_some_that_do_stand_alone() -> None:
    asked = {"filter": "none", "metrics": ["acc"], "doc_hash": "d", "prompt_hash": "p", "acc": 1.0}
    samples = [
        {**choice(0, -1.0, -2.0), **asked, "doc_id": number, "doc": document}
        # A file that `datasets` has read holds null where a line lacks the field.
        for number, document in enumerate([{"cluster": None}, {"cluster": 0}, {}, {"cluster": "a"}])
    ]
    results = {
        "results": {"t": {"acc,none": 1.0}},
        "samples": {"t": samples},
        "configs": {"t": {"metric_list": [{"metric": "acc"}]}},
        "higher_is_better": {"t": {"acc": True}},
        "versions": {"t": 1.0},
    }
    found = task_scores(Ran("base", 0, None, None, "h"), "t", results, lambda text: None)
    assert [each.cluster for each in found.documents] == ["", "0", "", "a"]
