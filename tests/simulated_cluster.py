"""A Ray cluster on this machine: a head that is not measured on, and nodes with temporary folders of their own.

The folders give each node device locks of its own, as machines have them. Starts no supervisor and measures nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]


class SimulatedCluster:
    """Nodes by name, each with one CPU to give. ``close`` ends them all.

    Ray has sockets in the folder, whose paths must not be longer than 107 bytes.
    """

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)}
        self.folder = folder
        # A node that is gone is noticed after two seconds instead of fifteen.
        noticing = {"health_check_period_ms": 1000, "health_check_failure_threshold": 2}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": noticing}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """What ``PEFT_LAB_EXECUTOR`` is set to for this cluster."""
        return str(self._cluster.address)

    def add(self, name: str, python_path: str = str(ROOT)) -> None:
        """Start a node, or one that was killed again, that finds modules in ``python_path``."""
        (self.folder / name).mkdir(exist_ok=True)
        variables = {"TMPDIR": str(self.folder / name), "PYTHONPATH": python_path}
        self._nodes[name] = self._cluster.add_node(wait=False, num_cpus=1, node_name=name, env_vars=variables)

    def kill(self, name: str) -> None:
        """End a node's Ray with SIGKILL, as a machine that loses its power does."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def processes(self, name: str, title: str) -> list[psutil.Process]:
        """Processes of a node by what Ray calls them."""
        [raylet] = self._nodes[name].all_processes["raylet"]
        found = psutil.Process(raylet.process.pid).children(recursive=True)
        return [one for one in found if one.cmdline() and title in one.cmdline()[0]]

    def close(self) -> None:
        """End every node and the head."""
        self._cluster.shutdown()
        del os.environ["RAY_TMPDIR"]
