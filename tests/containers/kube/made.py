"""What is made on the engine, so that all of it can be found and removed, also after a run that was killed."""

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
