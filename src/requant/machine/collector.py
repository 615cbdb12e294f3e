"""Python's garbage collector, kept from looking through libraries again and again."""

import gc


def set_aside() -> None:
    """Take what is alive out of the collector's sight, once what is dead was collected.

    To be called where no model is in memory: what is alive then is modules, which stay for good.
    With the half million objects of the libraries in sight, a collection takes a third of a second,
    and one is needed each time that a model is let go.
    """
    gc.collect()
    gc.freeze()
