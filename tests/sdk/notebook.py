"""A notebook in a real Jupyter kernel, driven line by line from standard input like app.py. The interpreter has nbclient and
ipykernel; the Opik SDK and `opik_offline` are on PYTHONPATH.

    load          %load_ext opik_offline
    traces N      a cell with N calls of a tracked function
    flush S       a cell with opik_offline.flush(S)
    status        a cell with opik_offline.status()
    restart       restarts the kernel, as from the menu
    quit          ends the kernel
"""

import json
import os
import sys

import nbformat
from nbclient import NotebookClient
from nbclient.util import run_sync

CELLS = {
    "load": "%load_ext opik_offline",
    "traces": """
import json, opik
from opik import opik_context
@opik.track(project_name="protected-test")
def answer(question):
    trace, span = opik_context.get_current_trace_data(), opik_context.get_current_span_data()
    print(json.dumps(dict(kind="trace", id=trace.id, fields={{"input": {{"question": question}}}})))
    print(json.dumps(dict(kind="span", id=span.id, fields={{"trace_id": trace.id}})))
for n in range({0}):
    answer(n)
opik.flush_tracker()
""",
    "flush": "import json, opik_offline; print(json.dumps(dict(result=opik_offline.flush({0})._asdict())))",
    "status": "import json, opik_offline; print(json.dumps(dict(result=vars(opik_offline.status()))))",
}


def say(**line):
    os.write(1, (json.dumps(line) + "\n").encode())


def run(client, code):
    """Runs a cell, passes on what it says to the test, and returns its result."""
    cell = nbformat.v4.new_code_cell(code)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1)
    result = {}
    for output in cell.outputs:
        for line in output.get("text", "").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                result["shown"] = line
                continue
            if "result" in said:
                result.update(said["result"])
            else:
                say(**said)
    return result


def main():
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=600, kernel_name="python3")
    with client.setup_kernel():
        say(done="start")
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "quit":
                break
            if command == "restart":
                run_sync(client.km.restart_kernel)()
                run_sync(client.kc.wait_for_ready)(timeout=600)
                say(done=command)
                continue
            say(done=command, **run(client, CELLS[command].format(*arguments)))
    say(done="quit")


if __name__ == "__main__":
    main()
