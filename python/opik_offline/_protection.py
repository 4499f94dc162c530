"""Whether this process is protected, and the way there and back.

One lock guards the state; another one lets one thread at a time start an agent, while the state is free. Nothing is
raised unless `strict` was asked for. A daemon thread looks after the agent: its requests keep an agent that ends as idle,
and if the agent was killed, it starts another one on the same port. Whatever else answers on that port is not taken for
the agent. A forked child gets its own locks and its own thread; a spawned one inherits the environment, which leads its
SDK to the agent.
"""

import logging
import os
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, TypeVar

from . import _agent, _sdk
from ._agent import ProtectionError

LOGGER = logging.getLogger("opik_offline")
IDLE_EXIT = "10m"
WATCH_INTERVAL = 10.0
# How long protect() waits for another thread that starts the agent again.
RESTART_TIMEOUT = 10.0
T = TypeVar("T")


class Status:
    """What is known about the protection of this process. True if it is protected."""

    def __init__(self, protected: bool, reason: Optional[str] = None, **known: Any) -> None:
        self.protected: bool = protected
        #: Why it is not protected, or what is wrong.
        self.reason: Optional[str] = reason
        #: The agent's address, which the SDK sends to.
        self.url: Optional[str] = known.get("url")
        #: The address of its status page.
        self.page: Optional[str] = known.get("page")
        #: The Opik server that it delivers to.
        self.server: Optional[str] = known.get("server")
        #: The file in which it stores.
        self.db: Optional[str] = known.get("db")
        self.pid: Optional[int] = known.get("pid")
        #: `available`, `unavailable` or `unknown`: the agent's connection to the server.
        self.connection: Optional[str] = known.get("connection")
        #: Messages that are stored and wait for the server.
        self.waiting: Optional[int] = known.get("waiting")
        #: Messages that the server refused.
        self.rejected: Optional[int] = known.get("rejected")
        #: URLs of clients in this process that send past the agent.
        self.unprotected_clients: List[str] = known.get("unprotected_clients") or []

    def __bool__(self) -> bool:
        return self.protected

    def __repr__(self) -> str:
        if not self.protected:
            return "opik-offline: NOT PROTECTED: {}".format(self.reason or "protect() was not called")
        text = "opik-offline: protected by {}, which sends to {}".format(self.page or self.url, self.server)
        if self.connection:
            text += " ({})".format(self.connection)
        if self.waiting is not None:
            text += ", {} waiting".format(self.waiting)
        if self.rejected:
            text += ", {} rejected".format(self.rejected)
        if self.reason:
            text += "; {}".format(self.reason)
        return text


class FlushResult(NamedTuple):
    """How a flush ended. True if everything is on the server."""

    delivered: bool
    #: Messages that wait still; None if that is unknown.
    remaining: Optional[int]
    #: Messages that the server refused meanwhile.
    rejected: int
    reason: Optional[str]

    def __bool__(self) -> bool:
        return self.delivered


class _State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: Held by the thread that starts an agent. Comes before `lock`, which is free meanwhile.
        self.starting = threading.RLock()
        self.url: Optional[str] = None
        self.page: Optional[str] = None
        self.server: Optional[str] = None
        self.db: Optional[str] = None
        self.pid: Optional[int] = None
        #: The private folder of the agent, if this process asked for it.
        self.folder: Optional[str] = None
        #: Whether the environment led to the agent, which this process did not ask for.
        self.is_led = False
        #: What the agent is started with again.
        self.upstream: Optional[str] = None
        self.idle_exit: Optional[str] = None
        self.db_option: Optional[str] = None
        #: Variables as they were before; None for one that was not set.
        self.before: Dict[str, Optional[str]] = {}
        self.session_before: Optional[str] = None
        self.has_session = False
        self.watch_interval: Optional[float] = None
        self.stop: Optional[threading.Event] = None
        self.warned: set = set()


_state = _State()


def protect(
    upstream: Optional[str] = None,
    db: Optional[str] = None,
    *,
    idle_exit: Optional[str] = IDLE_EXIT,
    watch: bool = True,
    flush_timeout: float = 10.0,
    strict: bool = False
) -> Status:
    """Leads the Opik SDK of this process through the agent, which is started if it does not run.

    The server is the one that the SDK would use: OPIK_URL_OVERRIDE, ~/.opik.config, Opik Cloud; `upstream` names another
    one. The agent ends by itself after `idle_exit` without clients and without waiting messages; None keeps it. Clients
    of the SDK that exist already are flushed, for up to `flush_timeout` seconds each, and then led to the agent.

    Call it as often as you like, from any thread. If it fails, the SDK stays as it was, a warning is logged, and the
    result is false; with `strict` it raises `ProtectionError` instead.
    """
    return _guarded(strict, lambda: _protect(upstream, db, idle_exit, watch, flush_timeout))


def _guarded(strict: bool, work: Callable[[], Status]) -> Status:
    try:
        return work()
    except Exception as error:
        reason = str(error) if isinstance(error, ProtectionError) else "internal error: {!r}".format(error)
        if strict:
            raise error if isinstance(error, ProtectionError) else ProtectionError(reason)
        LOGGER.error("opik-offline: NOT PROTECTED, traces are lost if the Opik server is away: %s", reason)
        return Status(False, reason)


def _protect(
    upstream: Optional[str], db: Optional[str], idle_exit: Optional[str], watch: bool, flush_timeout: float
) -> Status:
    with _state.lock:
        is_restarting = _state.url is not None and _is_asked_for(upstream, db)
        if is_restarting and _is_in_force():
            return _lead(watch, flush_timeout)
    starting = _state.starting
    if not starting.acquire(timeout=RESTART_TIMEOUT if is_restarting else -1):
        raise ProtectionError("the agent is gone, and is being started again")
    try:
        with _state.lock:
            is_other = _state.url is not None and not _is_asked_for(upstream, db)
            if _state.url is not None and not is_other:
                if _is_in_force():
                    return _lead(watch, flush_timeout)
                upstream, db, idle_exit = _state.upstream, _state.db_option, _state.idle_exit
        found = _find_or_start(upstream, db, idle_exit, is_other)
        with _state.lock:
            if is_other:
                _unprotect(flush_timeout)
            _state.upstream, _state.db_option, _state.idle_exit = upstream, db, idle_exit
            _adopt(found)
            return _lead(watch, flush_timeout)
    finally:
        starting.release()


def _is_asked_for(upstream: Optional[str], db: Optional[str]) -> bool:
    """Returns whether these arguments of protect() ask for the agent that there is."""
    return (upstream is None or upstream == _state.upstream) and (db is None or db == _state.db_option)


def _is_in_force() -> bool:
    return os.environ.get("OPIK_URL_OVERRIDE") == _state.url and _is_ours_ready()[0] is not None


def _lead(watch: bool, flush_timeout: float) -> Status:
    _lead_clients(flush_timeout)
    if watch:
        _state.watch_interval = WATCH_INTERVAL
        _start_watching()
    return _status()


def _is_ours_ready() -> Tuple[Optional[Dict[str, Any]], Optional[str]]:
    """Returns what the agent says about itself; None, and why, if it does not answer, or another program does."""
    url, server, pid = _state.url, _state.server, _state.pid
    ready = _agent.ready(url) if url else None
    if ready is None:
        return None, "the agent at {} does not answer".format(_agent.without_token(url or ""))
    if ready["agent"].get("pid") != pid or (server and not _delivers_to(ready, server)):
        return None, "the agent at {} is gone, and another one answers there".format(_agent.without_token(url or ""))
    # What answers /-/ready is not secret: the port's next owner may imitate it.
    if not _is_proven(url or "", _state.folder, dict(os.environ)):
        return None, "the agent at {} is gone, and another program answers there".format(_agent.without_token(url or ""))
    return ready, None


def _is_proven(url: str, folder: Optional[str], environment: Dict[str, str]) -> bool:
    """Returns whether the program at this URL is the background agent of this folder; without a folder, whether it is the
    one whose port file names the URL. An agent that wraps a command has no port file, and is believed."""
    if folder is not None:
        return _agent.is_proven(url, [folder]) is True
    agents = _agent.agents_folder(environment)
    try:
        folders = [os.path.join(agents, name) for name in os.listdir(agents)]
    except OSError:
        folders = []
    return _agent.is_proven(url, folders) is not False


def _delivers_to(ready: Dict[str, Any], server: str) -> bool:
    known = ready.get("server")
    url = known.get("url") if isinstance(known, dict) else None
    return isinstance(url, str) and _agent.is_same(url, server)


class _Found(NamedTuple):
    """An agent that this process may send to."""

    url: str
    page: Optional[str]
    server: Optional[str]
    db: Optional[str]
    pid: Optional[int]
    #: Changes of the environment; None if it leads to the agent already.
    changes: Optional[Dict[str, Any]]
    #: The session settings of the SDK, if they name a server.
    session: Optional[str]
    is_new: bool
    #: Its private folder; None for one that the environment leads to.
    folder: Optional[str] = None


def _find_or_start(upstream: Optional[str], db: Optional[str], idle_exit: Optional[str], is_other: bool) -> _Found:
    """Finds the agent that the environment leads to, or has one started, and changes nothing.

    `is_other`: in place of the present one, so everything is taken as it is without protection. The caller holds
    `starting` only, as this may take a while.
    """
    with _state.lock:
        environment = dict(os.environ)
        session = _sdk.session_url()
        if is_other:
            for name, value in _state.before.items():
                environment.pop(name, None)
                if value is not None:
                    environment[name] = value
            if _state.has_session and session is not None:
                session = _state.session_before
        led = _agent.wrapped_by(environment) if not (upstream or db) else None
        if session is not None and (_is_own(session) or (led and _agent.is_same(session, led[0]))):
            session = None
        if led and _is_own(led[0]) and not _state.is_led:
            # Our own variables prove nothing about what answers there; the binary does.
            led = None
    if led and session is None:
        # An agent wraps this process, or a parent of it was protected.
        ready = _agent.ready(led[0])
        if ready is not None and _delivers_to(ready, led[1]) and _is_proven(led[0], None, environment):
            return _Found(led[0], None, led[1], None, ready["agent"].get("pid"), None, None, False)
    report = _agent.start(upstream or session, db, idle_exit, environment)
    return _Found(
        report["url"],
        report["page"],
        report.get("server"),
        report.get("db"),
        report["pid"],
        report["environment"],
        session,
        bool(report.get("started")),
        os.path.dirname(report["log"]) if report.get("log") else None,
    )


def _adopt(found: _Found) -> None:
    """Leads the environment to this agent. The clients are led by the caller."""
    if found.changes is None:
        _state.before = {"OPIK_URL_OVERRIDE": found.server, "OPIK_OFFLINE_WRAPPED_BY": None}
    else:
        changes = found.changes
        for name in list(changes["set"]) + list(changes["unset"]):
            _state.before.setdefault(name, os.environ.get(name))
        for name, value in changes["set"].items():
            os.environ[name] = value
        for name in changes["unset"]:
            os.environ.pop(name, None)
        if not _state.has_session:
            _state.has_session, _state.session_before = True, found.session
    if _state.url is not None and _state.url != found.url and _state.url not in _FORMER:
        # Its port was taken meanwhile.
        _FORMER.append(_state.url)
    _state.url, _state.page, _state.server, _state.db = found.url, found.page, found.server, found.db
    _state.pid, _state.is_led, _state.folder = found.pid, found.changes is None, found.folder


def _is_own(url: str) -> bool:
    return _state.url is not None and _agent.is_same(url, _state.url)


def _lead_clients(timeout: float) -> None:
    """Leads the SDK to the agent, if it was imported."""
    url, server = _state.url, _state.server
    if url is None:
        return
    session = _sdk.session_url()
    if session is not None and not _is_own(session):
        _sdk.set_session_url(url)
    for client in _sdk.clients(with_dormant=True):
        target = _sdk.url_of(client) or ""
        if _is_own(target) or _is_ours(target) or (server and _agent.is_same(target, server)):
            _warn_of(_sdk.redirect(client, url, timeout))
    _warn_of_others()


def _warn_of(problem: Optional[str]) -> None:
    if problem and problem not in _state.warned:
        _state.warned.add(problem)
        LOGGER.warning("opik-offline: %s", problem)


#: Addresses that an agent of this process had before.
_FORMER: List[str] = []


def _is_ours(url: str) -> bool:
    return any(_agent.is_same(url, former) for former in _FORMER)


def _others() -> List[str]:
    """Returns the URLs of clients that send past the agent."""
    targets = [_sdk.url_of(client) or "" for client in _sdk.clients()]
    return sorted({target for target in targets if target and not _is_own(target)})


def _past_the_agent(urls: List[str]) -> str:
    return "clients send past the agent, to {}".format(", ".join(map(_agent.without_token, urls)))


def _warn_of_others() -> None:
    for target in _others():
        if target not in _state.warned:
            _state.warned.add(target)
            LOGGER.warning(
                "opik-offline: a client of the Opik SDK has the explicit host %s: what it sends is NOT PROTECTED. "
                "Leave out host=, or name that server as protect(upstream=...)",
                target,
            )


def unprotect(flush_timeout: float = 10.0) -> None:
    """Leads the SDK back to where it sent before. The agent goes on delivering, and ends by itself when it is idle."""

    def work() -> Status:
        with _state.lock:
            _unprotect(flush_timeout)
        return Status(False)

    _guarded(False, work)


def _unprotect(flush_timeout: float) -> None:
    _stop_watching()
    url, server = _state.url, _state.server
    if url is None:
        return
    for name, value in _state.before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if _state.has_session and _sdk.session_url() is not None:
        _sdk.set_session_url(_state.session_before)
    if server and _state.before:
        default = _state.session_before or _state.before.get("OPIK_URL_OVERRIDE") or server
        for client in _sdk.clients(with_dormant=True):
            if _is_own(_sdk.url_of(client) or ""):
                _warn_of(_sdk.lead_back(client, default, flush_timeout))
    _state.before = {}
    _state.has_session, _state.session_before = False, None
    _state.url = _state.page = _state.server = _state.db = _state.pid = None
    _state.is_led = False
    _state.upstream = _state.db_option = None
    _state.warned = set()


def status() -> Status:
    """Returns whether this process is protected, and what waits."""

    def work() -> Status:
        with _state.lock:
            return _status()

    return _guarded(False, work)


def _status() -> Status:
    url = _state.url
    if url is None:
        return Status(False)
    known: Dict[str, Any] = {
        "url": url,
        "page": _state.page,
        "server": _state.server,
        "db": _state.db,
        "unprotected_clients": _others(),
    }
    _warn_of_others()
    ready, problem = _is_ours_ready()
    if ready is None:
        return Status(False, problem, **known)
    store, server = ready.get("store") or {}, ready.get("server") or {}
    known.update(
        pid=ready["agent"].get("pid"),
        connection=server.get("connection"),
        waiting=store.get("waiting"),
        rejected=store.get("rejected"),
    )
    if store.get("usable") is False:
        return Status(False, "the agent can't use its store: {}".format(store.get("reason")), **known)
    reason = store.get("full") and "the store is full: {}".format(store.get("full"))
    if not reason and known["unprotected_clients"]:
        reason = _past_the_agent(known["unprotected_clients"])
    return Status(True, reason, **known)


def flush(timeout: float = 30.0, *, strict: bool = False) -> FlushResult:
    """Waits until what this process has written is on the Opik server, for up to `timeout` seconds.

    The SDK's own flush ends when the agent has the writes, which are safe then, and not yet delivered. Nobody knows what
    becomes of the writes of clients that send past the agent, so with such clients the result is false.
    """
    result = FlushResult(False, None, 0, "this process is not protected")
    try:
        result = _flush(timeout)
    except Exception as error:
        result = FlushResult(False, None, 0, "internal error: {!r}".format(error))
    if strict and not result.delivered:
        raise ProtectionError("not everything is delivered: {}".format(result.reason))
    return result


def _flush(timeout: float) -> FlushResult:
    deadline = time.monotonic() + timeout
    if not _state.lock.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX)):
        return FlushResult(False, None, 0, "another thread protects this process or ends that")
    try:
        url = _state.url
    finally:
        _state.lock.release()
    if url is None:
        return FlushResult(False, None, 0, "this process is not protected")
    is_sent = True
    lanes: List[Dict[str, str]] = []
    for client in _sdk.clients():
        if not _agent.is_same(_sdk.url_of(client) or "", url):
            continue
        is_sent = _sdk.flush(client, deadline - time.monotonic()) and is_sent
        headers = _sdk.lane_headers(client)
        if headers not in lanes:
            lanes.append(headers)
    delivered, remaining, rejected, reasons = is_sent, 0, 0, []
    if not is_sent:
        reasons.append("the Opik SDK has not sent everything to the agent")
    for headers in lanes or [{}]:
        answer = _agent.flush(url, headers, max(0.0, deadline - time.monotonic()))
        delivered = delivered and answer["delivered"]
        left = answer.get("remaining")
        remaining = None if left is None or remaining is None else remaining + left
        rejected += answer.get("rejected") or 0
        if answer.get("reason"):
            reasons.append(answer["reason"])
    problem = _is_ours_ready()[1]
    if problem:
        # Whatever answered may know nothing of our messages.
        delivered, remaining = False, None
        reasons.append(problem)
    others = _others()
    if others:
        delivered = False
        reasons.append(_past_the_agent(others))
    _warn_of_others()
    return FlushResult(delivered, remaining, rejected, "; ".join(reasons) or None)


def _start_watching() -> None:
    if _state.stop is not None or _state.watch_interval is None:
        return
    stop = threading.Event()
    arguments = (stop, _state.watch_interval)
    try:
        threading.Thread(target=_watch, args=arguments, name="opik-offline", daemon=True).start()
        _state.stop = stop
    except RuntimeError as error:
        LOGGER.warning("opik-offline: the agent is not looked after: %s", error)


def _stop_watching() -> None:
    if _state.stop is not None:
        _state.stop.set()
    _state.stop, _state.watch_interval = None, None


def _watch(stop: threading.Event, interval: float) -> None:
    """Keeps the agent, and starts another one if it is gone."""
    has_failed = False
    while not stop.wait(interval):
        url = _state.url
        if url is None or _agent.interpreter_ends():
            return
        try:
            if _is_ours_ready()[0] is None:
                _restart(stop, url)
            has_failed = False
        except Exception as error:
            if not has_failed and not _agent.interpreter_ends():
                LOGGER.error("opik-offline: NOT PROTECTED: the agent is gone and can't be started again: %s", error)
            has_failed = True


def _restart(stop: threading.Event, url: str) -> None:
    starting = _state.starting
    if not starting.acquire(blocking=False):
        # protect() is about to.
        return
    try:
        with _state.lock:
            if stop.is_set() or _state.url != url:
                return
            options = (_state.upstream, _state.db_option, _state.idle_exit)
        found = _find_or_start(*options, is_other=False)
        with _state.lock:
            if stop.is_set() or _state.url != url:
                return
            _adopt(found)
            if found.is_new:
                LOGGER.warning("opik-offline: the agent was gone and was started again")
            if _state.url != url:
                _lead_clients(10.0)
    finally:
        starting.release()


#: What is held while this thread forks.
_FORKING = threading.local()


def _before_fork() -> None:
    try:
        _FORKING.held = _sdk.before_fork() if _state.url is not None else []
    except Exception:
        LOGGER.debug("cannot prepare the Opik SDK for a fork", exc_info=True)


def _after_fork_in_parent() -> None:
    for lock in getattr(_FORKING, "held", None) or []:
        lock.release()
    _FORKING.held = []


def _after_fork_in_child() -> None:
    """The parent's threads do not exist, and its locks may be held for ever."""
    _after_fork_in_parent()
    _state.lock, _state.starting = threading.RLock(), threading.RLock()
    _state.stop = None
    if _state.url is None:
        return
    try:
        _sdk.after_fork()
    except Exception:
        LOGGER.warning("opik-offline: cannot prepare the Opik SDK for a child process", exc_info=True)
    _start_watching()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
