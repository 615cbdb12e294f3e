"""Words of libraries that nobody can act on, kept out of the log of a night nobody watches."""

import logging
import warnings


def quiet_logs() -> None:
    """Let only errors of the talkative libraries through, for the rest of this process."""
    for name in ("torchao", "torch.utils._pytree", "lm_eval", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
