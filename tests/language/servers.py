"""A server of `tenfold serve language` in a process of its own, for tests that ask it over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest


class Server:
    def __init__(self, model: Path, *words: str) -> None:
        command = [sys.executable, "-m", "tenfold", "serve", "language", "--model", str(model), "--port", "0"]
        command += ["--weights", "fp32", "--drafter", "ngram", *words]
        env = {**os.environ, "JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if line.startswith("listening on"):
                self.url = line.split()[-1]
                self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
                return
        pytest.fail("".join(said))

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"tenfold_{name}"))
