"""What a process of a night imports, loaded once and inherited by every forked process.

`transformers` and `trl` import lazily, so that their modules are named. GPTQModel is missing: its
import starts threads, which do not survive a fork.
"""

import gc
import warnings

from requant.machine.library_noise import log_only_errors

log_only_errors()
with warnings.catch_warnings(action="ignore"):
    import bitsandbytes
    import datasets
    import lm_eval.evaluator
    import lm_eval.tasks
    import peft
    import scipy.stats
    import sqlalchemy
    import transformers.models.qwen3.modeling_qwen3
    import trl.trainer.sft_trainer

    import tasks.stage_task

# What is forked from here on looks no more through all that was imported.
gc.freeze()

__all__ = [
    "bitsandbytes",
    "datasets",
    "lm_eval",
    "peft",
    "scipy",
    "sqlalchemy",
    "tasks",
    "transformers",
    "trl",
]
