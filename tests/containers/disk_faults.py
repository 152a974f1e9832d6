"""Scenarios with faults of the disks: lost volumes, damaged files, and a volume without space."""

import itertools
import time

import engine
from cluster import LABEL, PATIENCE_S, Broken, expect
from engine import Container, EngineError, Not, wait_until


#: What a node logs that has moved its files aside, and one whose state was replaced.
FOUND = "failed their integrity checks"
REPLACED = "Installed a snapshot"


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

    def found_or_replaced():
        logs = container.logs(since=since)
        # A node that lacks more than the leader's log has is sent the state, before it reads the damage in its own.
        return next((words for words in (FOUND, REPLACED) if words in logs), None) or Not(logs)

    if wait_until(f"damage to {file} of {name} is found", found_or_replaced, PATIENCE_S) == FOUND:
        comes_back_anew(cluster, name, old_id)
    elif file == "log.db":
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
