"""Lints and renders the Helm chart, and compares what it renders with contrib/kubernetes: the facts are the same in both.

    python3 contrib/checks/helm.py FOLDER

Uses `helm` if it is on the PATH, and otherwise Helm as a library (helm-python-sdk of PyPI). What is rendered is left in FOLDER, for a check
against the schemas of Kubernetes. The chart with a sidecar is made of the examples in contrib/helm/README.md.
"""
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

CHART = pathlib.Path("contrib/helm/opik-offline")
FOLDER = pathlib.Path(sys.argv[1])
PROGRAM = shutil.which("helm")
# The oldest version that the chart is for. A `helm` that was built with `go install` believes that it speaks to 1.20.
KUBERNETES = "1.29.0"


class Refused(Exception):
    """Helm refuses the values."""


@contextlib.contextmanager
def quiet_stderr():
    """The library writes there, past Python."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def render(chart, name, values):
    """Renders as `helm template NAME CHART --namespace tracing`; returns the resources and NOTES.txt."""
    if PROGRAM:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            command = [PROGRAM, "template", name, chart, "--namespace", "tracing", "--kube-version", KUBERNETES, "-f", file.name]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr)
        return list(filter(None, yaml.safe_load_all(done.stdout)))
    from helm_python import Chart, HelmError
    try:
        with quiet_stderr(), Chart.load(chart) as loaded:
            loaded.validate_schema(values)
            files = loaded.render(values, name=name, namespace="tracing")
    except HelmError as error:
        raise Refused(str(error)) from error
    return [one for path, text in files.items() if not path.endswith(".txt") for one in yaml.safe_load_all(text) if one]


def lint(chart, values):
    """Every message of `helm lint` but the wish for an icon."""
    if PROGRAM:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(values, file)
            file.flush()
            command = [PROGRAM, "lint", "--strict", chart, "--kube-version", KUBERNETES, "-f", file.name]
            done = subprocess.run(command, capture_output=True, text=True)
        found = re.findall(r"^\[(?:WARNING|ERROR)\].*", done.stdout, re.M)
        assert done.returncode == 0 or found, done
        return found
    from helm_python import lint as run
    with quiet_stderr():
        said = run(chart, values, strict=True, kube_version=f"v{KUBERNETES}")
    return said["errors"] + [message["error"] for message in said["messages"] if message["severity"] > 1]


def resources(name):
    found = {}
    for document in yaml.safe_load_all(open(f"contrib/kubernetes/{name}.yaml")):
        found.setdefault(document["kind"], document)
    return found


def differences(theirs, ours, path=""):
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            yield from differences(theirs.get(key), ours.get(key), f"{path}.{key}")
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for number, (one, other) in enumerate(zip(theirs, ours)):
            yield from differences(one, other, f"{path}[{number}]")
    elif theirs != ours:
        yield f"{path}: {theirs} in contrib/kubernetes, {ours} in the chart"


def agree(theirs, ours, what):
    found = list(differences(theirs, ours, what))
    assert not found, "\n".join(found)


def keep(file, documents):
    (FOLDER / file).write_text("---\n".join(yaml.safe_dump(one) for one in documents))


def modes_agree_with_the_manifests():
    secret = {"auth": {"token": "t", "hubToken": "h"}}
    for name, mode, manifest, kinds in (
        ("opik-hub", "hub", "hub", ["Secret", "Service", "PodDisruptionBudget", "NetworkPolicy", "StatefulSet"]),
        ("opik-edge", "daemonset", "edge-daemonset", ["Secret", "DaemonSet"]),
    ):
        rendered = render(CHART, name, {"mode": mode, **secret})
        assert sorted(one["kind"] for one in rendered) == sorted(kinds), rendered
        expected = resources(manifest)
        for one in rendered:
            kind = one["kind"]
            agree(expected[kind].get("spec"), one.get("spec"), f"{mode}: {kind}")
            assert one["metadata"]["name"] == expected[kind]["metadata"]["name"], one
            agree(sorted(expected[kind].get("stringData", {})), sorted(one.get("stringData", {})), f"{mode}: {kind}")
        keep(f"{mode}.yaml", rendered)


def settings_reach_the_pods():
    values = {"mode": "hub", "auth": {"existingSecret": "mine"}, "encryption": {"existingSecret": "key"},
              "image": {"repository": "registry.test/agent", "tag": "9", "pullPolicy": "Always"}, "imagePullSecrets": [{"name": "pull"}],
              "nodeSelector": {"disk": "ssd"}, "priorityClassName": "high", "affinity": {"nodeAffinity": {}},
              "extraEnv": [{"name": "OPIK_OFFLINE_MAX_AGE", "value": "7d"}],
              "hub": {"storage": {"storageClassName": "fast", "size": "9Gi"}, "podDisruptionBudget": False, "networkPolicy": {"enabled": False}}}
    rendered = render(CHART, "opik-hub", values)
    keep("settings.yaml", rendered)
    assert sorted(one["kind"] for one in rendered) == ["Service", "StatefulSet"], rendered
    spec = rendered[-1]["spec"] if rendered[-1]["kind"] == "StatefulSet" else rendered[0]["spec"]
    pod = spec["template"]["spec"]
    agent = pod["containers"][0]
    env = {one["name"]: one for one in agent["env"]}
    assert agent["image"] == "registry.test/agent:9" and agent["imagePullPolicy"] == "Always", agent
    assert env["OPIK_OFFLINE_INTAKE_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "token"}, env
    assert env["OPIK_OFFLINE_MAX_AGE"]["value"] == "7d" and pod["nodeSelector"] == {"disk": "ssd"} and pod["priorityClassName"] == "high", pod
    file = env["OPIK_OFFLINE_ENCRYPTION_KEY_FILE"]["value"]
    mounts = {mount["mountPath"]: mount["name"] for mount in agent["volumeMounts"]}
    volume = next(one for one in pod["volumes"] if one["name"] == mounts[os.path.dirname(file)])["secret"]
    # The agent refuses a key that others can read.
    assert volume["defaultMode"] == 0o440 and volume["items"][0]["path"] == os.path.basename(file), volume
    claim = spec["volumeClaimTemplates"][0]["spec"]
    assert claim["storageClassName"] == "fast" and claim["resources"]["requests"]["storage"] == "9Gi", claim
    direct = render(CHART, "opik-edge", {"mode": "daemonset", "auth": {"token": "t"}, "daemonset": {"hub": False, "hostPort": 7000}})
    keep("direct.yaml", direct)
    assert "hub-token" not in json.dumps(direct) and '"hostPort": 7000' in json.dumps(direct), direct


def useless_values_are_refused():
    for values, words in (({"mode": "hub"}, "auth.token"), ({"mode": "daemonset", "auth": {"token": "t"}}, "auth.hubToken"),
                          ({"mode": "hubb"}, "mode"), ({"mode": "none", "hub": {"upstream": "opik:8080"}}, "upstream"),
                          ({"mode": "none", "hub": {"maxSise": "1GiB"}}, "maxSise")):
        try:
            render(CHART, "opik-hub", values)
        except Refused as refused:
            assert words in str(refused), f"the error does not name {words}: {refused}"
        else:
            raise AssertionError(f"{values} is not refused")


def examples(text):
    """The YAML blocks of the README, by their first line."""
    return {block.strip().split("\n")[0].strip(): block for block in re.findall(r"```yaml\n(.*?)```", text, re.S)}


def a_sidecar_agrees_with_the_manifest():
    blocks = examples(pathlib.Path("contrib/helm/README.md").read_text())
    with tempfile.TemporaryDirectory() as folder:
        chart = pathlib.Path(folder) / "app"
        (chart / "templates").mkdir(parents=True)
        shutil.copytree(CHART, chart / "charts/opik-offline")
        (chart / "Chart.yaml").write_text("apiVersion: v2\nname: app\nversion: 1.0.0\n" + blocks["dependencies:"])
        (chart / "values.yaml").write_text(blocks["opik-offline:"])
        (chart / "templates/app.yaml").write_text(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: app\nspec:\n  selector:\n    matchLabels: {opik-offline/role: edge}\n"
            "  template:\n" + blocks["metadata:"])
        rendered = render(chart, "app", {})
    assert [one["kind"] for one in rendered] == ["Deployment"], rendered
    keep("sidecar.yaml", rendered)
    expected = resources("edge-sidecar")["Deployment"]["spec"]["template"]
    ours = rendered[0]["spec"]["template"]
    agree(expected["spec"], ours["spec"], "sidecar")
    assert ours["metadata"]["labels"].items() <= expected["metadata"]["labels"].items(), ours


found = lint(CHART, {"auth": {"token": "t"}})
assert not found, found
checks = [modes_agree_with_the_manifests, settings_reach_the_pods, useless_values_are_refused, a_sidecar_agrees_with_the_manifest]
for check in checks:
    check()
print("helm" if PROGRAM else "Helm as a library")
