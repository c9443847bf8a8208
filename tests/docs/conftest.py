"""A shell in a checkout with tiny models, fresh for each page."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .preloaded import make_commands
from .world import build_checkout, build_home

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Shell:
    """Runs a page's commands in one checkout."""

    folder: Path
    environment: dict[str, str]

    def run(self, script: str, seconds: float = 300) -> Done:
        """Run a script as bash does that stops at the first failure."""
        return subprocess.run(
            ["/bin/bash", "-e", "-u", "-o", "pipefail", "-c", script],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Shell]:
    """A checkout with two finished runs, and the process that its commands are forked from."""
    root = tmp_path_factory.mktemp("docs")
    build_home(root / "home", tiny_model_folder)
    build_checkout(root / "checkout", tiny_model_folder)
    (root / "bin").mkdir()
    make_commands(root / "bin", root / "socket")
    environment = {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(root / "checkout" / "src"),
        "KSHOT_HOME": str(root / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": str(root),
        "TERM": "dumb",
        "COLUMNS": "120",
    }
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("preloaded.py")), str(root / "socket")],
        env=environment,
        cwd=root,
    )
    try:
        _wait_for(root / "socket", server)
        shell = Shell(root / "checkout", environment)
        done = shell.run("kshot run task.yaml --out runs/my-task && cp -r runs/my-task runs/other")
        assert done.returncode == 0, done.stderr
        yield shell
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def shell(template: Shell, tmp_path: Path) -> Shell:
    """A copy of the checkout, for one page."""
    shutil.copytree(template.folder, tmp_path / "checkout", symlinks=True)
    environment = template.environment | {"PYTHONPATH": str(tmp_path / "checkout" / "src")}
    return Shell(tmp_path / "checkout", environment)


def _wait_for(socket: Path, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not socket.exists():
        assert server.poll() is None, "the process that commands are forked from has ended"
        assert time.monotonic() < end, "the process that commands are forked from does not start"
        time.sleep(0.1)
