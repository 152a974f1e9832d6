"""The faults that are injected into the cluster under load, one scenario each. Each scenario leaves five healthy nodes.

A scenario is a function that takes a `Stage`. It returns a one-line summary, and raises when the cluster does not
behave as required. The caller checks the invariants of every scenario (the load's verdict, equal states); see
`chaos.py`. All waits are for conditions. A fault that has a duration names it in a constant.
"""

import itertools
import time

import engine
from cluster import FIRST, LABEL, LATER, PATIENCE_S, SOCKET, Broken, expect
from engine import Container, EngineError, Netns, Not, wait_until

# Longer than any election (CHAT_ELECTION_MAX_MS is 600 ms), and than the time after which a leader without a quorum
# is no longer reported as leader.
PAUSE_S = 4
# Duration of a partition, after all nodes have detected it.
CUT_S = 4
# How long the cluster is observed on a bad network.
SLOW_S = 8


class Stage:
    """The cluster, the load on it, and the source of random choices."""

    def __init__(self, cluster, load, random, inside=True):
        self.cluster, self.load, self.random = cluster, load, random
        # Whether faults may be injected inside the containers' networks. Otherwise only the engine's commands are used.
        self.inside = inside
        # Checks the history of the load after it has ended.
        self.after = None

    def followers(self, count):
        leader = self.cluster.leader()
        return self.random.sample([name for name in FIRST if name != leader], count)

    def why_not_inside(self, name):
        return Netns.why_not(self.cluster.container(name)) if self.inside else "not wanted"


def bring_back(cluster, names):
    """Starts containers that were killed or stopped, and waits until the cluster is healthy again."""
    for name in names:
        cluster.container(name).start()
    cluster.ready(names)
    cluster.tolerates(2)


def kills(stage):
    """Kills one or two nodes at a time, including the leader, and starts them again."""
    cluster, done = stage.cluster, []
    for round in range(4):
        victims = stage.followers(2) if round % 2 else [cluster.leader(), *stage.followers(1)]
        stage.random.shuffle(victims)
        if round == 3:
            victims = victims[:1]
        for victim in victims:
            cluster.container(victim).kill()
        cluster.advance()
        bring_back(cluster, victims)
        done.append("+".join(victims))
    return f"killed {', '.join(done)}"


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


def node_id(cluster, name):
    return cluster.nodes()[name]["node_id"]


def comes_back_anew(cluster, name, old_id):
    """Waits until a node is a voter again, under a new id."""
    cluster.ready([name])

    def is_anew():
        node = cluster.nodes().get(name)
        return bool(node and node["voter"] and node["node_id"] != old_id) or Not(node)

    wait_until(f"{name} has a vote under another id than {old_id}", is_anew, PATIENCE_S)
    cluster.tolerates(2)


def wiped_volumes(stage):
    """A node loses its volume while it is down. After it has caught up, another node does the same."""
    cluster, names = stage.cluster, stage.followers(2)
    if stage.random.random() < 0.5:
        names[0] = cluster.leader()
    for name in names:
        old_id = node_id(cluster, name)
        cluster.container(name).kill()
        cluster.remove_node(name)
        cluster.advance()
        cluster.up([name])
        comes_back_anew(cluster, name, old_id)
    return f"{names[0]}, then {names[1]} lost its volume"


def damaged_files(stage):
    """While two nodes are stopped, changes bytes in the middle of one's database and truncates the other's."""
    cluster, random = stage.cluster, stage.random
    changed, cut = stage.followers(2)
    file = random.choice(["chat.db", "log.db"])

    def change(content):
        middle = len(content) // 2
        return content[:middle] + random.randbytes(4096) + content[middle + 4096 :]

    damage(cluster, changed, "chat.db", change)
    damage(cluster, cut, file, lambda content: content[: len(content) // 2])
    return f"{changed}: bytes in the middle of chat.db; {cut}: {file} cut in half"


def damage(cluster, name, file, change):
    old_id = node_id(cluster, name)
    container = cluster.container(name)
    # A clean stop moves everything from the write-ahead log into the file.
    container.stop()
    expect(f"exit code of {name}", container.exit_code(), 0)
    content, record = container.read_file(f"/data/{file}")
    container.write_file(f"/data/{file}", change(content), like=record)
    cluster.advance()
    since = time.time()
    container.start()
    comes_back_anew(cluster, name, old_id)
    if "failed their integrity checks" not in container.logs(since=since):
        raise Broken(f"{name} did not log that {file} failed its integrity checks:\n{container.logs(since=since)}")


def full_disk(stage):
    """Fills the volume of a node. The node exits with code 75, if at all, only until it has released its reserve file.
    After that it accepts no entries and serves its existing data. It catches up when there is space again.

    The volume is small and in memory. Another container holds it while the node does not run. The files that fill the
    volume are written through that container because the images have no shell."""
    cluster, (name,) = stage.cluster, stage.followers(1)
    size = cluster.folder / "small.yml"
    megabytes = 64
    options = f"{{type: tmpfs, device: tmpfs, o: 'size={megabytes}m,uid=65532,gid=65532,mode=0700'}}"
    size.write_text(f"volumes:\n  {name}:\n    driver_opts: {options}\n")
    old_id = node_id(cluster, name)
    cluster.container(name).kill()
    cluster.remove_node(name)
    cluster.up([name], more_files=[size])
    comes_back_anew(cluster, name, old_id)
    old_id, node = node_id(cluster, name), cluster.container(name)
    keeper = Container(f"{cluster.project}-keeper")
    environment = {"CHAT_NAME": "keeper"}
    where = ["--volume", f"{cluster.volume(name)}:/kept", "--network", "none", "--label", f"{LABEL}={cluster.project}"]
    engine.run_container(keeper.name, cluster.image, env=environment, options=where)
    since = time.time()
    try:
        keeper.write_file("/kept/filler", bytes(megabytes * 1024 * 1024))
    except EngineError as error:
        if "no space left" not in str(error):
            raise
    else:
        raise Broken(f"{megabytes} MiB found place beside the data in a volume of {megabytes} MiB")

    pieces, steady = itertools.count(), [None, 0]

    def goes_on():
        """Whether the node has been running for several checks. Space that a start needs must not be taken away."""
        state = node.state()
        started = state["StartedAt"] if state["Running"] else None
        steady[:] = [started, steady[1] + 1] if started and started == steady[0] else [started, 0]
        return steady[1] >= 10

    def noticed():
        codes = node.exit_codes(since)
        if any(code != 75 for code in codes):
            raise Broken(f"{name} ended with {codes}:\n{node.logs(since=since)}")
        if "The volume is full" in node.logs(since=since):
            return True
        # A start truncates write-ahead logs, which can free enough space for the node to keep running.
        if goes_on():
            take_all_but_a_little(keeper, pieces)
        return Not(f"it ended with {codes}")

    wait_until(f"{name} notices that its volume is full", noticed, PATIENCE_S)
    cluster.advance()
    # The backoff of the restart policy can be up to a minute.
    for filler in ["filler", *(f"filler-{piece}" for piece in range(next(pieces)))]:
        keeper.write_file(f"/kept/{filler}", b"")
    cluster.ready([name], 2 * PATIENCE_S)
    cluster.tolerates(2)
    expect(f"the id of {name}: its data are as they were", node_id(cluster, name), old_id)

    def ready_for_the_next_time():
        try:
            reserve, _ = keeper.read_file("/kept/reserve")
        except EngineError as error:
            return Not(str(error))
        return len(reserve) == megabytes * 1024 * 1024 // 64 or Not(f"it has {len(reserve)} bytes")

    wait_until(f"the reserve file of {name} is made again", ready_for_the_next_time, PATIENCE_S)
    # Return to a volume on disk.
    node.stop()
    keeper.remove()
    cluster.remove_node(name)
    cluster.up([name])
    comes_back_anew(cluster, name, old_id)
    return f"filled the volume of {name}"


def take_all_but_a_little(keeper, pieces):
    """Fills a volume again, except for a quarter to half a MiB. That is too little for a node of 64 MiB to keep
    running, and enough for a start."""
    size, before = 256 * 1024, None
    while True:
        piece = f"/kept/filler-{next(pieces)}"
        try:
            keeper.write_file(piece, bytes(size))
        except EngineError as error:
            if "no space left" not in str(error):
                raise
            for last in filter(None, [piece, before]):
                keeper.write_file(last, b"")
            return
        before = piece


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
        times = "; ".join(f"{one} was away from {since - history.start:.2f} s to {until - history.start:.2f} s" for one, since, until in away)
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
            return all(any("Reloaded the certificate" in line and f"({key})" in line for line in lines) for key in ["CHAT_TLS_CERT", "CHAT_PEER_TLS_CERT"])

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
