"""The Opik SDK, if this process has imported it: its session settings, its clients, and what a fork does to them.

The SDK has no interface for moving a client to another address. A client is therefore redirected in place: each of its
requests asks one object for the base URL, and that object is told another one. Nothing is replaced, so whatever is
queued, is sent again or is held by a trace goes to the new address too. What a version of the SDK does not have is left
as it is, and reported.
"""

import atexit
import gc
import logging
import sys
import threading
import time
import types
import urllib.parse
import weakref
from typing import Any, Dict, List, Optional, Set, Tuple

LOGGER = logging.getLogger("opik_offline")
#: How long a fork waits for a statement that the SDK executes in its SQLite file.
FORK_TIMEOUT = 1.0


def module(name: str) -> Any:
    """Returns a module of the SDK, if it was imported."""
    return sys.modules.get(name)


def client_type() -> Optional[type]:
    client_module = module("opik.api_objects.opik_client")
    return getattr(client_module, "Opik", None)


#: Clients that were found before: the garbage collector does not list objects that were frozen since.
_FOUND: "weakref.WeakSet[Any]" = weakref.WeakSet()


def clients() -> List[Any]:
    """Returns the clients of this process that are alive, without those of a parent that are unused since the fork."""
    return [client for client in _all_clients() if not _is_dormant(client) and url_of(client) is not None]


def _all_clients() -> List[Any]:
    kind = client_type()
    if kind is None:
        return []
    kinds = [kind]
    for one in kinds:
        kinds += type.__subclasses__(one)
    if sys.version_info >= (3, 9):
        # An object refers to its type. This touches no other object, whose memory a fork may share.
        things = [thing for one in kinds for thing in gc.get_referrers(one)]
    else:
        things = gc.get_objects()
    things.append(getattr(module("opik.api_objects.opik_client"), "_global_singleton", None))
    found = {id(thing): thing for thing in things if issubclass(type(thing), kind)}
    for client in found.values():
        _FOUND.add(client)
    found.update((id(client), client) for client in list(_FOUND))
    return list(found.values())


def url_of(client: Any) -> Optional[str]:
    """Returns the URL that a client sends to."""
    wrapper = getattr(getattr(client, "_rest_client", None), "_client_wrapper", None)
    url = getattr(wrapper, "_base_url", None)
    return url if isinstance(url, str) else getattr(getattr(client, "_config", None), "url_override", None)


def lane_headers(client: Any) -> Dict[str, str]:
    """Returns the headers by which the agent knows whose writes a client sends."""
    config = client._config
    headers = {}
    if getattr(config, "workspace", None):
        headers["Comet-Workspace"] = str(config.workspace)
    if getattr(config, "api_key", None):
        headers["Authorization"] = str(config.api_key)
    return headers


def flush(client: Any, timeout: float) -> bool:
    """Waits until a client has sent everything, also what it had put aside because the connection was lost."""
    deadline = time.monotonic() + timeout
    try:
        while True:
            was_connected = _is_connected(client)
            if client.flush(timeout=max(1, int(deadline - time.monotonic()))) is False and was_connected:
                return False
            # The SDK calls everything flushed that it has put aside, or is about to.
            if was_connected and _is_connected(client) and _is_settled(client, deadline):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
    except Exception as error:
        LOGGER.warning("opik-offline: a client of the Opik SDK could not be flushed: %s", error)
        return False


def _is_settled(client: Any, deadline: float) -> bool:
    """Returns whether really nothing is queued, put aside or in the hands of a worker."""
    streamer = getattr(client, "_streamer", None)
    if _has_put_aside(streamer):
        return False
    if hasattr(streamer, "workers_idling"):
        # This SDK takes a worker for idle that has just taken a message. It marks itself as idle before it takes the next.
        for worker in streamer._queue_consumers:
            worker.idling = False
        while not streamer.workers_idling():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
    is_done = getattr(streamer, "_all_done", None)
    return not _has_put_aside(streamer) and (is_done is None or is_done())


def _has_put_aside(streamer: Any) -> bool:
    database = getattr(getattr(streamer, "_fallback_replay_manager", None), "database_manager", None)
    if database is None:
        return False
    return database._replay_mutex.locked() or database.failed_messages_count() > 0


def _is_connected(client: Any) -> bool:
    manager = getattr(getattr(client, "_streamer", None), "_fallback_replay_manager", None)
    return getattr(manager, "has_server_connection", True) is not False


def redirect(client: Any, url: str, timeout: float) -> Optional[str]:
    """Leads a client to another address, after it had `timeout` seconds to send what it has to the present one.

    Returns why that is impossible; the client is unchanged then. What was not sent in time goes to the new address.
    """
    if _is_dormant(client):
        vars(client)["_config"].url_override = url
        return None
    try:
        places = _places_of_url(client, url)
        if url_of(client) != url:
            if _is_connected(client):
                flush(client, timeout)
            _mount_directly(client, url)
            for thing, name, value in places:
                setattr(thing, name, value)
        client._config.url_override = url
    except Exception as error:
        LOGGER.debug("cannot redirect a client of the Opik SDK", exc_info=True)
        return "a client of the Opik SDK can't be led to {}, its version is unknown: {!r}".format(url, error)
    if not _is_connected(client):
        # It has put messages aside, and sends them again in a flush with a connection.
        client._streamer._fallback_replay_manager._monitor.reset()
        flush(client, timeout)
    return None


def _places_of_url(client: Any, url: str) -> List[Tuple[Any, str, Any]]:
    """Returns what to set, where, to redirect a client. Raises if this client is of another make."""
    wrapper = client._rest_client._client_wrapper
    if wrapper.httpx_client.get_base_url(None) != wrapper._base_url or not isinstance(client._config.url_override, str):
        raise TypeError("its requests do not ask for the base URL")
    places = [(wrapper, "_base_url", url)]
    for processor in getattr(client.__internal_api__message_processor__, "_processors", []):
        # Attachments name the address.
        if isinstance(getattr(processor, "_url_override", None), str):
            places.append((processor, "_url_override", url))
    manager = getattr(client._streamer, "_fallback_replay_manager", None)
    if manager is not None:
        monitor, ping = manager._monitor, module("opik.url_helpers").get_is_alive_ping_url(url)
        if not isinstance(monitor._probe._ping_url, str) or not isinstance(monitor.last_beat, float):
            raise TypeError("its pings are unknown")
        # It pings at once.
        places += [(monitor._probe, "_ping_url", ping), (monitor, "last_beat", float("-inf"))]
    return places


def _mount_directly(client: Any, url: str) -> None:
    """Keeps requests to this address away from the proxies that were in the environment when the client was made."""
    httpx_client = client._rest_client._client_wrapper.httpx_client.httpx_client
    mounts = getattr(httpx_client, "_mounts", None)
    if mounts:
        pattern = type(next(iter(mounts)))("all://{}".format(urllib.parse.urlsplit(url).netloc))
        httpx_client._mounts = {pattern: None, **mounts}


def session_url() -> Optional[str]:
    """Returns the URL in the SDK's session settings, which win over the environment."""
    session = getattr(module("opik.config"), "_SESSION_CACHE_DICT", None)
    url = session.get("url_override") if isinstance(session, dict) else None
    return url if isinstance(url, str) and url else None


def set_session_url(url: Optional[str]) -> None:
    """Replaces the URL in the session settings; None removes it."""
    session = getattr(module("opik.config"), "_SESSION_CACHE_DICT", None)
    if not isinstance(session, dict):
        return
    if url is None:
        session.pop("url_override", None)
    else:
        session["url_override"] = url


# A fork. The threads of the parent's clients do not exist in a child: what it gave to such a client would wait for ever,
# and so would the interpreter at its end. Each client becomes dormant in a child, and gets connections and threads of its
# own when it is used for the first time. The connections of the parent are neither used nor closed.


def before_fork() -> List[Any]:
    """Returns locks that are held during a fork, so that no thread is within SQLite, whose own locks a child inherits."""
    manager_type = getattr(module("opik.message_processing.replay.replay_manager"), "ReplayManager", None)
    held = []
    if manager_type is not None:
        deadline = time.monotonic() + FORK_TIMEOUT
        for thread in threading.enumerate():
            if isinstance(thread, manager_type):
                lock = getattr(getattr(thread, "_db_manager", None), "__lock__", None)
                if lock is not None and lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    held.append(lock)
    return held


def after_fork() -> None:
    """In a child: forgets the parent's connections, and makes its clients dormant."""
    global _AWAKENING
    _AWAKENING = threading.RLock()
    client_module = module("opik.api_objects.opik_client")
    if client_module is None:
        return
    resources = getattr(module("opik.api_objects.connection_resources"), "MANAGER", None)
    if isinstance(getattr(resources, "_entries", None), dict):
        resources._lock = threading.Lock()
        # Kept, so that nothing of theirs is finalized here.
        _OF_THE_PARENT.append(resources._entries)
        resources._entries = {}
    if hasattr(client_module, "_global_singleton_lock"):
        client_module._global_singleton_lock = threading.Lock()
    for client in _all_clients():
        try:
            if not _is_dormant(client):
                _put_to_sleep(client)
        except Exception:
            LOGGER.warning("opik-offline: a client of the Opik SDK can't be used after a fork", exc_info=True)


#: Marks the class of a dormant client, and names the class that it had.
DORMANT = "_opik_offline_dormant"
_OF_THE_PARENT: List[Any] = []
_AWAKENING = threading.RLock()
#: Clients that a thread is about to awake.
_AWAKING: Set[int] = set()


def _is_dormant(client: Any) -> bool:
    return DORMANT in vars(type(client))


def _look_up(client: Any, name: str) -> Any:
    """The way to the attributes of a client that was not used in this process so far."""
    # These are asked for by those who only look at it.
    if name not in ("__class__", "__dict__"):
        _awake(client)
    return object.__getattribute__(client, name)


def _put_to_sleep(client: Any) -> None:
    kind = type(client)
    if not (hasattr(kind, "_acquire_shared_resources") or hasattr(kind, "_initialize_streamer")):
        return
    # The older SDK ends each client at exit, which would wait for threads that do not exist.
    atexit.unregister(types.MethodType(kind.end, client))
    finalizer = vars(client).get("_finalizer")
    if finalizer is not None:
        finalizer.detach()
    streamer = vars(client).get("_streamer")
    _OF_THE_PARENT.append(dict(vars(client)))
    if streamer is not None:
        # Traces and spans hold it.
        own = weakref.ref(client)
        vars(streamer).update(
            put=lambda *args, **kwargs: _of_streamer(own, streamer, "put", args, kwargs),
            flush=lambda *args, **kwargs: _of_streamer(own, streamer, "flush", args, kwargs),
            close=lambda *args, **kwargs: True,
        )
    client.__class__ = type(kind)(kind.__name__, (kind,), {DORMANT: kind, "__getattribute__": _look_up})


def _of_streamer(own: Any, before: Any, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Calls a method of the streamer that a client has in this process."""
    streamer = getattr(own(), "_streamer", None)
    if streamer is None or streamer is before:
        LOGGER.error("opik-offline: a trace of the parent process can't be written after a fork: its client is gone")
        return False
    return getattr(streamer, name)(*args, **kwargs)


def _awake(client: Any) -> None:
    """Gives a dormant client connections and threads of this process."""
    with _AWAKENING:
        if not _is_dormant(client) or id(client) in _AWAKING:
            return
        kind = vars(type(client))[DORMANT]
        _AWAKING.add(id(client))
        try:
            if hasattr(kind, "_acquire_shared_resources"):
                kind._acquire_shared_resources(client)
            else:
                kind._initialize_streamer(client, use_batching=vars(client).get("_use_batching", True))
                atexit.register(types.MethodType(kind.end, client), timeout=vars(client).get("_flush_timeout"))
        except Exception as error:
            LOGGER.error("opik-offline: a client of the parent process can't be used after a fork: %s", error)
        finally:
            client.__class__ = kind
            _AWAKING.discard(id(client))
