"""A LiteLLM proxy with its own Opik logger and a model that it makes up itself, and somebody who asks it."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from halves import halfway

CONFIG = """
model_list:
  - model_name: fake
    litellm_params:
      model: openai/gpt-4o-mini
      api_key: none
      mock_response: Grüße 你好
litellm_settings:
  callbacks: ["opik"]
"""
PATIENCE_SECONDS = 300
KEY = f"sk-{secrets.token_hex(32)}"  # without one, the proxy does not start


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Proxy:
    def __init__(self):
        Path("config.yaml").write_text(CONFIG, encoding="utf-8")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = {**os.environ, "LITELLM_LOG": "INFO", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                       "DEFAULT_FLUSH_INTERVAL_SECONDS": "1", "OPIK_PROJECT_NAME": "litellm-test",
                       "LITELLM_MASTER_KEY": KEY}
        command = [str(Path(sys.executable).parent / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1"]
        self.process = subprocess.Popen([*command, "--port", str(port), "--telemetry", "False"], env=environment,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True)
        self.lines = []
        threading.Thread(target=self.read, daemon=True).start()
        self.wait("it is ready", self.is_ready)

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"{self.url}/health/liveliness", timeout=5).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, what, condition):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit(f"waited in vain until {what}; the proxy wrote:\n{''.join(self.lines)}")
            time.sleep(0.05)

    def said(self, pattern):
        return [found for line in list(self.lines) for found in re.findall(pattern, line)]

    def ask(self, number, run):
        body = {"model": "fake", "messages": [{"role": "user", "content": f"{run} question {number}"}],
                "metadata": {"opik": {"tags": [run], "thread_id": f"thread-{run}"}}}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", data=json.dumps(body).encode(),
                                         headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


proxy = Proxy()
asked = 0


def half(run):
    global asked
    for number in range(4):
        print(proxy.ask(number, run))
        asked += 1
        # The logger sends once a second and says what it took from its queue, whether or not that arrived. It loses what
        # is queued while it sends, with and without an agent, so each question waits for the one before it.
        proxy.wait("it has sent everything", lambda: sum(map(int, proxy.said(r"Sent (\d+) traces"))) >= asked
                   and sum(map(int, proxy.said(r"Sent (\d+) spans"))) >= asked)


half("first")
halfway()
half("second")
proxy.stop()
for line in proxy.lines:
    if re.search(r"OpikLogger (failed|- Error)|Opik events submitted", line):
        print(line.rstrip(), file=sys.stderr)
