"""A worker process of the in-process engine: some sites live here, each with its model, one torch thread for all.

Frames on standard input and output: length of a JSON object, length of a blob (u32 each), both. No pickle; and a
parent that is killed closes our input, so no worker outlives its run.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

FRAME = struct.Struct("<II")


def write_frame(stream: BinaryIO, header: dict[str, Any], blob: bytes = b"") -> None:
    """Send one frame."""
    told = json.dumps(header).encode()
    stream.write(FRAME.pack(len(told), len(blob)) + told + blob)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None where the other side is gone, also in the middle of one."""
    lengths = stream.read(FRAME.size)
    if len(lengths) < FRAME.size:
        return None
    told_length, blob_length = FRAME.unpack(lengths)
    told, blob = stream.read(told_length), stream.read(blob_length)
    if len(told) < told_length or len(blob) < blob_length:
        return None
    return json.loads(told), blob


class _Worker:
    """Opens a site when it is first named and keeps it; every command names one site or none."""

    def __init__(self, study: Path) -> None:
        from distillation.data import load_proxy, load_samples
        from distillation.runtime import single_thread

        single_thread()
        self._study = study
        self._proxy = load_proxy(study / "proxy", verify=False)
        self._test = load_samples(study / "test.safetensors")
        self._nodes: dict[str, Any] = {}
        self._shared = b""

    def _node(self, site: str) -> Any:
        from client.node import Node

        if site not in self._nodes:
            path = self._study / "sites" / site / "site.toml"
            self._nodes[site] = Node.open(path, proxy=self._proxy, durable=_outlives(path))
        return self._nodes[site]

    def do(self, command: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """Carry out one command; returns the answer's header and blob."""
        from simulations import baselines

        site = command.get("site", "")
        match command["do"]:
            case "share":
                self._shared = blob
                return {}, b""
            case "forget":
                self._nodes.clear()
                return {}, b""
            case "answer":
                return {}, self._node(site).answer(blob)
            case "evaluate":
                return {"accuracy": baselines.accuracy(self._node(site).learner, self._test)}, b""
            case "local_only":
                return {"accuracy": baselines.local_only(self._node(site), command["rounds"], self._test)}, b""
            case "pooled":
                return {"accuracy": self._pooled(command)}, b""
            case "fedavg":
                return {}, self._fedavg(command)
            case "fedavg_accuracy":
                return {"accuracy": self._fedavg_accuracy(command)}, b""
            case "proxy_fit":
                return self._proxy_fit(site)
            case "robustness":
                from simulations.probes.robustness import run_cell

                return run_cell(self._study, command, self._proxy, self._test), b""
            case "memory":
                return memory(), b""
            case unknown:
                raise ValueError(f"unknown command {unknown!r}")

    def _pooled(self, command: dict[str, Any]) -> float:
        from distillation.learner import Training
        from simulations.baselines import pooled

        return pooled(
            sorted((self._study / "sites").glob("*/private.safetensors")),
            self._proxy,
            self._test,
            model=command["model"],
            training=Training(**command["training"]),
            epochs=command["epochs"],
            seed=command["seed"],
            device=command["device"],
        )

    def _proxy_fit(self, site: str) -> tuple[dict[str, Any], bytes]:
        """A site's votes on all proxy and all test rows after one local training, then what its selector keeps."""
        import numpy as np

        from strategies.soft_labels import log_softmax

        competence, learner = self._node(site).preview()
        logits = [learner.logits(samples.features) for samples in (self._proxy.samples, self._test)]
        votes = log_softmax(np.concatenate(logits)).astype("<f4").tobytes()
        return {"votes_bytes": len(votes)}, votes + competence.kept.astype(np.uint8).tobytes()

    def _fedavg(self, command: dict[str, Any]) -> bytes:
        from distillation.data import load_samples
        from simulations.fedavg import Job, local_update

        site = command["site"]
        private = load_samples(self._study / "sites" / site / "private.safetensors")
        job = Job.from_json(command["job"])
        return local_update(self._shared, job, site, command["round"], self._proxy, private)

    def _fedavg_accuracy(self, command: dict[str, Any]) -> float:
        from simulations.baselines import accuracy
        from simulations.fedavg import Job, learner_of

        job = Job.from_json(command["job"])
        return accuracy(learner_of(self._shared, job, self._proxy, None), self._test)


def _outlives(site_file: Path) -> bool:
    """Whether a site's ledger lies outside of its run's folder, for other runs to come: it must survive a power cut."""
    from client.config import load_site

    site = load_site(site_file)
    return site.privacy is not None and Path(site.privacy.ledger).parent != Path(site.state)


def memory() -> dict[str, Any]:
    """Resident bytes of this process, now and at most so far."""
    import psutil

    return {"now_bytes": psutil.Process().memory_info().rss, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Largest resident memory of this process since it began."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss begins with the peak of the process that started us
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def serve(study: Path, commands: BinaryIO, answers: BinaryIO) -> None:
    """Answer commands, one frame each, until the other side is gone."""
    worker = _Worker(study)
    while (frame := read_frame(commands)) is not None:
        command, blob = frame
        try:
            header, answer = worker.do(command, blob)
        except Exception as error:  # the parent decides what becomes of it; a worker lives on
            kinds = [kind.__name__ for kind in type(error).__mro__]
            header, answer = {"error": f"{type(error).__name__}: {error}", "kinds": kinds}, b""
        if command["do"] not in ("share", "forget"):
            write_frame(answers, {**header, "do": command["do"], "site": command.get("site", "")}, answer)


def main() -> None:
    """`python -m simulations.engines.worker STUDY`."""
    # Ctrl-C reaches the whole process group; the parent decides, and its closed pipe ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not become a frame
    try:
        serve(Path(sys.argv[1]), sys.stdin.buffer, answers)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
