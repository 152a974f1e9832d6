"""Loads for clusters that are measured."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from local_cluster import LocalCluster  # noqa: E402

#: No account and no address may be stopped by a limit.
UNLIMITED = {"CHAT_ACCOUNT_MESSAGES_PER_S": "0", "CHAT_ACCOUNT_KIB_PER_S": "0", "CHAT_ACCOUNT_CHANGES_PER_S": "0",
             "CHAT_ACCOUNT_MESSAGES_MAX": "0", "CHAT_ACCOUNT_MIB_MAX": "0",
             "CHAT_LOGIN_ATTEMPTS_PER_ADDRESS": "1000000",
             "CHAT_REGISTRATIONS_PER_ADDRESS": "1000000", "CHAT_REGISTRATIONS_PER_HOUR": "1000000"}

def bench(cluster: LocalCluster, registers: bool = False, **options: object) -> dict:
    """What `chatctl bench` prints. Accounts are made through the admin socket of a node, or register themselves."""
    words = [word for name, value in options.items() for word in option(name, value)]
    socket = cluster.data / next(iter(cluster.nodes)) / "admin.sock"
    command = [cluster.programs / "chatctl", "--nodes", cluster.addresses(), "--output", "json", "bench",
               *([] if registers else ["--socket", socket]), *words]
    environment = {**os.environ, **cluster.clients}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def option(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def accounts(conversations: int, clients: int) -> int:
    """The number of accounts between which clients have about this number of conversations."""
    among_clients = clients * (clients - 1) // 2
    if conversations <= among_clients:
        return round((1 + (1 + 8 * conversations) ** 0.5) / 2)
    return clients + round((conversations - among_clients) / clients)


def conversations(accounts: int, clients: int) -> int:
    """The number of pairs of which at least one account is a client's."""
    senders = min(accounts, clients)
    return senders * (accounts - 1) - senders * (senders - 1) // 2


def processor_seconds(cluster: LocalCluster, name: str) -> float:
    """What a node has computed since its start."""
    stat = pathlib.Path(f"/proc/{cluster.nodes[name]['pid']}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def in_turn(programs: list[pathlib.Path], number: int) -> list[pathlib.Path]:
    """The builds in the order of a round: each goes first as often as the others."""
    first = number % len(programs)
    return [*programs[first:], *programs[:first]]
