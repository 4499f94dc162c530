"""Shows the dashboard and the alerts to the programs that read them: Grafana's own types, and a Prometheus that scrapes a real agent.

    python3 contrib/checks/monitoring.py AGENT FOLDER

AGENT is the address of an agent (HOST:PORT), FOLDER an empty one for Prometheus. Grafana itself is in no package registry that CI reaches.
"""
import json
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

AGENT, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
DASHBOARD = json.load(open("contrib/grafana/opik-offline.json"))
RULES = ["contrib/prometheus/agent-alerts.yml", "contrib/prometheus/hub-alerts.yml"]
# Fields of Prometheus's annotations, which Grafana's types leave to the data source.
OF_THE_DATA_SOURCE = {"titleFormat", "textFormat", "step"}
# How long Prometheus may take to have scraped twice; a hang guard.
PATIENCE = 120


def lost(ours, theirs, path=""):
    """What Grafana's types do not know: it is not there when they write what they read."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if key not in theirs:
                if key not in OF_THE_DATA_SOURCE:
                    yield f"{path}/{key}"
            else:
                yield from lost(value, theirs[key], f"{path}/{key}")
    elif isinstance(ours, list):
        for number, (value, other) in enumerate(zip(ours, theirs)):
            yield from lost(value, other, f"{path}/{number}")
    elif ours != theirs:
        yield f"{path}: {ours} is read as {theirs}"


def check_shape():
    register_default_plugins()
    unknown = list(lost(DASHBOARD, json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))))
    assert not unknown, f"Grafana's types do not know {unknown}"
    # Dashboards of Grafana 9 to 11; newer ones are migrated by Grafana.
    assert 36 <= DASHBOARD["schemaVersion"] <= 41, DASHBOARD["schemaVersion"]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus", variables
    taken, ids = set(), set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, f"{panel['title']} overlaps"
        assert panel["id"] not in ids, f"{panel['title']} has the id of another panel"
        taken |= cells
        ids.add(panel["id"])
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"], panel["title"]
    for text in re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD["panels"] + list(variables.values()))):
        assert text == "${datasource}", f"a panel is bound to the data source {text}"


def expressions():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def check_names():
    exposed = urllib.request.urlopen(f"http://{AGENT}/metrics").read().decode()
    existing = set(re.findall(r"^# TYPE (\S+)", exposed, re.M))
    named = {name for _, text in expressions() for name in re.findall(r"opik_offline_\w+", text)}
    for file in RULES:
        named |= set(re.findall(r"opik_offline_\w+", pathlib.Path(file).read_text()))
    for variable in DASHBOARD["templating"]["list"]:
        named |= set(re.findall(r"opik_offline_\w+", json.dumps(variable["query"])))
    assert named <= existing, f"named, but not metrics: {named - existing}"
    return len(named)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path, **parameters):
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        return json.load(urllib.request.urlopen(url, timeout=30))["data"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{parameters}: {error.read().decode()}") from error


def wait_until(question, why):
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        try:
            if question():
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"Prometheus: {why}")


def check_with(port):
    wait_until(lambda: any(int(sample["value"][1]) >= 3 for sample in ask(
        port, "query", query='count_over_time(opik_offline_build_info{job="opik-offline"}[5m])')["result"]), "it does not scrape the agent")
    filled = {"$job": "opik-offline", "$instance": ".*", "$__rate_interval": "1m"}
    count = 0
    for title, text in expressions():
        for name, value in filled.items():
            text = text.replace(name, value)
        assert "$" not in text, f"{title}: an unknown variable in {text}"
        count += 1
        found = ask(port, "query", query=text)["result"]
        # The server of this agent is away, and its store works: nothing is counted there but what `or vector(0)` gives.
        assert found, f"{title}: nothing for {text}"
    wait_until(lambda: all(rule["health"] == "ok" for group in ask(port, "rules")["groups"] for rule in group["rules"]),
               "alerts cannot be evaluated")
    rules = [rule for group in ask(port, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for file in RULES for group in yaml.safe_load(open(file))["groups"]), rules
    return count, len(rules)


def main():
    check_shape()
    names = check_names()
    port = free_port()
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(pathlib.Path(file).resolve()) for file in RULES],
              "scrape_configs": [{"job_name": "opik-offline", "static_configs": [{"targets": [AGENT]}]}]}
    (FOLDER / "prometheus.yml").write_text(yaml.safe_dump(config))
    with open(FOLDER / "prometheus.log", "w") as log:
        server = subprocess.Popen(["prometheus", f"--config.file={FOLDER}/prometheus.yml", f"--storage.tsdb.path={FOLDER}/data",
                                   f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        panels, rules = check_with(port)
    finally:
        server.terminate()
        server.wait()
    print(f"{panels} queries of the dashboard and {rules} alerts, with {names} metrics")


main()
