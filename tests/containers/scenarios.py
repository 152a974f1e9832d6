"""The faults that are injected into the cluster under load, one scenario each. Each scenario leaves five healthy nodes.

A scenario is a function that takes a `Stage`. It returns a one-line summary, and raises when the cluster does not
behave as required. The caller checks the invariants of every scenario (the load's verdict, equal states); see
`chaos.py`. All waits are for conditions. A fault that has a duration names it in a constant.

This file has the list of all scenarios, and those that stop nodes or change the cluster. `network_faults.py` and
`disk_faults.py` have the others.
"""

import time

import engine
from cluster import FIRST, LATER, PATIENCE_S, SOCKET, Broken, expect
from disk_faults import damaged_files, full_disk, wiped_volumes
from engine import Not, wait_until
from network_faults import cut_off, slow_network, split

# Longer than any election (CHAT_ELECTION_MAX_MS is 600 ms), and than the time after which a leader without a quorum
# is no longer reported as leader.
PAUSE_S = 4


def bring_back(cluster, names):
    """Starts containers that were killed or stopped, and waits until the cluster is healthy again."""
    for name in names:
        cluster.container(name).start()
    cluster.ready(names)
    cluster.tolerates(2)


def successors(cluster, since):
    """The nodes that stood for election because they noticed that the leader's process had ended. Without that, the
    election would have waited for timeouts."""
    said = "The leader's process has ended; standing for election"
    return [name for name in cluster.running() if said in cluster.container(name).logs(since=since)]


def kills(stage):
    """Kills one or two nodes at a time, including the leader, and starts them again. A leader is replaced at once,
    unless the machine is so busy that a timeout comes first."""
    cluster, done, noticed = stage.cluster, [], []
    for round in range(4):
        leader = cluster.leader()
        victims = stage.followers(2) if round % 2 else [leader, *stage.followers(1)]
        stage.random.shuffle(victims)
        if round == 3:
            victims = victims[:1]
        began = time.time()
        for victim in victims:
            cluster.container(victim).kill()
        cluster.advance()
        noticed += successors(cluster, began)
        bring_back(cluster, victims)
        done.append("+".join(victims))
    if not noticed:
        raise Broken("no node ever noticed that the leader was killed")
    return f"killed {', '.join(done)}; {', '.join(noticed)} noticed the end of a leader"


def paused_leader(stage):
    """Pauses the leader for longer than an election takes, and then resumes it."""
    cluster, done = stage.cluster, []
    for _ in range(2):
        leader = cluster.leader()
        cluster.container(leader).pause()
        paused = time.monotonic()
        cluster.advance()
        time.sleep(max(0, PAUSE_S - (time.monotonic() - paused)))
        cluster.container(leader).unpause()
        cluster.ready([leader])
        cluster.tolerates(2)
        done.append(leader)
    return f"paused {', '.join(done)}"


def rolling_updates(stage):
    """Recreates all nodes one after the other, as an update does, once with the leader last and once with the leader
    first. No call fails, except calls to the node that is down."""
    cluster, away = stage.cluster, []
    for leader_last in [True, False]:
        leader = cluster.leader()
        others = [name for name in FIRST if name != leader]
        stage.random.shuffle(others)
        for name in [*others, leader] if leader_last else [leader, *others]:
            began = time.time()
            cluster.up([name], recreate=True)
            cluster.ready([name])
            cluster.tolerates(2)
            away.append((name, began, time.time()))
    stage.after = lambda history: nothing_failed(cluster, history, away)
    return f"updated {', '.join(name for name, _, _ in away)}"


def nothing_failed(cluster, history, away):
    """All calls of the client library succeed. Calls that are bound to one node succeed unless it is away."""
    numbers = {f"localhost:{cluster.grpc[name]}": name for name in FIRST}
    names = [numbers[address] for address in history.nodes]
    # The clocks of the history and of this test agree to within a few milliseconds.
    slack = 0.1
    calls = excused = 0
    for record, kind, outcome in history.calls():
        calls += 1
        if isinstance(outcome, dict):
            continue
        name = names[record["node"]] if "node" in record else None
        began, ended = history.began(record), history.ended(record)
        if any(name == one and began <= until + slack and ended >= since - slack for one, since, until in away):
            excused += 1
            continue
        way = f"through {name}" if name else "by the client library"
        times = "; ".join(
            f"{one} was away from {since - history.start:.2f} s to {until - history.start:.2f} s"
            for one, since, until in away
        )
        raise Broken(f"a call failed, {way}: {kind} at {began - history.start:.2f} s: {record}\n{times}")
    if not calls:
        raise Broken("no call was made")
    return f"{calls} calls, none failed but {excused} that went to a node that was down"


def all_at_once(stage):
    """Stops all five nodes and starts them again, then kills all of them."""
    cluster = stage.cluster
    for way in ["stop", "kill"]:
        containers = [cluster.container(name) for name in FIRST]
        if way == "stop":
            engine.docker("stop", "--time", "30", *(container.name for container in containers), timeout=120)
            expect("exit codes", [container.exit_code() for container in containers], [0] * len(FIRST))
        else:
            engine.docker("kill", *(container.name for container in containers))
        engine.docker("start", *(container.name for container in containers))
        cluster.ready(FIRST)
        cluster.tolerates(2)
        cluster.advance()
    return "stopped all, killed all"


def other_members(stage):
    """A sixth and a seventh node join, and two of the first five are removed. Then those come back, and the new ones
    go."""
    cluster = stage.cluster
    gone = stage.random.sample(FIRST, 2)
    cluster.up(LATER)
    voters(cluster, FIRST + LATER)
    cluster.tolerates(3)
    cluster.advance()
    remove(cluster, gone)
    cluster.up(gone)
    voters(cluster, FIRST + LATER)
    cluster.advance()
    remove(cluster, LATER)
    return f"added {' and '.join(LATER)}, removed {' and '.join(gone)}, and back"


def voters(cluster, names):
    cluster.ready(names)

    def vote():
        have = sorted(name for name, node in cluster.nodes().items() if node["voter"])
        return have == sorted(names) or Not(f"{have} vote")

    wait_until(f"{names} vote", vote, PATIENCE_S)


def remove(cluster, names):
    """Removes members as an operator does, and then removes their containers and volumes."""
    for name in names:
        through = next(one for one in cluster.up_names if one not in names)
        node, since = cluster.container(name), time.time()
        cluster.chatctl(through, "members", "remove", name, "--socket", SOCKET)

        def ended():
            codes = node.exit_codes(since)
            return 77 in codes or Not(f"it ended with {codes}")

        wait_until(f"{name} finds out that it was removed, and ends with exit code 77", ended, PATIENCE_S)
        if "was removed from the cluster" not in node.logs(since=since):
            raise Broken(f"{name} did not say that it was removed:\n{node.logs(since=since)}")
        cluster.remove_node(name)
        expect(f"{name} is a member", name in cluster.nodes(), False)
        cluster.advance()


def renewed_certificates(stage):
    """Replaces the certificates of all running nodes. No call fails, although connections are opened all the time."""
    cluster, since = stage.cluster, time.time()
    cluster.issue_certificates()
    for name in FIRST:

        def has_replaced():
            lines = cluster.container(name).logs(since=since).splitlines()
            reloaded = [line for line in lines if "Reloaded the certificate" in line]
            return all(any(f"({key})" in line for line in reloaded) for key in ["CHAT_TLS_CERT", "CHAT_PEER_TLS_CERT"])

        wait_until(f"{name} says that it has replaced both of its certificates", has_replaced, PATIENCE_S)
    cluster.advance()
    until = time.time()
    # Existing connections stay open. A recreated node has none.
    (name,) = stage.followers(1)
    cluster.up([name], recreate=True)
    cluster.ready([name])
    cluster.tolerates(2)
    away = [(name, until, time.time())]
    stage.after = lambda history: nothing_failed(cluster, history, away)
    return f"new certificates for all; {name} was made anew"


ALL = [
    kills,
    paused_leader,
    cut_off,
    split,
    slow_network,
    rolling_updates,
    wiped_volumes,
    damaged_files,
    full_disk,
    all_at_once,
    other_members,
]

# Scenarios that need TLS.
WITH_TLS = [renewed_certificates]
