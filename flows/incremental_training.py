"""The night: its stages from base and data to a judged 4-bit model, and its promotion; one flow."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed

from requant.config import Config, StageName
from requant.config.loading import given_config
from requant.execution.walk import Call, Past, Result, walk
from tasks.collect_rows import collect_rows
from tasks.continue_train import continue_train
from tasks.evaluate import evaluate
from tasks.extend_ledger import extend_ledger
from tasks.merge_fp16 import merge_fp16
from tasks.nightly.opening import NightSkipped, night_name, night_of
from tasks.nightly.row_ledger import NothingToDo
from tasks.prepare_base import prepare_base
from tasks.prepare_data import prepare_data
from tasks.quantize_base import quantize_base
from tasks.requantize_gptq import requantize_gptq
from tasks.stage_task import StageTask
from tasks.train_adapter import train_adapter
from tasks.train_on_grid import train_on_grid
from tasks.write_replay import write_replay


def chain(config: Config, call: Call[StageTask, Result], past: Past[Result]) -> None:
    """Say which stage takes whose output; a stage that is off hands on what it was given."""
    original = call(prepare_base)
    # Off by default: what generation 0 writes, once for all nights of the line.
    written = call(write_replay, base=original)
    # The base says which rows its chat template can render; the last ledger, which are new.
    before = past("ledger", original)
    rows = call(collect_rows, base=original, **before)
    ledger = call(extend_ledger, rows=rows, **before)
    data = call(prepare_data, ledger=ledger, written=written)
    # What the generation that serves leaves to tonight's, by generations.policy.
    parent = dict(past("parent", ledger))
    start, begun = parent.pop("model", original), parent.pop("adapter", None)
    # Only GPTQ looks at data; without it NF4 and int8 stay cached from night to night.
    calibration = data if config.quantize_base.method == "gptq" else None

    quantized = call(quantize_base, base=start, data=calibration)
    trained_on = quantized or start
    adapter = call(train_adapter, base=trained_on, data=data, start=begun, **parent)
    merged = call(
        merge_fp16,
        original=start,
        trained_on=trained_on,
        adapter=adapter,
        data=data,
        **parent,
        **past("adapters", adapter),
    )
    continued = call(continue_train, model=merged or start, data=data)
    requantized = call(requantize_gptq, model=continued or merged or start, data=data, base=start)
    # Off by default: in place of all from the adapter on, codes of a GPTQ base that are trained.
    on_grid = call(train_on_grid, base=quantized, original=start, data=data)
    shipped = on_grid or requantized
    # An adapter that is not merged is served on what it was trained on. Of one that is, the steps
    # between are evaluated to see what each of them costs; not of one that others lie below.
    steps = config.evaluate.steps_between and merged is not None and not parent
    call(
        evaluate,
        data=data,
        base=original,
        # What `requant undo` gives back is always asked.
        quantized=quantized if steps or on_grid else None,
        adapted=trained_on if adapter and (steps or not merged) else None,
        base_adapted=start if adapter and quantized and steps else None,
        adapter=adapter if steps or not merged else None,
        merged=merged,
        continued=continued,
        requantized=shipped,
        **past("judges", shipped),
        **past("datasets", data),
    )


# Prefect would log every parameter where one is wrong.
@flow(name="incremental-training", flow_run_name=night_name, validate_parameters=False)
def incremental_training(
    config: Config, force: list[StageName] | None = None
) -> State[None] | None:
    """Retrain, merge, requantize, evaluate, promote; every stage cached, verified and tracked.

    Args:
        config: The whole configuration.
        force: Stages to execute again although their work is done.
    """
    config = given_config(config)
    try:
        with night_of(config, force or []) as night:
            walk(chain, config, night)
            night.promote()
            night.conclude()
    except NightSkipped as skipped:
        return Cancelled(message=str(skipped))
    except NothingToDo as idle:
        return Completed(message=str(idle))
    return None
