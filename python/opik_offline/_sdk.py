"""The Opik SDK, if this process has imported it: its session settings and its clients.

The SDK has no interface for moving a client to another address. A client that is moved keeps its identity, because
decorators, integrations and the user hold it: another client is made with the same settings, and its attributes replace
those of the first. Everything here is guarded: what a version of the SDK does not have is left as it is, and reported.
"""

import atexit
import gc
import logging
import sys
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

LOGGER = logging.getLogger("opik_offline")
TWIN = "_opik_offline_twin"


def module(name: str) -> Any:
    """Returns a module of the SDK, if it was imported."""
    return sys.modules.get(name)


def client_type() -> Optional[type]:
    client_module = module("opik.api_objects.opik_client")
    return getattr(client_module, "Opik", None)


def clients() -> List[Any]:
    """Returns the clients of this process that are alive. Those that only hold the new parts of a moved one are not
    among them."""
    kind = client_type()
    if kind is None:
        return []
    found = [thing for thing in gc.get_objects() if type(thing) is kind]
    twins = {id(vars(client).get(TWIN)) for client in found}
    return [client for client in found if id(client) not in twins and url_of(client) is not None]


def url_of(client: Any) -> Optional[str]:
    """Returns the URL that a client sends to."""
    return getattr(getattr(client, "_config", None), "url_override", None)


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
    """Waits until a client has sent everything."""
    try:
        return client.flush(timeout=max(1, int(timeout))) is not False
    except Exception as error:
        LOGGER.warning("opik-offline: a client of the Opik SDK could not be flushed: %s", error)
        return False


def move(client: Any, url: str, timeout: float) -> Tuple[bool, Optional[str]]:
    """Leads a client to another address. Returns whether it is led there now, and what went wrong with what it had."""
    config = client._config
    try:
        flushed = flush(client, timeout)
        # Outside the client's own attributes: it goes on sending what it could not send so far.
        before = getattr(client, "_streamer", None)
        twin = type(client)(
            project_name=getattr(client, "_project_name", None),
            workspace=config.workspace,
            host=url,
            api_key=config.api_key,
            batching=getattr(client, "_use_batching", True),
            _show_misconfiguration_message=False,
        )
        kept = {name: value for name, value in vars(client).items() if name == "_project_name_most_recent_trace"}
        vars(client).update(vars(twin))
        vars(client).update(kept)
        setattr(client, TWIN, twin)
        if before is not None and before is not getattr(client, "_streamer", None):
            # What another thread queued at this moment.
            _flush_quietly(before, timeout)
            atexit.register(_flush_quietly, before, timeout)
    except Exception as error:
        return False, "a client of the Opik SDK could not be led to {}: {}".format(url, error)
    return True, None if flushed else "what a client of the Opik SDK had queued was not sent in time; it goes on trying"


def _flush_quietly(streamer: Any, timeout: float) -> None:
    try:
        streamer.flush(max(1, int(timeout)))
    except Exception:
        LOGGER.debug("cannot flush a streamer of the Opik SDK", exc_info=True)


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


def after_fork() -> None:
    """Forgets the connections of the parent: their threads do not exist in this process, and a client that uses them
    would queue for ever. The next global client makes its own."""
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
    client = getattr(client_module, "_global_singleton", None)
    if client is not None:
        _OF_THE_PARENT.append(client)
        client_module._global_singleton = None
        _unregister(getattr(client, "end", None))
        _unregister(getattr(vars(client).get(TWIN), "end", None))


_OF_THE_PARENT: List[Any] = []


def _unregister(function: Optional[Callable[..., Any]]) -> None:
    """The older SDK ends each client at exit, which would wait for threads that do not exist."""
    if function is not None:
        atexit.unregister(function)
