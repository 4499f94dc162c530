"""The agent as this package sees it: the binary that starts it, and its HTTP pages. Knows nothing of the SDK."""

import hmac
import http.client
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.parse
from typing import Any, Dict, List, Optional, Tuple

# How long an agent on this machine may take to answer.
ANSWER_TIMEOUT = 5.0
# How long the binary may take to start an agent: a little longer than it waits itself.
START_TIMEOUT = 90.0
# How much later than its timeout an agent may answer a flush.
FLUSH_GRACE = 10.0
TOKEN_PREFIX = "/-/token/"


class ProtectionError(Exception):
    """Why this process is not protected. Raised only with ``strict=True``."""


def find_binary() -> str:
    """Returns the path of `opik-offline`: `OPIK_OFFLINE_BINARY`, the one of this installation, or the one on the PATH."""
    named = os.environ.get("OPIK_OFFLINE_BINARY", "").strip()
    if named:
        if os.access(named, os.X_OK):
            return named
        raise ProtectionError("OPIK_OFFLINE_BINARY is {}, which can't be executed".format(named))
    package = os.path.dirname(os.path.abspath(__file__))
    folders = [sysconfig.get_path("scripts")]
    for scheme in ("posix_user", "osx_framework_user"):
        if scheme in sysconfig.get_scheme_names():
            folders.append(sysconfig.get_path("scripts", scheme=scheme))
    # `pip install --target FOLDER` puts it into FOLDER/bin.
    folders.append(os.path.join(os.path.dirname(package), "bin"))
    for folder in folders:
        candidate = os.path.join(folder, "opik-offline") if folder else ""
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which("opik-offline")
    if found:
        return found
    raise ProtectionError(
        "the command opik-offline was not found beside this package or on the PATH: "
        "reinstall it with `pip install --force-reinstall opik-offline`"
    )


def start(
    upstream: Optional[str], db: Optional[str], idle_exit: Optional[str], environment: Dict[str, str]
) -> Dict[str, Any]:
    """Finds or starts the agent, and returns what `agent --background --format json` says about it."""
    command = [find_binary(), "agent", "--background", "--format", "json"]
    if idle_exit and not os.environ.get("OPIK_OFFLINE_IDLE_EXIT", "").strip():
        command += ["--idle-exit", idle_exit]
    if upstream:
        command += ["--upstream", upstream]
    if db:
        command += ["--db", db]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=START_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise ProtectionError("`{}` did not end within {} s".format(" ".join(command), int(START_TIMEOUT)))
    except OSError as error:
        raise ProtectionError("cannot run {}: {}".format(command[0], error))
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
        raise ProtectionError(said[-2000:] or "{} exited with {}".format(command[0], done.returncode))
    try:
        report = json.loads(done.stdout.decode("utf-8"))
        report["url"], report["page"], report["pid"], report["environment"]["set"], report["environment"]["unset"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProtectionError("{} is of another version than this package: {}".format(command[0], error))
    return report


def wrapped_by(environment: Dict[str, str]) -> Optional[Tuple[str, str]]:
    """Returns the agent that this environment leads to, and its server, if an agent wraps this process or its parent was
    protected."""
    url = environment.get("OPIK_URL_OVERRIDE", "").strip().rstrip("/")
    agent, _, server = environment.get("OPIK_OFFLINE_WRAPPED_BY", "").strip().partition(" ")
    return (url, server) if url and server and agent.rstrip("/") == url else None


def ready(url: str, timeout: float = ANSWER_TIMEOUT) -> Optional[Dict[str, Any]]:
    """Returns what the agent at this URL says about itself; None if none answers there."""
    status, document = request("GET", url, "/-/ready", {}, timeout)
    if status == 200 and isinstance(document, dict) and isinstance(document.get("agent"), dict):
        return document
    return None


def agents_folder(environment: Dict[str, str]) -> str:
    """Returns the folder with one private folder for each background agent of this user."""
    state = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state) or sys.platform == "darwin":
        parts = ("Library", "Application Support") if sys.platform == "darwin" else (".local", "state")
        state = os.path.join(os.path.expanduser("~"), *parts)
    return os.path.join(state, "opik-offline", "agents")


def is_proven(url: str, folders: List[str]) -> Optional[bool]:
    """Returns whether the program at this URL knows the secret in the port file of a background agent; None if no port file
    in these folders names its port. The secret itself is never sent."""
    port, proof = urllib.parse.urlsplit(url).port, None
    for folder in folders:
        record = _own_record(os.path.join(folder, "agent.json"))
        if record is None or str(record.get("listen", "")).rpartition(":")[2] != str(port):
            continue
        nonce = os.urandom(16).hex()
        signed = "opik-offline instance {}".format(nonce).encode()
        expected = hmac.new(str(record.get("secret", "")).encode(), signed, "sha256").hexdigest()
        _, answer = request("GET", url, "/-/instance?nonce=" + nonce, {}, ANSWER_TIMEOUT)
        proof = isinstance(answer, dict) and hmac.compare_digest(str(answer.get("proof")).encode(), expected.encode())
        if proof:
            return True
    return proof


def _own_record(path: str) -> Optional[Dict[str, Any]]:
    """Returns the port file at this path, if this user wrote it."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            record = json.loads(file.read(1 << 16))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("secret") else None


def flush(url: str, headers: Dict[str, str], timeout: float) -> Dict[str, Any]:
    """Waits until the agent has delivered the lane of these headers; without headers, everything."""
    path = "/-/flush?timeout={:.3f}".format(max(timeout, 0.0))
    status, document = request("POST", url, path, headers, timeout + FLUSH_GRACE)
    if isinstance(document, dict) and isinstance(document.get("delivered"), bool):
        return document
    if isinstance(document, dict) and document.get("message"):
        reason = str(document["message"])
    else:
        reason = "the agent does not answer" if status is None else "the agent answers {}".format(status)
    return {"delivered": False, "remaining": None, "rejected": 0, "reason": reason}


def request(method: str, url: str, path: str, headers: Dict[str, str], timeout: float) -> Tuple[Optional[int], Any]:
    """Sends a request to the agent at this URL, past every proxy; returns status and document, or None and None."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return None, None
    if parts.path.startswith(TOKEN_PREFIX):
        token = parts.path[len(TOKEN_PREFIX):].split("/", 1)[0]
        path = TOKEN_PREFIX + token + path
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
    try:
        connection.request(method, path, headers=dict(headers, Connection="close"))
        answer = connection.getresponse()
        text = answer.read(1 << 20)
        try:
            return answer.status, json.loads(text.decode("utf-8"))
        except ValueError:
            return answer.status, None
    except (OSError, http.client.HTTPException):
        return None, None
    finally:
        connection.close()


def is_same(one: str, other: str) -> bool:
    """Returns whether two URLs lead to the same server."""

    def known(url: str) -> Tuple[str, str, Optional[int], str]:
        parts = urllib.parse.urlsplit(url.strip())
        host = (parts.hostname or "").rstrip(".")
        if host in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
            host = "localhost"
        try:
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        except ValueError:
            port = None
        return parts.scheme, host, port, parts.path.rstrip("/")

    return known(one) == known(other)


def without_token(url: str) -> str:
    """Returns a URL of an agent as it may be shown and logged."""
    head, mark, rest = url.partition(TOKEN_PREFIX)
    return head + TOKEN_PREFIX + "..." + rest[rest.find("/"):] if mark and "/" in rest else url


def interpreter_ends() -> bool:
    """Returns whether the interpreter is on its way out, when neither threads nor processes may be started."""
    return sys.is_finalizing()


__all__: List[str] = []
