"""Which models are in memory, who loads them, who waits, and which go. Without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shelf import Shelf, User, in_use, use


def test_twenty_that_ask_at_once_cause_one_load() -> None:
    """Twenty copies of the weights would end the process."""
    shelf = Shelf()
    models = shelf.models(1)
    shelf.release.clear()
    users = [User(models, "a") for _ in range(20)]
    assert sorted(shelf.halts.get() for _ in users) == ["loads"] + ["waits"] * 19
    assert models.names == []
    shelf.release.set()
    for user in users:
        user.served.wait()
    assert shelf.loads == ["a"]
    [model] = {user.left().model for user in users}
    assert model


def test_another_model_is_used_while_one_is_loaded() -> None:
    """A load takes seconds, and other streams go on meanwhile."""
    shelf = Shelf()
    models = shelf.models(2)
    use(models, "a")
    shelf.release.clear()
    loading = User(models, "b")
    assert shelf.halts.get() == "loads"
    use(models, "a")
    assert (models.names, shelf.loads) == (["a"], ["a", "b"])
    shelf.release.set()
    assert loading.left().model


def test_models_lie_side_by_side_while_they_fit_and_the_least_recently_used_goes_first() -> None:
    """Loading takes seconds, so what may be asked for again stays as long as it can."""
    shelf = Shelf()
    models = shelf.models(2)
    use(models, "a")
    use(models, "b")
    assert models.names == ["a", "b"]
    use(models, "a")
    use(models, "c")
    assert models.names == ["a", "c"]
    assert shelf.loads == ["a", "b", "c"]


def test_a_model_larger_than_all_memory_for_models_is_held_alone() -> None:
    """The budget is an estimate; whether it truly fits shows when it is loaded."""
    shelf = Shelf()
    models = shelf.models(2)
    use(models, "a")
    use(models, "large", 5)
    assert models.names == ["large"]
    use(models, "a")
    assert models.names == ["a"]


def test_what_is_in_use_stays() -> None:
    """Though it was asked for before the others were."""
    models = Shelf().models(2)
    with in_use(models, "a"):
        use(models, "b")
        use(models, "c")
        assert models.names == ["a", "c"]


def test_who_needs_the_room_of_a_model_in_use_waits_and_then_takes_its_place() -> None:
    """Two models that do not fit together would end the process; an error would fail a request for nothing."""
    shelf = Shelf()
    models = shelf.models(1)
    with in_use(models, "a"):
        shelf.release.clear()
        second = User(models, "b")
        assert shelf.halts.get() == "waits"
        assert (models.names, shelf.loads) == (["a"], ["a"])
        shelf.release.set()
    assert second.left().model
    assert models.names == ["b"]


def test_a_failed_load_leaves_nothing_and_is_tried_again() -> None:
    """Memory may be there the next time; room kept for a model that is not there would be lost."""
    shelf = Shelf()
    models = shelf.models(1)
    shelf.failure = RuntimeError("no such file")
    with pytest.raises(RuntimeError, match="no such file"):
        use(models, "a")
    shelf.failure = None
    assert models.names == []
    use(models, "b")
    use(models, "a")
    assert (models.names, shelf.loads) == (["a"], ["a", "b", "a"])


def test_who_waits_for_a_load_that_fails_tries_it_too() -> None:
    """Each hears of its own failure, and nobody waits for ever."""
    shelf = Shelf()
    models = shelf.models(1)
    shelf.release.clear()
    shelf.failure = RuntimeError("no such file")
    users = [User(models, "a") for _ in range(3)]
    assert sorted(shelf.halts.get() for _ in users) == ["loads", "waits", "waits"]
    shelf.release.set()
    assert [str(user.left().failure) for user in users] == ["no such file"] * 3
    assert shelf.loads == ["a"] * 3


def test_work_that_fails_keeps_its_model() -> None:
    """It is not the model's fault, and nobody uses it any more."""
    models = Shelf().models(1)
    with pytest.raises(ZeroDivisionError), models.using("a", Path("a"), 1):
        raise ZeroDivisionError
    assert models.names == ["a"]
    use(models, "b")
    assert models.names == ["b"]


def test_unloading_spares_what_is_in_use() -> None:
    """It was idle when the server asked, and is not any more."""
    models = Shelf().models(3)
    use(models, "b")
    with in_use(models, "a"):
        for name in ("a", "b", "never loaded"):
            models.unload(name)
        assert models.names == ["a"]
        models.unload_idle()
        assert models.names == ["a"]
    models.unload_idle()
    assert models.names == []
