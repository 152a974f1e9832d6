"""What a scenario runs on."""

from cluster import FIRST
from engine import Netns


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
