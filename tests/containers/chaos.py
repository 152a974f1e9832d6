"""Breaks the five containers of docker-compose.yml in every way that is promised to be survived, under load, and checks
after each that every promise was kept. See `tests/containers/chaos --help`.

Needs an engine, Compose (v2, or 1.28 and later), and Python. With root on the engine's own machine, `nsenter` and
`iptables`, network faults are injected inside the containers. Otherwise only the engine's commands are used. Each
scenario reports what it did.
"""

import argparse
import random
import signal
import subprocess
import sys
import time
import traceback

import engine
import image
import scenarios
import settings
from cluster import FIRST, ROOT, Broken, Cluster, Load
from stage import Stage

NAMES = {scenario.__name__: scenario for scenario in scenarios.ALL + scenarios.WITH_TLS}
# Checks that run without load, of the image and of invalid settings.
BESIDE = ["image", "settings"]


def arguments():
    parser = argparse.ArgumentParser(prog="tests/containers/chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, help="repeats the choices of a run; what they meet differs")
    parser.add_argument(
        "--minutes", type=float, help="goes on for so long, in random order; at least each scenario once"
    )
    parser.add_argument("--only", help=f"some of: {', '.join([*BESIDE, *NAMES])}; separated by commas, in this order")
    parser.add_argument("--image", default="quorum-chat:chaos", help="the tag to build and run (default: %(default)s)")
    parser.add_argument("--no-build", action="store_true", help="takes the image as it is")
    parser.add_argument("--tls", action="store_true", help="with docker-compose.tls.yml, and certificates of its own")
    parser.add_argument("--no-inside", action="store_true", help="uses the engine's commands alone to break networks")
    parser.add_argument("--keep", action="store_true", help="leaves the containers there when something is wrong")
    given = parser.parse_args()
    with_tls = {scenario.__name__ for scenario in scenarios.WITH_TLS}
    # The nodes of the settings check have no certificates.
    able = [name for name in [*BESIDE, *NAMES] if name not in (["settings"] if given.tls else with_tls)]
    given.only = given.only.split(",") if given.only else able
    unknown = [name for name in given.only if name not in able]
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)} {'with' if given.tls else 'without'} TLS")
    return given


def log(line):
    print(line, flush=True)


def run_scenario(cluster, name, choices, inside):
    """Runs one scenario under load, and checks the invariants after it. Returns a summary."""
    load = Load(cluster, choices.getrandbits(48), FIRST)
    stage = Stage(cluster, load, choices, inside)
    # The load must make progress before the first fault.
    cluster.advance()
    result = NAMES[name](stage)
    cluster.advance()
    report = load.finish()
    after = stage.after(load.history()) if stage.after else None
    revision = cluster.level()
    load.remove()
    counts = f"{report['acknowledged']} acknowledged, {report['unknown']} of unknown fate, all of it read back from"
    return (
        f"{result}{'; ' + after if after else ''}\n   {counts} {report['nodes_read_back']} nodes; "
        f"longest outage {report['longest_outage_ms']} ms; level at revision {revision}"
    )


def run_one(cluster, name, choices, inside):
    began = time.monotonic()
    if name == "image":
        result = image.check(cluster)
    elif name == "settings":
        log("-- settings")
        result = settings.check(cluster, log) or "the cluster beside did not mind"
    else:
        result = run_scenario(cluster, name, choices, inside)
    log(f"-- {name}: {time.monotonic() - began:.0f} s: {result}")


def plan(given, choices):
    """The names of the scenarios to run, in order. Each runs once. A soak then repeats them in random order."""
    began = time.monotonic()
    yield from given.only
    again = [name for name in given.only if name in NAMES]
    while again and given.minutes and time.monotonic() - began < 60 * given.minutes:
        yield choices.choice(again)


def main():
    given = arguments()
    # Ensures that cleanup runs in every case.
    for ending in [signal.SIGTERM, signal.SIGHUP]:
        signal.signal(ending, lambda *_: sys.exit(143))
    seed = given.seed if given.seed is not None else random.SystemRandom().getrandbits(32)
    choices = random.Random(seed)
    if not given.no_build:
        engine.build_image(given.image, str(ROOT))
    elif not engine.has_image(given.image):
        sys.exit(f"there is no image {given.image}: leave out --no-build")
    began, name, keep = time.monotonic(), "start", False
    cluster = Cluster(f"chaos{seed}", given.image, given.tls)
    log(f"seed {seed}, project {cluster.project}, {' '.join(cluster.command)}")
    try:
        if given.only != ["image"]:
            cluster.up(FIRST)
            cluster.ready(FIRST)
            cluster.tolerates(2)
            log(f"-- start: {time.monotonic() - began:.0f} s")
        for name in plan(given, choices):
            run_one(cluster, name, choices, not given.no_inside)
        log(f"all promises were kept: {time.monotonic() - began:.0f} s")
        return 0
    except (Broken, engine.EngineError, engine.Timeout, subprocess.SubprocessError) as error:
        keep = given.keep
        log(cluster.tails(80))
        traceback.print_exc()
        log(f"FAILED in {name}, seed {seed}: {error}")
        return 1
    finally:
        if keep:
            log(f"left there: docker ps --filter label=com.docker.compose.project={cluster.project}")
        else:
            cluster.sweep()


if __name__ == "__main__":
    sys.exit(main())
