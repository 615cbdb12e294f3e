"""evaluate: which tasks, on how many documents."""

from pydantic import Field, model_validator

from requant.config.gate import Gate
from requant.config.given_names import TaskNames
from requant.config.section import NOT_IN_KEY, LocalPath, Positive, Section
from requant.config.task_names import GENERATED


class Evaluate(Section):
    """lm-eval on every model of the night."""

    enabled: bool = Field(True, json_schema_extra=NOT_IN_KEY)
    generated_tasks: bool = Field(
        True, description="the tasks prepare_data made from the held-out part"
    )
    past_nights: int = Field(
        7, ge=0, le=365, description="earlier nights whose held-out rows are evaluated too"
    )
    past_rows: Positive = Field(256, description="of them in all, shared by the nights")
    tasks: TaskNames = Field((), description="further lm-eval task names; most need the hub")
    task_folder: LocalPath | None = Field(
        None,
        description="folder of lm-eval task files of your own, to be named in `tasks`",
        json_schema_extra=NOT_IN_KEY,
    )
    task_code: bool = Field(
        False, description="files of task_folder may name functions (!function), which are run"
    )
    first_documents: Positive = Field(
        64, description="of each task, drawn by seed, for every model of the night"
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="documents of each task at most, for the models of the gate; null: all",
    )
    steps_between: bool = Field(
        True,
        description="evaluate what lies between too: the quantized base, and the adapter beside it "
        "and beside the original; it shows which step cost what",
        json_schema_extra=NOT_IN_KEY,
    )
    examples: int = Field(
        3, ge=0, le=20, description="held-out questions that base, champion and result answer"
    )
    example_tokens: Positive = Field(96, description="tokens of such an answer at most")
    gate: Gate = Gate()
    few_shot: int = Field(0, ge=0, le=64, description="examples in the prompt of `tasks`")
    chat_template: bool = Field(
        False, description="put the prompts of `tasks` through the chat template"
    )
    batch_size: Positive = Field(8, description="sequences per forward pass")

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> "Evaluate":
        if self.enabled and not self.generated_tasks and not self.tasks:
            raise ValueError("generated_tasks=false and tasks=() leave nothing to evaluate")
        if made := [task for task in GENERATED if task in self.tasks]:
            raise ValueError(
                f"tasks: {', '.join(map(repr, made))} is made from each night's data and evaluated "
                "by generated_tasks=true; take it out of tasks"
            )
        return self
