"""The whole chain without Prefect: the same wiring, keys and store, for tests and benchmarks."""

import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from flows.incremental_training import chain
from requant.config import Config
from requant.config.section import Section
from requant.execution.key import stage_key
from requant.execution.past_nights import Use, past_of
from requant.execution.perform import perform
from requant.execution.walk import walk
from requant.store import StageRecord, Store, artifact_of
from tasks.nightly.row_ledger import note_taken, open_ledger
from tasks.stage_task import StageTask

MICRO = """
name: micro
prepare_base:
  source: {kind: stdlib, vocab_size: 1024, hidden_size: 64, layers: 2, heads: 2, kv_heads: 1,
           intermediate_size: 128, steps: 20, batch_size: 8, sequence_length: 128}
prepare_data:
  source: {kind: stdlib}
  max_rows: 48
  max_evaluation_rows: 8
train_adapter:
  rank: 4
  alpha: 8
  optimisation: {max_steps: 6, batch_size: 4, learning_rate: 4.0e-3, max_length: 96,
                 checkpoint_steps: 2}
merge_fp16: {parity_rows: 4, trained_max_kl: 0.5}
continue_train:
  optimisation: {max_steps: 4, batch_size: 4, learning_rate: 1.0e-4, max_length: 96,
                 checkpoint_steps: 2}
requantize_gptq: {group_size: 64, calibration_rows: 8, calibration_length: 64, fidelity_rows: 4}
evaluate: {batch_size: 8}
runtime: {device: cpu, retries: 2, retry_seconds: 0.1}
"""

LENIENT_GATE = {
    "harm_a_year": 0.99,
    "tests_a_year": 6,
    "margin": 1.0,
    "broken_share": 0.9,
    "target": [],
}
"""Lets 32 documents be enough for six nights, and asks no model of seconds to have learned."""


def promoting(document: dict[str, Any]) -> dict[str, Any]:
    """Let the nights of a configuration promote by a lenient gate."""
    return document | {
        "prepare_data": document["prepare_data"] | {"max_evaluation_rows": 32},
        "evaluate": document["evaluate"] | {"gate": LENIENT_GATE},
        "promote": {"auto": True},
    }


def micro_config(state: Any, **sections: Any) -> Config:
    """A configuration whose whole chain takes seconds; `sections` replace whole sections."""
    return Config.model_validate({**yaml.safe_load(MICRO), "state": str(state), **sections})


def child_process(target: Callable[..., None], *arguments: Any) -> int:
    """Call a module-level function in a process of its own; return the process's exit code.

    The process is forked from a server that has imported the libraries and run nothing: a fork of
    the test process would inherit locks of OpenMP threads that do not exist in it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.chain", "tests.support.libraries"])
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


class Silent:
    """A reporter that says nothing."""

    def metrics(self, values: Any, step: int) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...
    def message(self, text: str) -> None: ...


class Performed:
    """A way through the chain that performs each stage, and nothing besides."""

    def __init__(self, config: Config, force: Iterable[str] = ()) -> None:
        self.records: dict[str, StageRecord] = {}
        self._config = config
        self._store = Store(config.state)
        self._force = force
        self._began = open_ledger(config, self._store)

    def off(self, stage: str) -> None: ...

    def take(
        self, task: StageTask, section: Section, inputs: Mapping[str, StageRecord]
    ) -> StageRecord:
        store, stage, seed = self._store, task.stage, self._config.seed
        refs = {role: artifact_of(store, record) for role, record in inputs.items()}
        self.records[stage.name] = perform(
            store,
            stage,
            stage_key(stage, section, refs, seed, self._began),
            section,
            refs,
            seed=seed,
            device="cpu",
            reporter=Silent(),
            force=stage.name in self._force,
            labels={"pipeline": self._config.name},
        )
        note_taken(self._config, store, self.records[stage.name])
        return self.records[stage.name]

    def past(self, use: Use, tonight: StageRecord) -> Mapping[str, StageRecord]:
        return past_of(use, self._store, tonight, self._config)


def run_chain(config: Config, force: Iterable[str] = ()) -> dict[str, StageRecord]:
    """Perform every stage that is on; return stage name to record."""
    performed = Performed(config, force)
    walk(chain, config, performed)
    return performed.records
