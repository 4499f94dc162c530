"""An assistant that talks to Opik's MCP server over its standard input and output.

Its arguments are the command that starts the server.
"""

import json
import subprocess
import sys

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
use("list-projects", page=1, size=10)
traces = use("list-traces", projectName="seeded", page=1, size=10)
listed = next(json.loads(text) for text in traces if text.lstrip().startswith(("[", "{")))
ids = [trace["id"] for trace in (listed if isinstance(listed, list) else listed.get("content", listed.get("traces")))]
use("get-trace-by-id", traceId=ids[0])
use("add-trace-feedback", traceId=ids[0], scores=[{"name": "helpful", "value": 0.5, "reason": "Grüße 你好"}])
halfway()
for trace in ids:
    use("add-trace-feedback", traceId=trace, scores=[{"name": "relevance", "value": 1}])
server.stdin.close()
server.wait(timeout=60)
