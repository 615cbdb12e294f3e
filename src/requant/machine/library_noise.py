"""Words of libraries that nobody can act on, kept out of the log of a night nobody watches."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def log_only_errors() -> None:
    """Let only errors of the talkative libraries through, for the rest of this process."""
    for name in ("torchao", "torch.utils._pytree", "lm_eval", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What Prefect still has to send is sent at the end of a command, and each counts it aloud.
    for name in ("APILogWorker", "EventsWorker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It raises what it logs: the file is named there, with what to do.
    logging.getLogger("datasets.packaged_modules.parquet.parquet").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def no_library_noise() -> Iterator[None]:
    """No progress bars, log lines or warnings of transformers and torch within the block."""
    threshold = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            from transformers.utils.logging import (
                disable_progress_bar,
                enable_progress_bar,
                is_progress_bar_enabled,
            )

            bars = is_progress_bar_enabled()
            disable_progress_bar()
            try:
                yield
            finally:
                if bars:
                    enable_progress_bar()
    finally:
        logging.disable(threshold)


@contextmanager
def no_datasets_bars() -> Iterator[None]:
    """Keep the `datasets` library from drawing progress bars while the block runs."""
    import datasets

    were_on = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
