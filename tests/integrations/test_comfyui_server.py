"""ComfyUI's own server, end to end: a workflow with the nodes is posted, and its files are fetched.

It runs where ``COMFYUI_PATH`` names a ComfyUI.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import real_comfy

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(real_comfy.path() is None, reason="COMFYUI_PATH names no ComfyUI"),
]

ROOT = Path(__file__).parents[2]
SECONDS = 600
SAMPLER = {
    "seed": 0,
    "steps": 12,
    "cfg": 4.0,
    "sampler_name": "euler",
    "scheduler": "simple",
    "denoise": 1.0,
    "model": ["pab", 0],
    "positive": ["tiny", 1],
    "negative": ["tiny", 2],
    "latent_image": ["tiny", 3],
}


def workflow(level: str, name: str) -> dict[str, Any]:
    """What a browser posts: nodes, and which output feeds which input."""
    return {
        "tiny": {"class_type": "TinyModel", "inputs": {}},
        "pab": {"class_type": "PABModel", "inputs": {"model": ["tiny", 0], "level": level}},
        "sampler": {"class_type": "KSampler", "inputs": SAMPLER},
        "picture": {"class_type": "TinyPicture", "inputs": {"latent": ["sampler", 0]}},
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["picture", 0], "filename_prefix": name},
        },
        "report": {
            "class_type": "PABReport",
            "inputs": {"model": ["pab", 0], "latent": ["sampler", 0], "name": name},
        },
    }


class Server:
    """A server that runs.

    Args:
        address: of its HTTP interface.
        process: the process.
        log: the file with what it prints.
    """

    def __init__(self, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._address, self._process, self._log = address, process, log

    def get(self, path: str, posted: Any = None) -> Any:
        """What a path gives, as JSON."""
        body = None if posted is None else json.dumps(posted).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self._address}{path}", body, headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read())

    def file(self, image: dict[str, str]) -> bytes:
        """A picture that a node saved."""
        name = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
        with urllib.request.urlopen(f"{self._address}/view?{name}", timeout=30) as answer:
            return bytes(answer.read())

    def wait(self, path: str) -> Any:
        """What a path gives, as soon as that is something."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                if found := self.get(path):
                    return found
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.5)
        raise AssertionError(self._log.read_text()[-3000:])

    def run(self, nodes: dict[str, Any]) -> dict[str, Any]:
        """The outputs of a workflow."""
        posted = self.get("/prompt", {"prompt": nodes})["prompt_id"]
        done = self.wait(f"/history/{posted}")[posted]
        said = done["status"]["messages"][-1][1].get("exception_message", "")
        assert done["status"]["status_str"] == "success", said
        return dict(done["outputs"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ComfyUI with the node pack in a folder of its own."""
    where, path = tmp_path_factory.mktemp("comfyui"), real_comfy.path()
    assert path is not None
    (where / "custom_nodes").mkdir()
    for name, source in (
        ("pab", ROOT / "integrations" / "comfyui"),
        ("tiny", Path(__file__).parent / "comfy_tiny_nodes"),
    ):
        (where / "custom_nodes" / name).symlink_to(source, target_is_directory=True)
    (where / "front").mkdir()  # its web pages are a package of their own
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--cpu", "--use-pytorch-cross-attention", "--port", str(port)]
    arguments += ["--base-directory", str(where), "--front-end-root", str(where / "front")]
    arguments += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
    start = "import runpy, sys; from helpers import empty_modules; empty_modules.install();"
    start += f"sys.path.insert(0, {path!r}); sys.argv[0] = 'main.py';"
    start += f"runpy.run_path({str(Path(path) / 'main.py')!r}, run_name='__main__')"
    tests = str(ROOT / "tests")
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    log = where / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-c", start, *arguments],
            cwd=path,
            env={**os.environ, "PYTHONPATH": paths, "PAB_TESTS": tests},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        made = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            made.wait("/system_stats")
            yield made
        finally:
            process.terminate()
            process.wait(60)


def test_a_workflow_runs_reuses_and_writes_its_report(server: Server) -> None:
    off = server.run(workflow("off", "off"))
    fast = server.run(workflow("fast", "fast"))
    (text,) = fast["report"]["text"]
    assert "12 steps" in text
    assert "0% of the runs" not in text
    page = Path(text.rpartition("wrote ")[2].strip())
    assert "<h2>Sites by steps</h2>" in page.read_text()
    pictures = [server.file(run["save"]["images"][0]) for run in (off, fast)]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]


def test_what_the_node_refuses_reaches_the_user(server: Server) -> None:
    nodes = workflow("fast", "refused")
    nodes["pab"]["inputs"]["memory_budget"] = "much"
    with pytest.raises(AssertionError, match="cache_budget"):
        server.run(nodes)
