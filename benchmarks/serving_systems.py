"""The servers that are compared, each in a process of its own, on the same model and cores."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving_index import MAX_TOKENS
from benchmarks.serving_load import Ask, Spec
from embedder.models.locate import locate_model
from serve.middleware import load_shedding
from serve.ray_switches import ENABLED, HAPROXY

READY_S = 240
PATHS = {"infinity": "/embeddings", "infinity-onnx": "/embeddings"}
INFINITY = ["infinity-emb[torch,server]==0.0.78", "transformers==4.57.6", "torch==2.13.0+cpu"]
ONNX = ["optimum[onnxruntime]==2.1.0", "optimum-onnx==0.1.0", "onnx==1.23.2"]
EXPORT = (
    "import sys; from optimum.onnxruntime import ORTModelForFeatureExtraction as Model; "
    "Model.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2])"
)
DEFAULT = "default"
WAYS = {DEFAULT: HAPROXY, "proxy": {ENABLED: "0", **load_shedding.ENVIRONMENT}}
"""Switches of Ray Serve, each with our door before it (docs/serving.md): as `serve.start` sets them, with HAProxy, and
Ray's own proxy."""
FORWARD = re.compile(r"^ray_embedder_inference_duration_seconds_sum(?:\{[^}]*\})? ([\d.e+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class System:
    """A server that answers."""

    name: str
    port: int
    metrics_port: int
    key: str
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Where."""
        return f"http://127.0.0.1:{self.port}"

    def embed(self, texts: list[str]) -> list[Ask]:
        """A request for each text."""
        model = "minilm" if self.name.startswith("infinity") else "live"
        path = PATHS.get(self.name, "/v1/embeddings")
        return [Ask(path, {"model": model, "input": [text]}) for text in texts]

    def search(self, texts: list[str], k: int = 10) -> list[Ask]:
        """The same as searches."""
        return [Ask("/v1/search", {"query": text, "task": "qa", "k": k}) for text in texts]

    def spec(self, asks: list[Ask], clients: int, seconds: float, **others: Any) -> Spec:  # noqa: ANN401 - fields of Spec
        """Load on this server."""
        return Spec(self.url, asks, clients=clients, seconds=seconds, key=self.key, **others)

    def tell(self, do: str, **others: object) -> Any:  # noqa: ANN401 - any JSON
        """Have the host do something; what it says."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **others}) + "\n")
        self.process.stdin.flush()
        return json.loads(next(line for line in self.process.stdout if line[0] in '{"['))

    def ask(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:  # noqa: ANN401 - any JSON
        """Ask once, and quietly."""
        request = urllib.request.Request(
            self.url + path, method=method, data=json.dumps(body).encode() if body else None
        )
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def forward_s(self) -> float:
        """Seconds that encoders of ours have spent in forward passes; nan where nothing is known of it."""
        time.sleep(1.2)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
                sums = FORWARD.findall(response.read().decode())
        except (urllib.error.URLError, OSError):
            return float("nan")
        return sum(map(float, sums)) if sums else float("nan")


@contextmanager
def served_by_ray(kind: str, what: str, port: int, key: str, cpus: int = 4, way: str = "proxy") -> Iterator[System]:
    """Ours (`what`: the run file) or the bare deployment (`what`: the model), through Ray Serve in one of its WAYS."""
    metrics_port = port + 1
    environment = {**os.environ, "RAY_metrics_report_interval_ms": "500", "RAY_worker_niceness": "0"}
    environment |= {"RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}
    environment |= {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}
    environment |= WAYS[way]
    command = [sys.executable, "-m", "benchmarks.serving_host", kind, what, str(port), str(cpus), str(metrics_port)]
    name = kind if way == DEFAULT or kind == "bare" else f"{kind}-{way}"
    log = Path(tempfile.gettempdir()) / f"benchmark-{name}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True
        )
    try:
        assert process.stdout is not None
        if not any(line.strip() == "READY" for line in process.stdout):
            raise RuntimeError(f"{name} did not start; see {log}")
        system = System(name, port, metrics_port, key, process)
        _wait(system)
        yield system
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def infinity(cache: Path, model: str, port: int, engine: str) -> Iterator[System]:
    """infinity-emb in its own environment."""
    python = infinity_python(cache, engine)
    folder = _cutting(cache, python, model, engine)
    command = [
        str(python.with_name("infinity_emb").absolute()),
        "v2",
        "--model-id",
        ".",
        "--served-model-name",
        "minilm",
    ]
    command += ["--engine", engine, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-bettertransformer", "--dtype", "float32", "--log-level", "error"]
    # Its ONNX engine does not read how the model pools, and takes the first token unless it is told.
    command += ["--pooling-method", "mean"]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    log = cache / f"infinity-{engine}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True
        )
    try:
        system = System("infinity" if engine == "torch" else "infinity-onnx", port, 0, "", process)
        _wait(system, log)
        yield system
    finally:
        process.terminate()
        process.wait(timeout=60)


def infinity_python(cache: Path, engine: str) -> Path:
    """The interpreter of its environment, which is made if it is not there.

    Raises:
        RuntimeError: it cannot be installed.
    """
    folder = cache / ("infinity" if engine == "torch" else "infinity-onnx")
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists():
        packages = INFINITY + (ONNX if engine != "torch" else [])
        commands = [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "-q", *packages]]
        for command in commands:
            print(f"  {' '.join(command)}", flush=True)
            if subprocess.run(command, check=False).returncode != 0:
                raise RuntimeError(f"{folder.name} cannot be installed here; it is left out")
        done.touch()
    return python


def _cutting(cache: Path, python: Path, model: str, engine: str) -> Path:
    """The model's folder for an engine, such that texts are cut where ours are; for ONNX with an exported file."""
    located = locate_model(model)
    folder = cache / f"infinity-{engine}-{MAX_TOKENS}"
    if (folder / "ready").exists():
        return folder
    shutil.copytree(located, folder, dirs_exist_ok=True)
    name, key = "sentence_bert_config.json", "max_seq_length"
    if engine != "torch":
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(python), "-c", EXPORT, str(located), str(folder)]
        if subprocess.run(command, env=environment, check=False).returncode != 0:
            raise RuntimeError("the model cannot be exported to ONNX here; it is left out")
        # Of the config this engine takes the length of texts alone; the exported table of positions keeps its size.
        name, key = "config.json", "max_position_embeddings"
    settings = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(settings | {key: MAX_TOKENS}), encoding="utf-8")
    (folder / "ready").touch()
    return folder


def _wait(system: System, log: Path | None = None) -> None:
    """Until a text is encoded.

    Raises:
        RuntimeError: it does not start.
    """
    ask = system.embed(["ready"])[0]
    until = time.monotonic() + READY_S
    while time.monotonic() < until and system.process.poll() is None:
        try:
            system.ask("POST", ask.path, ask.body)
        except OSError:
            time.sleep(1)
        else:
            return
    raise RuntimeError(f"{system.name} does not answer{f'; see {log}' if log else ''}")
