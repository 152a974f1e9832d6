"""Waiting for conditions, for all tests that are written in Python."""

import time

#: Time limit of a wait, in seconds. Only a fault reaches it, because machines may be busy.
PATIENCE = 90


class Timeout(Exception):
    """A condition did not become true in time."""


class Not:
    """The result of a condition that is not true, with the reason."""

    def __init__(self, reason):
        self.reason = str(reason)

    def __bool__(self):
        return False


def wait_until(what, condition, seconds=PATIENCE, every=0.1):
    """Waits until `condition` returns a true value, and returns that value. A `Not` says why it is not true."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= deadline:
            reason = f": {result.reason}" if isinstance(result, Not) else ""
            raise Timeout(f"not within {seconds} s: {what}{reason}")
        time.sleep(every)
