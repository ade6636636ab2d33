"""Cells as tasks of a Ray cluster, on a folder that all nodes see or with their files sent back through Ray."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analyses.records import write_atomically
from analyses.running.engines.parcels import packed, unpack
from analyses.running.executors import Failure, Item, Task
from analyses.study import StudyError, StudyFolder

_MARK = ".shared"


@dataclass(frozen=True)
class RayEngine:
    """Tasks of Ray's own API, on the cluster of ``RAY_ADDRESS`` or one that is started here.

    A task whose node or worker dies is started again elsewhere; what its cell had finished stays where nodes share the
    folder. A node that does not see the folder gets what the cell needs with the task, and sends the files it has made
    back.

    Attributes:
        jobs: Most tasks at a time; None for as many as the cluster's resources hold.
        cpus: Processors reserved for a task.
        gpus: GPUs, or a part of one; Ray shows a task those that are its own.
        retries: How often a task that was lost with its worker or node is begun again.
    """

    jobs: int | None
    cpus: int
    gpus: float
    retries: int = 3

    @property
    def workers(self) -> int:
        return self.jobs or 8

    def run(self, items: Sequence[Item], task: Task) -> Iterator[tuple[Item, Failure | None]]:
        with _cluster() as ray, _marked(task.folder) as mark:
            self._say_if_none_fits(ray)
            remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)(_do)
            base = ray.put(packed(task.folder.root, ["base"]))
            left, running = list(items), dict[Any, Item]()
            while left or running:
                while left and len(running) < self._most(ray):
                    item = left.pop(0)
                    running[remote.remote(task, item, mark, base, self._begun(task, item))] = item
                (done,), _ = ray.wait(list(running), num_returns=1)
                item = running.pop(done)
                yield item, self._outcome(ray, done, item, task)

    def _say_if_none_fits(self, ray: Any) -> None:
        """Where no node has what a task reserves, Ray waits, for ever if none comes: for one that a cloud starts, say.

        Raises:
            StudyError: The cluster was started here, and no other node comes.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes):
            return
        most = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        lacking = (
            "--cpus-per-cell, --gpus-per-cell: expected what one node has, "
            f"got {self.cpus} CPUs and {self.gpus:g} GPUs; the nodes have {most}"
        )
        if not os.environ.get("RAY_ADDRESS"):
            raise StudyError(f"{lacking}; ask for less, or set RAY_ADDRESS where other nodes come")
        print(f"waiting: {lacking}", file=sys.stderr)

    def _most(self, ray: Any) -> int:
        """Tasks at a time; what a task is sent takes memory until it ends, so that few wait beside those at work."""
        return self.jobs or 2 * max(1, int(ray.cluster_resources().get("CPU", 1) // self.cpus))

    @staticmethod
    def _begun(task: Task, item: Item) -> bytes:
        """What the folder has of an item, for a node that does not see it."""
        root = task.folder.root
        return packed(root, [str(path.relative_to(root)) for path in sorted(root.glob(f"*/{item}-*"))])

    @staticmethod
    def _outcome(ray: Any, done: Any, item: Item, task: Task) -> Failure | None:
        try:
            failure, files = ray.get(done)
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Failure(str(item), f"the task was lost: {reason}", str(error))
        if files is not None:
            unpack(files, task.folder.root)
        found: Failure | None = failure
        return found


def _do(
    task: Task, item: Item, mark: tuple[str, str], base: bytes, begun: bytes
) -> tuple[Failure | None, bytes | None]:
    """Work on an item in the study's folder, or in one of this node's own whose new files are returned."""
    name, token = mark
    seen = Path(name)
    if seen.is_file() and seen.read_text() == token:
        return task(item), None
    with tempfile.TemporaryDirectory(prefix="landscape-") as place:
        root = Path(place) / "study"
        unpack(base, root)
        unpack(begun, root)
        failure = replace(task, folder=StudyFolder(root))(item)
        made = [path.name for path in root.iterdir() if path.name not in ("base", StudyFolder(root).progress.name)]
        return failure, packed(root, made)


@contextmanager
def _cluster() -> Iterator[Any]:
    """The module, connected; a cluster that is started here ends with the work."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise StudyError(
                f"--executor ray: no cluster at RAY_ADDRESS ({error}); start it with 'ray start'"
            ) from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def _marked(folder: StudyFolder) -> Iterator[tuple[str, str]]:
    """A file by which nodes tell whether they see this folder."""
    token, path = uuid.uuid4().hex, folder.root / _MARK
    write_atomically(path, lambda temporary: temporary.write_text(token))
    try:
        yield str(path), token
    finally:
        path.unlink(missing_ok=True)
