"""Scenarios with faults of the network: nodes off the network, partitions, bad links."""

import time

import engine
from cluster import FIRST, LABEL, PATIENCE_S, Broken, expect
from engine import Netns, Not, wait_until

# Duration of a partition, after all nodes have detected it.
CUT_S = 4
# How long the cluster is observed on a bad network.
SLOW_S = 8


def cut_off(stage):
    """Disconnects a follower, then the leader and another node. They come back at other addresses."""
    cluster, done = stage.cluster, []
    for victims in [stage.followers(1), [cluster.leader(), *stage.followers(1)]]:
        for victim in victims:
            engine.disconnect(cluster.network, cluster.container(victim))
        cut = time.monotonic()
        cluster.advance()
        time.sleep(max(0, CUT_S - (time.monotonic() - cut)))
        for victim in reversed(victims):
            engine.connect(cluster.network, cluster.container(victim), aliases=[victim])
        cluster.ready(victims)
        cluster.tolerates(2)
        done.append("+".join(victims))
    return f"took {', '.join(done)} off the network"


def split(stage):
    """Splits the nodes into groups of 2, 2 and 1 that clients can all reach. No group may store anything.

    Inside the containers' networks, packets are dropped silently, as in a real partition. Where that is not possible,
    each group gets a network of its own. In that case names also stop resolving, and connections break at once."""
    cluster, order = stage.cluster, list(FIRST)
    stage.random.shuffle(order)
    groups = [order[:2], order[2:4], order[4:]]
    why_not = stage.why_not_inside(order[0])
    heal = split_by_networks(stage, groups) if why_not else split_by_loss(stage, groups)
    try:
        for name in order:

            def notices():
                code, line = cluster.health(name)
                return Not("it is ready") if code == 0 else (line or True)

            wait_until(f"{name} says that it is not ready", notices, PATIENCE_S)
            expect(f"{name} is alive", cluster.health(name, ready=False), (0, "alive"))
        since = time.time()
        time.sleep(CUT_S)
        until = time.time()
    finally:
        heal()
    cluster.ready(order)
    cluster.tolerates(2)
    cluster.advance()
    told = "by networks: " + why_not if why_not else "by dropped packets"
    stage.after = lambda history: nothing_was_stored(history, since, until)
    return f"split into {' | '.join('+'.join(group) for group in groups)} ({told})"


def nothing_was_stored(history, since, until):
    stored = history.acknowledged_between(since, until)
    if stored:
        raise Broken(f"{len(stored)} sends were acknowledged without a majority: {stored[0]}")
    sends = [record for record, kind, _ in history.calls() if kind == "send" and history.began(record) < until]
    if not any(since <= history.ended(record) for record in sends):
        raise Broken("nobody tried to send anything while there was no majority")


def split_by_loss(stage, groups):
    addresses = stage.cluster.addresses()
    inside = {name: Netns(stage.cluster.container(name)) for name in addresses}
    for group in groups:
        for name in group:
            inside[name].drop(address for other, address in addresses.items() if other not in group)

    def heal():
        for one in inside.values():
            one.heal()

    return heal


def split_by_networks(stage, groups):
    cluster = stage.cluster
    places = [(f"{cluster.project}_split{number}", group) for number, group in enumerate(groups)]
    for network, group in places:
        engine.create_network(network, "--label", f"{LABEL}={cluster.project}")
        move(cluster, group, cluster.network, network)

    def heal():
        for network, group in places:
            move(cluster, group, network, cluster.network)
            engine.remove_network(network)

    return heal


def move(cluster, names, old, new):
    """Moves containers from one network to another. The order matters because published ports belong to a container's
    first network."""
    for name in names:
        container = cluster.container(name)
        engine.disconnect(old, container)
        engine.connect(new, container, aliases=[name])


def slow_network(stage):
    """Gives a follower and then the leader a bad network. Uses delay where the kernel supports it, otherwise packet
    loss, which TCP turns into delays, and otherwise a limited processor."""
    cluster, done = stage.cluster, []
    for name in [*stage.followers(1), cluster.leader()]:
        container = cluster.container(name)
        why_not = stage.why_not_inside(name)
        if why_not:
            how, heal = f"a twentieth of a processor ({why_not})", lambda: container.limit_cpus(1.0)
            container.limit_cpus(0.05)
        else:
            inside = Netns(container)
            how, heal = "60 ms and 2 % loss", inside.heal
            if not inside.delay(60, 20, 2):
                how = "10 % loss in each direction (no netem)"
                inside.lose(0.1)
        began = time.monotonic()
        # The cluster is slower, but makes progress.
        cluster.advance(10)
        time.sleep(max(0, SLOW_S - (time.monotonic() - began)))
        heal()
        cluster.ready([name])
        cluster.tolerates(2)
        done.append(f"{name}: {how}")
    return "; ".join(done)
