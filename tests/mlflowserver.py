"""A real MLflow server on loopback that can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests

AUTHORIZE = "authorization_function = mlflow.server.auth:authenticate_request_basic_auth"


class MlflowServer:
    """Its port and its database outlive it. With a ``password`` it lets ``admin`` in alone, by MLflow's basic-auth app."""

    def __init__(self, root: Path, password: str | None = None) -> None:
        self.root, self.password = root, password
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        options = [
            "--backend-store-uri",
            f"sqlite:///{self.root / 'mlflow.db'}",
            "--artifacts-destination",
            str(self.root / "art"),
        ]
        environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self.password is not None:
            options += ["--app-name", "basic-auth"]
            config = self.root / "auth.ini"  # without a cache, every request takes as long as a hash that is slow on purpose
            told = "database_uri = sqlite:///basic_auth.db\ndefault_permission = READ\nadmin_username = admin\n"
            config.write_text(f"[mlflow]\n{told}auth_cache_ttl_seconds = 600\n{AUTHORIZE}\n")
            environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(config)}
            environment |= {"MLFLOW_AUTH_ADMIN_PASSWORD": self.password, "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests"}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--workers",
                "1",
                *options,
            ],
            cwd=self.root,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not self._answers():
            assert self._process.poll() is None, "the MLflow server ended"
            time.sleep(0.2)

    def kill(self) -> None:
        """The server and its workers, with -9."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=5).ok
        except requests.RequestException:
            return False
