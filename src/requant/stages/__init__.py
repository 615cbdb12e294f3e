"""The stages of a night, one file each: a function from folders to a folder."""

from collections.abc import Mapping

from requant.execution.stage import Stage
from requant.stages import (
    collect_rows,
    continue_train,
    evaluate,
    extend_ledger,
    merge_fp16,
    prepare_base,
    prepare_data,
    quantize_base,
    requantize_gptq,
    train_adapter,
    train_on_grid,
    write_replay,
)

STAGES: Mapping[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        prepare_base,
        write_replay,
        collect_rows,
        extend_ledger,
        prepare_data,
        quantize_base,
        train_adapter,
        merge_fp16,
        continue_train,
        requantize_gptq,
        train_on_grid,
        evaluate,
    )
}
"""The stages by name, for what is said of them; what they do is called by `flows`."""
