"""A signal ends a stage like an exception does, and leaves the process as it was."""

import os
import signal

import pytest

from davae.train.interrupt import Terminated, terminable


def test_sigterm_unwinds_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []
    with pytest.raises(Terminated), terminable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)  # the handler runs at the latest here
        finally:
            cleaned.append("cleaned")
    assert cleaned == ["cleaned"]
    assert signal.getsignal(signal.SIGTERM) is before
