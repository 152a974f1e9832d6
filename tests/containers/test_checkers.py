"""Shows that the checks of a run can fail, with made-up histories that contain one error each."""

import unittest

from cluster import Broken, History
from network_faults import nothing_was_stored
from scenarios import nothing_failed

HEADER = {"nodes": ["localhost:1", "localhost:2"]}
# Start of the run, by the clock of the machine.
START = 1_000_000.0


class Ports:
    grpc = {"n1": 1, "n2": 2, "n3": 3, "n4": 4, "n5": 5}


def send(began, ended, outcome="ok", node=None):
    """A send between these two seconds of the run."""
    if outcome == "ok":
        outcome = {"ok": {"time_ms": int((START + (began + ended) / 2) * 1000), "repeated": False}}
    record = {"began_us": began * 1e6, "ended_us": ended * 1e6, "send": {"outcome": outcome}}
    return record if node is None else {**record, "node": node}


def history(*records):
    return History(HEADER, [send(0.001, 0.003), *records, send(99.001, 99.003)])


class Checkers(unittest.TestCase):
    def test_the_clock_of_the_history_is_found(self):
        self.assertAlmostEqual(history().start, START, delta=0.005)
        late = send(50, 50.002)
        late["send"]["outcome"]["ok"]["time_ms"] += 5000
        with self.assertRaisesRegex(Broken, "do not fit"):
            history(late)

    def test_a_call_that_fails_while_nobody_is_away_is_found(self):
        away = [("n2", START + 10, START + 12)]
        excused = history(send(9, 11, "refused", 1), send(12, 13, "unknown", 1))
        self.assertIn("none failed but 2", nothing_failed(Ports, excused, away))
        for wrong in [send(8, 9, "refused", 1), send(11, 11.5, "refused", 0), send(11, 11.5, "unknown")]:
            with self.assertRaisesRegex(Broken, "a call failed"):
                nothing_failed(Ports, history(wrong), away)

    def test_what_is_stored_without_a_majority_is_found(self):
        since, until = START + 10, START + 14
        tried = send(11, 13, "refused")
        nothing_was_stored(history(tried, send(9, 10.1), send(13.9, 14.2)), since, until)
        with self.assertRaisesRegex(Broken, "acknowledged without a majority"):
            nothing_was_stored(history(tried, send(11, 11.1)), since, until)

    def test_a_time_in_which_nobody_tried_proves_nothing(self):
        quiet = History(HEADER, [send(0.001, 0.003)])
        with self.assertRaisesRegex(Broken, "nobody tried"):
            nothing_was_stored(quiet, START + 10, START + 14)


if __name__ == "__main__":
    unittest.main()
