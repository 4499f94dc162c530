"""Asks for every address that the SDK derives from its `url_override`, and prints what it was told, a line of JSON each."""
import json

import httpx
import opik.config
import opik.url_helpers as addresses
from opik.configurator import opik_rest_helpers
from opik.configurator.mcp import detection
from opik.guardrails import rest_api_client

config = opik.config.OpikConfig()
base = config.url_override
host = addresses.get_base_url(base)
browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def told(what, ask):
    try:
        answer = ask()
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    # The address of the host stands for the server with and without the agent.
    print(json.dumps([what, str(answer).replace(base, "BASE/").replace(host, "HOST/")]), flush=True)


def page(url):
    answer = httpx.get(url, headers=browser, follow_redirects=True)
    return answer.status_code, answer.text


def redirect(url):
    answer = httpx.get(url)
    return answer.status_code, answer.headers.get("location")


told("ping", lambda: httpx.get(addresses.get_is_alive_ping_url(base)).status_code)
told("local", lambda: opik_rest_helpers.is_instance_active(host))
told("key", lambda: opik_rest_helpers.is_api_key_correct("key", host))
told("workspace", lambda: opik_rest_helpers.is_workspace_name_correct("key", "team", host))
told("permissions", lambda: httpx.get(addresses.get_user_permissions_url(base)).json())
told("projects", lambda: opik_rest_helpers.get_most_recent_project_name("key", "team", addresses.ensure_ending_slash(base)))
told("mcp", lambda: detection.detect_hosted_mcp_server(host, base, False) is not None)
guardrails = rest_api_client.GuardrailsApiClient(httpx.Client(), config.guardrails_backend_host)
told("guardrails", lambda: guardrails.validate("text", []))
told("training", lambda: guardrails.get_custom_training_status("name"))
told("trace", lambda: redirect(addresses.get_project_url_by_trace_id("t", base)))
told("by name", lambda: page(addresses.get_project_url_by_workspace("team", "Default Project")))
told("project", lambda: page(addresses.get_project_url_by_id(base, "p", "team")))
told("dataset", lambda: page(addresses.get_dataset_url_by_id(base, "team", "p", "d")))
told("experiment", lambda: page(addresses.get_experiment_url_by_id("d", "e", base, "team")))
told("playground", lambda: page(addresses.get_agent_playground_url_by_project_id(base, "p", "team")))
