"""Two nodes of Ray: each in a network namespace of its own, joined by a cable; or both on this machine's network."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_CLONE_NEWNET = 0x40000000
_FIRST, _SECOND = "10.213.77.1", "10.213.77.2"
_PORT = 6379
_PORTS = {
    "dashboard-agent-grpc-port": 52001,
    "runtime-env-agent-port": 52002,
    "dashboard-agent-listen-port": 52003,
    "metrics-export-port": 52004,
}
"""Else a raylet dies that waits 15 s for them, which a busy machine may need for an agent's imports."""
_ROOM = {"num_cpus": 1, "memory": 4 * 2**30}


@dataclass(frozen=True)
class TwoNodes:
    """A cluster whose second node may die.

    Attributes:
        address: of its head, which is also this program's node.
        second: the process below which all of the second node's are.
        place: how the second node is called where a job says where it was done: an address or an id.
    """

    address: str
    second: psutil.Process
    place: str

    def kill(self, first: int) -> None:
        """Kill the second node's processes, this one first: what it works at it must not finish."""
        below = self.second.children(recursive=True)
        for process in [psutil.Process(first), self.second, *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def on_one_network(ray: Any) -> Iterator[TwoNodes]:
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args=_ROOM | {"include_dashboard": False})
    node = nodes.add_node(**_ROOM)
    raylet = node.all_processes["raylet"][0].process.pid
    try:
        yield TwoNodes(nodes.address, psutil.Process(raylet), node.node_id[:8])
    finally:
        ray.shutdown()
        nodes.shutdown()


def why_not_apart() -> str:
    """Why there can be no namespaces; empty where there can."""
    if os.geteuid():
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (iproute2)"
    done = subprocess.run(["ip", "netns", "add", name := f"try-{os.getpid()}"], capture_output=True, text=True)
    if not done.returncode:
        _ip(f"netns del {name}")
    return done.stderr.strip()


@contextlib.contextmanager
def apart(ray: Any) -> Iterator[TwoNodes]:
    """Each node in a network of its own, and with a folder /tmp/ray of its own; this thread is in the first's network.

    Ray keeps its node's address below /tmp/ray, where another node would write its own.
    """
    one, two = (f"ray-{os.getpid()}-{number}" for number in (1, 2))
    head, address = ["--head", f"--port={_PORT}", "--include-dashboard=false"], f"{_FIRST}:{_PORT}"
    with contextlib.ExitStack() as held:
        for name in (one, two):
            _ip(f"netns add {name}")
            held.callback(_ip, f"netns del {name}")
        _ip(f"link add veth0 netns {one} type veth peer name veth0 netns {two}")
        for name, own in ((one, _FIRST), (two, _SECOND)):
            _ip(f"-n {name} addr add {own}/24 dev veth0")
            for link in ("lo", "veth0"):
                _ip(f"-n {name} link set {link} up")
        held.enter_context(_inside(one))
        held.enter_context(_node(one, _FIRST, head))
        _wait_for(lambda: socket.create_connection((_FIRST, _PORT), 1).close())
        second = held.enter_context(_node(two, _SECOND, [f"--address={address}"], own_folder=True))
        _wait_for(lambda: ray.init(address, log_to_driver=False, _node_ip_address=_FIRST))
        _wait_for(lambda: _check(len(ray.nodes()) == 2))
        ray.shutdown()
        held.callback(ray.shutdown)
        yield TwoNodes(address, psutil.Process(second.pid), _SECOND)


@contextlib.contextmanager
def _node(
    namespace: str, own: str, arguments: list[str], own_folder: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A node's processes, below one that lives as long as they do."""
    Path("/tmp/ray").mkdir(exist_ok=True)
    room = [f"--{name.replace('_', '-')}={value}" for name, value in _ROOM.items()]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, f"--node-ip-address={own}", *room]
    start += ["--object-store-memory=157286400", "--disable-usage-stats", "--block"]
    start += [f"--{name}={port}" for name, port in _PORTS.items()]
    if own_folder:  # `ip netns exec` gives mounts of its own already
        start = ["sh", "-c", 'mount -t tmpfs tmpfs /tmp/ray && exec "$@"', "sh", *start]
    process = subprocess.Popen(["ip", "netns", "exec", namespace, *start], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for below in psutil.Process(process.pid).children(recursive=True):
                below.kill()
        process.kill()
        process.wait()


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, in a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str) -> None:
        with open(path) as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {path}")

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(f"/run/netns/{namespace}")
    try:
        yield
    finally:
        enter(f"/dev/fd/{before}")
        os.close(before)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _check(there: bool) -> None:
    if not there:
        raise OSError("not yet")


def _wait_for(act: Callable[[], object], seconds: float = 180) -> None:
    last = time.monotonic() + seconds
    while True:
        try:
            act()
            return
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.2)
