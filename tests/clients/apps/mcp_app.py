"""An assistant that talks to Opik's MCP server over its standard input and output.

Its arguments are the command that starts the server.
"""

import datetime
import json
import secrets
import subprocess
import sys
import time
import uuid

from halves import halfway

server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
count = 0


def tell(method, **params):
    server.stdin.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}) + "\n")
    server.stdin.flush()


def ask(method, **params):
    global count
    count += 1
    line = json.dumps({"jsonrpc": "2.0", "id": count, "method": method, "params": params})
    server.stdin.write(line + "\n")
    server.stdin.flush()
    for line in server.stdout:
        answer = json.loads(line)
        if answer.get("id") == count:
            return answer.get("result", answer)
    sys.exit("the MCP server ended")


def use(tool, **arguments):
    result = ask("tools/call", name=tool, arguments=arguments)
    texts = [part.get("text", "") for part in result.get("content", [])]
    print(tool, "\n".join(texts) or json.dumps(result))
    return texts


ask("initialize", protocolVersion="2025-03-26", capabilities={}, clientInfo={"name": "test", "version": "1"})
tell("notifications/initialized")
print(sorted(tool["name"] for tool in ask("tools/list")["tools"]))


def new_id():
    """A UUID of version 7, as Opik's clients make them."""
    milliseconds, rest = int(time.time() * 1000), secrets.randbits(80)
    return str(uuid.UUID(int=(milliseconds << 80 | rest) & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62))


def half(run):
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    id = new_id()
    use("write", operation="trace.create", data={
        "id": id, "project_name": "mcp-test", "name": f"trace {run}", "start_time": now, "end_time": now,
        "input": {"text": "Grüße 你好"}, "tags": [run]})
    use("write", operation="span.create", data={
        "project_name": "mcp-test", "trace_id": id, "name": "generate", "type": "llm", "start_time": now, "end_time": now})
    use("write", operation="score.create", data={
        "target": "trace", "target_id": id, "name": "quality", "value": 0.5, "project_name": "mcp-test"})


use("list", entity_type="project")
use("list", entity_type="trace", project_name="seeded")
half("first")
halfway()
half("second")
server.stdin.close()
server.wait(timeout=60)
