"""Words of libraries that nobody can act on, kept out of the log of a night nobody watches."""

import logging
import warnings


def quiet_logs() -> None:
    """Let only errors of the talkative libraries through, for the rest of this process."""
    for name in ("torchao", "torch.utils._pytree", "lm_eval", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # What Prefect still has to send is sent at the end of a command, and each counts it aloud.
    for name in ("APILogWorker", "EventsWorker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It raises what it logs: the file is named there, with what to do.
    logging.getLogger("datasets.packaged_modules.parquet.parquet").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
