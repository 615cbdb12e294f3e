"""What is alive is set aside; what is dead is collected first, or it would stay for good."""

import gc
import weakref

from requant.machine.collector import set_aside


class Model:
    """Refers to itself, as models do by their hooks."""

    def __init__(self) -> None:
        self.hook = self


def test_a_dead_model_is_let_go_and_a_live_one_is_looked_through_no_more() -> None:
    dead, alive = Model(), Model()
    gone = weakref.ref(dead)
    del dead
    set_aside()
    assert gone() is None
    assert not any(item is alive for item in gc.get_objects())


def test_a_model_made_later_is_let_go_as_ever() -> None:
    set_aside()
    model = Model()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
