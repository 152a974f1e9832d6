"""Invalid settings. Each must produce one clear line and the right exit code, or a node that logs why it is not ready.

These containers run beside those of the compose file, on the same network and with the same rights. The exit codes are
those of docs/operations.md.
"""

import time

import engine
from cluster import FIRST, LABEL, PATIENCE_S, Broken, expect
from engine import Container, EngineError, Not, wait_until

RIGHTS = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"]


class Bench:
    """Creates containers and their volumes, and removes them at the end."""

    def __init__(self, cluster):
        self.cluster, self.made, self.volumes = cluster, [], []

    def node(self, alias, environment, volume=None, options=()):
        """A node beside the cluster, reachable as `alias`. It gets a volume of its own unless one is given or the
        options create one."""
        name = f"{self.cluster.project}-{alias}"
        container = Container(name)
        words = [*RIGHTS, "--network", self.cluster.network, "--network-alias", alias, "--label", self.label()]
        words += [] if options else ["--volume", f"{volume or self.volume(alias)}:/data"]
        self.made.append(container)
        engine.run_container(name, self.cluster.image, env=environment, options=[*words, *options])
        return container

    def member(self, alias, name, volume=None, secret=None):
        """A node that is configured as the member `name` of the cluster."""
        initial = ",".join(f"{one}={one}:50052" for one in FIRST)
        return self.node(
            alias,
            {"CHAT_NAME": name, "CHAT_INITIAL_NODES": initial, "CHAT_PEER_SECRET": secret or self.cluster.secret},
            volume,
        )

    def volume(self, name):
        volume = f"{self.cluster.project}_{name}"
        engine.create_volume(volume, "--label", self.label())
        self.volumes.append(volume)
        return volume

    def label(self):
        return f"{LABEL}={self.cluster.project}"

    def clear(self):
        for container in self.made:
            container.remove()
        for volume in self.volumes:
            engine.remove_volume(volume)
        self.made, self.volumes = [], []


def ends(container, code, *words):
    """Waits until a container has ended by itself, and checks its exit code and log. The log must contain exactly one
    error line, with all of `words`."""
    found = container.wait(PATIENCE_S)
    lines = container.logs().strip().splitlines()
    expect(f"exit code, after {lines}", found, code)
    errors = [line for line in lines if " - ERROR - " in line] or lines
    # Invalid settings are printed before logging starts. The list follows a line with their number.
    last = errors[-1] if len(errors) == 1 else " ".join(errors)
    if code != 64 and len(errors) != 1 or not all(word in last for word in words):
        raise Broken(f"one line with {words} was wanted, and not {lines}")
    return f"{code}: {words[0]}"


def waits(container, *words, ready=()):
    """Waits until a node logs in one line why it waits, and checks that it is alive and not ready."""

    def says():
        lines = container.logs().splitlines()
        return next((line for line in lines if all(word in line for word in words)), None) or Not(lines)

    wait_until(f"a line with {words}", says, PATIENCE_S)
    alive = container.exec("/usr/local/bin/chatd", "health", check=False)
    expect("it is alive", (alive.returncode, alive.stdout.strip()), (0, "alive"))
    answer = container.exec("/usr/local/bin/chatd", "health", "--ready", check=False)
    said = (answer.stdout + answer.stderr).strip()
    expect("exit code of `chatd health --ready`", answer.returncode, 1)
    if "\n" in said or not said.startswith("not ready: ") or not all(word in said for word in ready):
        raise Broken(f"one line that says why it is not ready was wanted, and not {said!r}")
    return f"waits, {said}"


def no_peer_secret(bench):
    initial = "s1=s1:50052,s2=s2:50052,s3=s3:50052"
    container = bench.node("s1", {"CHAT_NAME": "s1", "CHAT_INITIAL_NODES": initial})
    return ends(container, 64, "CHAT_PEER_SECRET", "CHAT_INSECURE_PEERS=1")


def a_wrong_value(bench):
    container = bench.node("s1", {"CHAT_NAME": "s1", "CHAT_ELECTION_MIN_MS": "50", "CHAT_LISTEN": "here"})
    return ends(container, 64, "CHAT_ELECTION_MIN_MS", "CHAT_LISTEN")


def an_unreachable_peer(bench):
    initial = "s1=s1:50052,s2=nowhere.invalid:50052,s3=s3:50052"
    environment = {"CHAT_NAME": "s1", "CHAT_INITIAL_NODES": initial, "CHAT_PEER_SECRET": bench.cluster.secret}
    container = bench.node("s1", environment)
    return waits(container, "The cluster cannot be bootstrapped yet", "s2 at nowhere.invalid:50052")


def a_data_directory_that_is_read_only(bench):
    options = ["--volume", f"{bench.volume('s1')}:/data:ro"]
    container = bench.node("s1", {"CHAT_NAME": "s1"}, options=options)
    return ends(container, 73, "CHAT_DATA_DIR /data: Read-only file system")


def a_data_directory_of_another_user(bench):
    options = ["--tmpfs", "/data:uid=0,gid=0,mode=0755"]
    return ends(bench.node("s1", {"CHAT_NAME": "s1"}, options=options), 73, "CHAT_DATA_DIR /data: Permission denied")


def a_name_twice_in_the_list(bench):
    initial = "s1=s1:50052,s1=s2:50052,s3=s3:50052"
    environment = {"CHAT_NAME": "s1", "CHAT_INITIAL_NODES": initial, "CHAT_PEER_SECRET": bench.cluster.secret}
    container = bench.node("s1", environment)
    return ends(container, 64, "CHAT_INITIAL_NODES", "each name and each address once")


def two_first_nodes_with_one_name(bench):
    initial = "s1=s1:50052,s2=s2:50052,s3=s3:50052"
    settings = {"CHAT_NAME": "s1", "CHAT_INITIAL_NODES": initial, "CHAT_PEER_SECRET": bench.cluster.secret}
    first, second = (bench.node(alias, settings) for alias in ["s1", "s2"])
    waits(second, "The cluster cannot be bootstrapped yet")
    return waits(first, 's2:50052 is called "s1", CHAT_INITIAL_NODES says "s2"')


def the_name_of_a_member_that_is_alive(bench):
    cluster = bench.cluster
    before = cluster.nodes()["n3"]["node_id"]
    container = bench.member("s1", "n3")
    told = waits(container, "has not been admitted", "n3")
    expect("the id of the true n3", cluster.nodes()["n3"]["node_id"], before)
    return told


def another_peer_secret(bench):
    container = bench.member("s1", "n3", secret="another-secret-of-some-length")
    return waits(container, "has not been admitted", "secret")


def a_volume_of_another_cluster(bench):
    volume = bench.volume("other")
    other = bench.node("s1", {"CHAT_NAME": "n3"}, volume)

    def is_ready():
        return other.exec("/usr/local/bin/chatd", "health", "--ready", check=False).returncode == 0

    wait_until("a cluster of one node is ready", is_ready, PATIENCE_S)
    other.stop()
    return ends(bench.member("s2", "n3", volume), 73, "belongs to another cluster", "CHAT_INITIAL_NODES")


def a_volume_of_another_node(bench):
    volume = bench.volume("other")
    other = bench.node("s1", {"CHAT_NAME": "n2"}, volume)
    wait_until("it has an identity", lambda: "is a member of its cluster" in other.logs(), PATIENCE_S)
    other.stop()
    return ends(bench.member("s2", "n3", volume), 64, 'CHAT_NAME is "n3"', 'belongs to the node "n2"')


ALL = [
    a_wrong_value,
    an_unreachable_peer,
    a_data_directory_that_is_read_only,
    a_data_directory_of_another_user,
    a_name_twice_in_the_list,
    two_first_nodes_with_one_name,
    the_name_of_a_member_that_is_alive,
    another_peer_secret,
    no_peer_secret,
    a_volume_of_another_cluster,
    a_volume_of_another_node,
]


def check(cluster, log):
    """Runs all of them beside a running cluster, which must not be affected."""
    bench = Bench(cluster)
    for one in ALL:
        began = time.monotonic()
        try:
            result = one(bench)
        except (Broken, EngineError, engine.Timeout) as error:
            raise Broken(f"{one.__name__.replace('_', ' ')}: {error}") from error
        finally:
            bench.clear()
        log(f"   {one.__name__.replace('_', ' ')}: {result} ({time.monotonic() - began:.1f} s)")
    cluster.ready(FIRST)
    cluster.tolerates(2)
