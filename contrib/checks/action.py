"""Runs the steps of the GitHub Action and of the CI recipes as their runners would, against a server that is away and one that is there.

    python3 contrib/checks/action.py BINARY SERVER

SERVER is the address of something that answers as Opik does: a running agent. Nothing is uploaded, so what would be is searched for the key.
"""
import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

BINARY, SERVER = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
AWAY = "http://127.0.0.1:9/api"
KEY = "key-of-a-person-4711"
SEND = f"""python3 - <<'PY'
import os, urllib.request
body = b'{{"name": "check", "start_time": "2026-11-22T18:00:00Z"}}'
headers = {{"Content-Type": "application/json", "authorization": "{KEY}"}}
answer = urllib.request.urlopen(urllib.request.Request(os.environ["OPIK_URL_OVERRIDE"] + "/v1/private/traces", body, headers))
assert answer.status == 201
PY
"""
ACTION = yaml.safe_load(open("contrib/ci/action/action.yml"))
# The recipes wait for a minute; here the server stays away.
SHORT = {"--timeout 60s": "--timeout 1s", "--timeout 5s": "--timeout 1s"}


def run(script, env, folder):
    for long, short in SHORT.items():
        script = script.replace(long, short)
    path = f"{BINARY.parent}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(folder), "LC_ALL": "C", **env}
    done = subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], env=env, cwd=folder,
                          capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def agent(*arguments, folder):
    env = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run([BINARY, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def value(expression, inputs, temp, outputs):
    """One expression of GitHub's; those that the files use, and no others."""
    expression = expression.strip()
    if found := re.fullmatch(r"inputs\.([a-z-]+)", expression):
        return inputs[found[1]]
    if expression == "runner.temp":
        return str(temp)
    if found := re.fullmatch(r"steps\.([a-z]+)\.outputs\.([a-z]+)", expression):
        return outputs.get(found[1], {}).get(found[2], "")
    if found := re.fullmatch(r"(.*) (==|!=) '([^']*)'", expression):
        return (value(found[1], inputs, temp, outputs) == found[3]) == (found[2] == "==")
    raise AssertionError(f"an expression that this check does not know: {expression}")


def filled(text, *context):
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(value(found[1], *context)), text)


def act(folder, **given):
    """Runs the action; returns the first failing exit code, the outputs, what is uploaded, and what was printed."""
    inputs = {name: spec.get("default") for name, spec in ACTION["inputs"].items()}
    assert given.keys() <= inputs.keys(), given
    inputs.update(given)
    missing = [name for name, spec in ACTION["inputs"].items() if spec.get("required") and inputs[name] is None]
    assert not missing, missing
    temp, outputs, uploads, failed, printed = folder / "temp", {}, [], 0, ""
    temp.mkdir()
    for step in ACTION["runs"]["steps"]:
        context = (inputs, temp, outputs)
        condition = step.get("if", "success()")
        is_always = condition.startswith("always()")
        rest = condition.removeprefix("always()").removeprefix("success()").removeprefix(" && ")
        if (failed and not is_always) or (rest and not value(rest, *context)):
            continue
        if "uses" in step:
            assert step["uses"].startswith("actions/upload-artifact@"), step
            uploads.append(pathlib.Path(filled(step["with"]["path"], *context)))
            continue
        assert "${{" not in step["run"], "an input is pasted into a script"
        file = folder / "output"
        file.write_text("")
        env = {name: filled(text, *context) for name, text in step.get("env", {}).items()}
        code, said = run(step["run"], {**env, "GITHUB_OUTPUT": str(file)}, folder)
        printed += said
        outputs[step.get("id")] = dict(line.split("=", 1) for line in file.read_text().splitlines())
        failed = failed or code
    return failed, outputs, uploads, printed


def in_folder(test):
    with tempfile.TemporaryDirectory() as folder:
        test(pathlib.Path(folder))


def identity(folder):
    code, said = agent("replay", "--make-identity", "identity.txt", folder=folder)
    assert code == 0, said
    return re.search(r"^age1\w+$", said, re.M)[0]


def check_sealed(file, folder, messages):
    """The copy shows nothing, and whoever has the identity gets the messages with their key."""
    assert file.suffix == ".age" and KEY.encode() not in file.read_bytes(), f"{file} can be read by everyone"
    agent("replay", "--from", str(file), "--identity", "identity.txt", "--db", "elsewhere.db", "--upstream", AWAY, "--timeout", "1s",
          folder=folder)
    code, said = agent("status", "--db", "elsewhere.db", "--upstream", AWAY, "--format", "json", "--quiet", folder=folder)
    assert json.loads(said)["backlog"]["messages"] == messages, said


def undelivered_messages_are_sealed(folder):
    recipient = identity(folder)
    code, outputs, uploads, said = act(folder, run=SEND, upstream=AWAY, recipient=recipient)
    assert code == 0 and outputs["deliver"] == {"undelivered": "true"} and len(uploads) == 1, (code, outputs, said)
    store = folder / "temp/opik-offline/messages.db"
    assert KEY.encode() in b"".join(part.read_bytes() for part in store.parent.glob("messages.db*")), "the key is not in the store: no test"
    assert "::warning" in said and KEY not in said, said
    check_sealed(uploads[0], folder, 1)


def a_failing_command_keeps_its_exit_code_and_its_messages(folder):
    code, outputs, uploads, said = act(folder, run=SEND + "exit 7", upstream=AWAY, recipient=identity(folder))
    assert code == 7 and outputs["deliver"] == {"undelivered": "true"} and uploads, (code, outputs, said)


def a_backlog_fails_the_job_if_asked(folder):
    code, _, uploads, said = act(folder, run=SEND, upstream=AWAY, recipient=identity(folder), **{"fail-on-backlog": "true"})
    assert code == 3 and uploads, (code, said)


def a_useless_recipient_fails_before_the_command(folder):
    code, _, uploads, said = act(folder, run="touch was-run", upstream=AWAY, recipient="age1nobody")
    assert code == 2 and not uploads and not (folder / "was-run").exists() and "::error" in said, (code, said)


def delivered_messages_leave_no_artifact(folder):
    code, outputs, uploads, said = act(folder, run=SEND, upstream=f"{SERVER}/api", recipient=identity(folder))
    assert code == 0 and outputs["deliver"] == {"undelivered": "false"} and not uploads, (code, outputs, said)


def the_recipes_keep_only_what_is_sealed(folder):
    recipient = identity(folder)
    github = yaml.safe_load(open("contrib/ci/github-actions.yml"))["jobs"]["evaluate"]
    gitlab = yaml.safe_load(open("contrib/ci/gitlab-ci.yml"))["evaluate"]
    deliver = next(step["run"] for step in github["steps"] if step.get("id") == "deliver")
    kept = [step["with"]["path"] for step in github["steps"] if "upload-artifact" in step.get("uses", "")] + gitlab["artifacts"]["paths"]
    assert len(kept) == 2 and all(path.endswith(".age") for path in kept), kept
    assert not any("cache" in step.get("uses", "") for step in github["steps"]) and "cache" not in gitlab
    recipes = {"opik/opik-backlog.age": deliver, "opik-backlog.age": "\n".join(gitlab["after_script"])}
    for number, (sealed, script) in enumerate(recipes.items()):
        (folder / "opik").mkdir(exist_ok=True)
        env = {"OPIK_OFFLINE_DB": str(folder / f"opik/{number}.db"), "OPIK_OFFLINE_UPSTREAM": AWAY, "OPIK_RECIPIENT": recipient,
               "RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(folder / "output"), "SEND": SEND}
        code, said = run('opik-offline agent -- bash -c "$SEND"', env, folder)
        assert code == 0, said
        code, said = run(script, env, folder)
        assert code == 0, said
        check_sealed(folder / sealed, folder, number + 1)
    assert "sealed=true" in (folder / "output").read_text()


def the_cached_store_shows_nothing(folder):
    """The recipe of docs/recipes.md, with a server that is away, and without its secret."""
    block = next(block for block in re.findall(r"```yaml\n(.*?)```", pathlib.Path("docs/recipes.md").read_text(), re.S) if "actions/cache" in block)
    cache, step = yaml.safe_load(block)
    tests = folder / "bin/pytest"
    tests.parent.mkdir()
    tests.write_text(f"#!/usr/bin/env bash\n[ -z \"${{OPIK_URL_OVERRIDE:-}}\" ] || {SEND}touch tested\n")
    tests.chmod(0o755)
    script = f"PATH={tests.parent}:$PATH\n" + step["run"]
    for secret in ("", base64.b64encode(os.urandom(32)).decode()):
        env = {name: text.replace("${{ secrets.OPIK_OFFLINE_KEY }}", secret).replace("${{ runner.temp }}", str(folder))
               for name, text in step["env"].items()}
        code, said = run(script, {**env, "RUNNER_TEMP": str(folder), "OPIK_OFFLINE_UPSTREAM": AWAY}, folder)
        assert code == 0 and (folder / "tested").exists(), said
        (folder / "tested").unlink()
    files = list((folder / cache["with"]["path"]).iterdir())
    assert files and not any(KEY.encode() in file.read_bytes() for file in files), "the cache shows the key"
    code, said = agent("status", "--db", str(files[0].parent / "messages.db"), "--upstream", AWAY, "--format", "json", "--quiet", folder=folder)
    assert json.loads(said)["backlog"]["messages"] == 1, said


passed = [the_cached_store_shows_nothing, undelivered_messages_are_sealed, a_failing_command_keeps_its_exit_code_and_its_messages, a_backlog_fails_the_job_if_asked,
          a_useless_recipient_fails_before_the_command, delivered_messages_leave_no_artifact, the_recipes_keep_only_what_is_sealed]
for test in passed:
    in_folder(test)
print(f"{len(passed)} cases")
