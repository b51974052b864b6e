"""How often Python looks for garbage, around runs in threads that overlap."""

from __future__ import annotations

import gc
import threading

from partwise.experiment.recorder import Silent
from toy_scores import experiment


def test_after_the_last_of_two_runs_it_is_as_before(tmp_path):
    before, both, first_is_over = gc.get_threshold(), threading.Barrier(2), threading.Event()
    during = []

    class First(Silent):
        def committed(self, version: int, *rest: object) -> None:
            if version == 1:
                both.wait(60)

    class Second(Silent):
        def committed(self, version: int, *rest: object) -> None:
            if version == 1:
                both.wait(60)
                first_is_over.wait(60)
                during.append(gc.get_threshold()[0])

    made = experiment()
    second = threading.Thread(target=made.run, args=(tmp_path / "second",), kwargs={"progress": Second()})
    try:
        first = threading.Thread(target=made.run, args=(tmp_path / "first",), kwargs={"progress": First()})
        first.start()
        second.start()
        first.join()
        first_is_over.set()
        second.join()
        assert during == [max(before[0], 10_000)]
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*before)
