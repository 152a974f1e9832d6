"""Label and name prefix of everything that is created on the engine. They allow cleanup even after a killed run."""

from engine import docker

LABEL = "quorum-chat.test=manifests"
PREFIX = "quorum-manifests-"


def remove_all():
    for list_them, remove in (
        (("ps", "--all", "--quiet"), ("rm", "--force", "--volumes")),
        (("network", "ls", "--quiet"), ("network", "rm")),
        (("volume", "ls", "--quiet"), ("volume", "rm", "--force")),
    ):
        found = docker(*list_them, "--filter", f"label={LABEL}").split()
        if found:
            docker(*remove, *found)
