"""Thin wrappers around the docker command for containers, networks, volumes, images, and network faults of a container.

Needs Python 3.9, the standard library, and `docker` on the PATH. Everything goes through the command line, so any
engine with a compatible command works. Only `Netns` needs root on the engine's own machine. `Netns.why_not` reports why
it is unavailable.

A failed command raises `EngineError` with the command and its output. Nothing is retried.
"""

import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import waiting
from waiting import Not, Timeout

# Time limit for one command. It has to cover the grace period of a container that is stopped.
COMMAND_S = 120


class EngineError(Exception):
    """A command failed or timed out."""


def run(*words, check=True, timeout=COMMAND_S, input=None, env=None, cwd=None):
    """Runs a command and returns its result, with the output as text (bytes when `input` is bytes)."""
    text = not isinstance(input, (bytes, bytearray))
    try:
        done = subprocess.run(
            words,
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=text,
            timeout=timeout,
            env=env,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{' '.join(words)}: not done after {timeout} s") from error
    except OSError as error:
        raise EngineError(f"{words[0]}: {error}") from error
    if check and done.returncode != 0:
        said = done.stderr if text else done.stderr.decode(errors="replace")
        raise EngineError(f"{' '.join(words)}: exit code {done.returncode}: {said.strip() or done.stdout}")
    return done


def docker(*words, **options):
    """Runs `docker` and returns its standard output without surrounding white space."""
    return run("docker", *words, **options).stdout.strip()


def wait_until(what, condition, seconds=30, every=0.1):
    """Waits like `waiting.wait_until`. A condition that raises `EngineError` is not true yet."""

    def attempt():
        try:
            return condition()
        except EngineError as error:
            return Not(error)

    return waiting.wait_until(what, attempt, seconds, every)


def free_ports(count):
    """This many different ports that are currently free. They are below the ephemeral port range, because an outgoing
    connection could otherwise take the port of a container that is down."""
    found = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 12_000):
        if len(found) == count:
            return found
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
                found.append(port)
            except OSError:
                # The port is in use.
                continue
    raise EngineError("no free ports")


# --- images -----------------------------------------------------------------------------------------------------------


def build_image(tag, directory, timeout=3600):
    """Builds the Dockerfile of a directory with the client's default builder. The output goes to that of the caller."""
    done = subprocess.run(["docker", "build", "--tag", tag, directory], timeout=timeout)
    if done.returncode != 0:
        raise EngineError(f"docker build of {directory}: exit code {done.returncode}")


def has_image(tag):
    return run("docker", "image", "inspect", tag, check=False).returncode == 0


def inspect_image(tag):
    return json.loads(docker("image", "inspect", tag))[0]


# --- containers -------------------------------------------------------------------------------------------------------


def run_container(name, image, *command, env=None, options=(), detach=True):
    """Runs `docker run` for a container called `name` with this environment. `options` are further arguments before the
    image."""
    words = ["run", "--name", name]
    if detach:
        words.append("--detach")
    for key, value in (env or {}).items():
        words += ["--env", f"{key}={value}"]
    return docker(*words, *options, image, *command)


class Container:
    """A container, by its name or id. It does not have to exist. Queries fail if it does not."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"Container({self.name!r})"

    # Queries

    def inspect(self):
        return json.loads(docker("container", "inspect", self.name))[0]

    def exists(self):
        return run("docker", "container", "inspect", self.name, check=False).returncode == 0

    def state(self):
        """The engine's record: Status (`running`, `exited`, `restarting`, `paused`, ...), Running, ExitCode, Pid,
        ..."""
        return self.inspect()["State"]

    def running(self):
        return self.state()["Running"]

    def exit_code(self):
        """The exit code of its last process."""
        return self.state()["ExitCode"]

    def pid(self):
        """The id of its main process on the engine's own machine."""
        return self.state()["Pid"]

    def health(self):
        """`starting`, `healthy`, `unhealthy`, or `none` if there is no health check."""
        return self.state().get("Health", {}).get("Status", "none")

    def networks(self):
        """Addresses by network name."""
        return {name: one["IPAddress"] for name, one in self.inspect()["NetworkSettings"]["Networks"].items()}

    def address(self):
        """Its address on any of its networks, or None if it has none."""
        return next((address for address in self.networks().values() if address), None)

    def volume_at(self, path):
        """The name of the volume that is mounted at this path."""
        return next(mount["Name"] for mount in self.inspect()["Mounts"] if mount["Destination"] == path)

    def logs(self, tail=None, since=None):
        """Its stdout and stderr since its creation, or since this time (seconds since the epoch)."""
        words = ["logs"]
        words += ["--tail", str(tail)] if tail is not None else []
        words += ["--since", f"{since:.3f}"] if since is not None else []
        done = run("docker", *words, self.name)
        return done.stdout + done.stderr

    # Actions. The restart policy does not restart a container that was killed or stopped. It has to be started again.

    def start(self):
        docker("start", self.name)

    def kill(self, signal="KILL"):
        docker("kill", "--signal", signal, self.name)

    def stop(self, seconds=30):
        """Sends SIGTERM (or the image's stop signal), and SIGKILL after this many seconds."""
        docker("stop", "--time", str(seconds), self.name, timeout=seconds + 30)

    def pause(self):
        docker("pause", self.name)

    def unpause(self):
        docker("unpause", self.name)

    def wait(self, seconds=COMMAND_S):
        """Waits until it has ended, and returns its exit code."""
        return int(docker("wait", self.name, timeout=seconds))

    def limit_cpus(self, cpus):
        docker("update", "--cpus", str(cpus), self.name)

    def remove(self):
        """Removes it and its anonymous volumes in any state. A missing container is not an error."""
        run("docker", "rm", "--force", "--volumes", self.name, check=False)

    def exit_codes(self, since):
        """The exit codes of its processes since that time (seconds since the epoch), oldest first. Includes exits that
        were followed by a start of the restart policy."""
        words = ["--since", f"{since:.3f}", "--until", f"{time.time():.3f}", "--filter", "event=die"]
        form = ["--filter", f"container={self.name}", "--format", '{{index .Actor.Attributes "exitCode"}}']
        return [int(code) for code in docker("events", *words, *form).split()]

    def exec(self, *command, check=True, timeout=COMMAND_S):
        """Runs a program in it and returns the result (`returncode`, `stdout`, `stderr`)."""
        return run("docker", "exec", self.name, *command, check=check, timeout=timeout)

    # Files. These functions work in images without a shell, and in stopped containers.

    def read_file(self, path):
        """The content of a file in it, as bytes, and the file's record in the archive (owner, mode, ...)."""
        done = run("docker", "cp", f"{self.name}:{path}", "-", input=b"")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            member = next(member for member in archive if member.isfile())
            return archive.extractfile(member).read(), member

    def write_file(self, path, content, like=None, owner=65532):
        """Writes a file in it. Owner and mode are those of the record `like` (see `read_file`), or `owner` and 0600."""
        folder, name = os.path.split(path)
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(content), int(time.time())
        member.uid, member.gid, member.mode = (like.uid, like.gid, like.mode) if like else (owner, owner, 0o600)
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(member, io.BytesIO(content))
        run("docker", "cp", "-", f"{self.name}:{folder}", input=archive.getvalue())


def containers_of(label):
    """Ids of all containers with a label (`key` or `key=value`), in any state."""
    return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}").split()


# --- networks and volumes ---------------------------------------------------------------------------------------------


def create_network(name, *options):
    docker("network", "create", *options, name)


def remove_network(name):
    run("docker", "network", "rm", name, check=False)


def connect(network, container, aliases=(), address=None):
    """Connects a container to a network, with these additional names and, if given, this address."""
    words = ["network", "connect"]
    for alias in aliases:
        words += ["--alias", alias]
    words += ["--ip", address] if address else []
    docker(*words, network, container.name)


def disconnect(network, container):
    docker("network", "disconnect", network, container.name)


def create_volume(name, *options):
    docker("volume", "create", *options, name)


def remove_volume(name):
    run("docker", "volume", "rm", "--force", name, check=False)


# --- a container's network, from inside -------------------------------------------------------------------------------


class Netns:
    """Runs the machine's tools inside the network of a running container. The image has no such tools.

    All changes are lost when the container ends. Use an object only while the container runs, and make a new one after
    a start."""

    def __init__(self, container):
        self.prefix = ["nsenter", "--target", str(container.pid()), "--net"]

    def run(self, *words, check=True):
        return run(*self.prefix, *words, check=check)

    @staticmethod
    def why_not(container):
        """The reason why networks cannot be changed from inside on this machine, or None if they can."""
        missing = [tool for tool in ["nsenter", "iptables"] if shutil.which(tool) is None]
        if missing:
            return f"{', '.join(missing)} not found"
        if os.geteuid() != 0:
            return "not root"
        done = run(*Netns(container).prefix, "iptables", "--list-rules", check=False)
        return done.stderr.strip() or None if done.returncode != 0 else None

    def drop(self, addresses):
        """Silently drops all packets from and to these addresses."""
        for address in addresses:
            self.run("iptables", "--insert", "INPUT", "--source", address, "--jump", "DROP")
            self.run("iptables", "--insert", "OUTPUT", "--destination", address, "--jump", "DROP")

    def lose(self, probability):
        """Drops packets in both directions, each with this probability."""
        for chain in ["INPUT", "OUTPUT"]:
            some = ["--match", "statistic", "--mode", "random", "--probability", str(probability)]
            # Loopback traffic is not on the network.
            way = "-i" if chain == "INPUT" else "-o"
            self.run("iptables", "--append", chain, "!", way, "lo", *some, "--jump", "DROP")

    def delay(self, milliseconds, jitter, loss_percent):
        """Delays outgoing packets. Needs netem in the kernel. Returns whether that was possible."""
        for device in self.devices():
            words = ["netem", "delay", f"{milliseconds}ms", f"{jitter}ms", "loss", f"{loss_percent}%"]
            if self.run("tc", "qdisc", "add", "dev", device, "root", *words, check=False).returncode != 0:
                return False
        return True

    def devices(self):
        done = json.loads(self.run("ip", "-json", "link", "show", "up").stdout)
        return [device["ifname"] for device in done if device["ifname"] != "lo"]

    def heal(self):
        """Reverts `drop`, `lose` and `delay`."""
        for chain in ["INPUT", "OUTPUT"]:
            self.run("iptables", "--flush", chain)
        for device in self.devices():
            self.run("tc", "qdisc", "del", "dev", device, "root", check=False)
