"""An application that uses the published Opik Python SDK, driven line by line from standard input.

Commands, one a line; each is answered by any number of JSON lines that say what the server has to know in the end, and
by one line {"done": "<command>"}:

    traces N    N calls of a tracked function with two nested tracked functions
    manual N    N traces made by hand, each with a span and a span within that span; ended by the next `update`
    update      updates and ends everything made by `manual` that was not updated yet
    scores      feedback scores on every trace, every first span and every thread that has none yet
    attach N    N traces, each with a text file and a larger one of random bytes, and a span with a third
    flush       waits until the SDK has sent everything; "flushed" says whether it believes so
    quit        ends the client and the process

Files are {"file": name, "id": entity, "sha256": ..., "bytes": ...}.

Expectations are {"kind": "trace"|"span", "id": ..., "fields": {...}} and
{"kind": "trace"|"span"|"thread", "id": ..., "score": name, "value": number}. A later line about the same thing adds to
the earlier one and wins.

The SDK sends with several threads, and an update that follows its create too soon overtakes it inside the SDK. That is
not what is tested here, so everything that needs an order is flushed in between.
"""

import hashlib
import json
import os
import sys

import opik
from opik import opik_context

RUN = sys.argv[1]
PROJECT = "sdk-test"

client = opik.Opik(project_name=PROJECT)
manual = []  # (trace, outer span, inner span) that wait for their update
unscored = []  # (trace id, span id, thread id or None)
count = 0


def say(**line):
    print(json.dumps(line), flush=True)


def expect(kind, id, **fields):
    say(kind=kind, id=id, fields=fields)


def flush():
    opik.flush_tracker()  # says nothing about how it went
    return client.flush()


@opik.track(type="tool", project_name=PROJECT)
def retrieve(question):
    span = opik_context.get_current_span_data()
    documents = {"documents": [f"{question} #{n}" for n in range(3)]}
    expect("span", span.id, trace_id=span.trace_id, parent_span_id=span.parent_span_id, name="retrieve", type="tool",
           input={"question": question}, output=documents)
    return documents


@opik.track(type="llm", project_name=PROJECT)
def generate(prompt):
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    opik_context.update_current_span(model="gpt-4o-mini", provider="openai", usage=usage, metadata={"temperature": 0.2})
    span = opik_context.get_current_span_data()
    expect("span", span.id, trace_id=span.trace_id, parent_span_id=span.parent_span_id, name="generate", type="llm",
           input={"prompt": prompt}, output={"output": "Grüße 你好 " + prompt}, model="gpt-4o-mini", provider="openai")
    return "Grüße 你好 " + prompt


@opik.track(project_name=PROJECT)
def answer(question, thread_id):
    opik_context.update_current_trace(tags=["sdk", RUN], thread_id=thread_id)
    retrieve(question)
    text = generate(f"answer {question}")
    trace, span = opik_context.get_current_trace_data(), opik_context.get_current_span_data()
    asked = {"question": question, "thread_id": thread_id}
    expect("trace", trace.id, name="answer", project_name=PROJECT, input=asked, output={"output": text},
           tags=["sdk", RUN], thread_id=thread_id)
    expect("span", span.id, trace_id=trace.id, name="answer", input=asked, output={"output": text})
    unscored.append((trace.id, span.id, thread_id))
    return text


def traces(number):
    global count
    for _ in range(number):
        count += 1
        answer(f"{RUN} question {count}", f"{RUN}-thread-{count // 4}")


def by_hand(number):
    global count
    for _ in range(number):
        count += 1
        # What json.dumps writes and strict parsers refuse.
        odd = {"nan": float("nan"), "big": 2**70, "text": "Grüße\u0000\n"}
        trace = client.trace(name=f"manual {count}", input={"n": count}, metadata=odd, tags=[RUN])
        outer = trace.span(name="outer", type="tool", input={"n": count})
        inner = outer.span(name="inner", type="llm", input={"m": [count, None, {"deep": None}]})
        expect("trace", trace.id, name=f"manual {count}", project_name=PROJECT, input={"n": count}, metadata=odd, tags=[RUN])
        expect("span", outer.id, trace_id=trace.id, name="outer", type="tool", input={"n": count})
        expect("span", inner.id, trace_id=trace.id, parent_span_id=outer.id, name="inner", type="llm",
               input={"m": [count, None, {"deep": None}]})
        manual.append((trace, outer, inner))
        unscored.append((trace.id, inner.id, None))


def update():
    flush()
    for trace, outer, inner in manual:
        trace.update(metadata={"updated": True})
        outer.update(metadata={"updated": True})
        inner.end(output={"answer": "done"}, usage={"total_tokens": 3}, model="m")
        expect("trace", trace.id, metadata={"updated": True})
        expect("span", outer.id, metadata={"updated": True})
        expect("span", inner.id, output={"answer": "done"}, model="m")
    flush()
    for trace, outer, _ in manual:
        outer.end(output={"outer": "done"})
        trace.end(output={"done": trace.id})
        expect("span", outer.id, output={"outer": "done"})
        expect("trace", trace.id, output={"done": trace.id}, metadata={"updated": True})
    manual.clear()


def scores():
    trace_scores = [{"id": trace, "name": "quality", "value": n / 8, "reason": RUN} for n, (trace, _, _) in enumerate(unscored)]
    span_scores = [{"id": span, "name": "relevance", "value": 1.0} for _, span, _ in unscored]
    threads = dict.fromkeys(thread for _, _, thread in unscored if thread)
    thread_scores = [{"id": thread, "name": "resolved", "value": 0.5, "category_name": "yes"} for thread in threads]
    if trace_scores:
        client.log_traces_feedback_scores(trace_scores, project_name=PROJECT)
        client.log_spans_feedback_scores(span_scores, project_name=PROJECT)
    if thread_scores:
        client.log_threads_feedback_scores(thread_scores, project_name=PROJECT)
    for kind, items in (("trace", trace_scores), ("span", span_scores), ("thread", thread_scores)):
        for item in items:
            say(kind=kind, id=item["id"], score=item["name"], value=float(item["value"]))
    unscored.clear()


def attach(number, large_bytes=1_300_000):
    global count
    for _ in range(number):
        count += 1
        small, large, odd = b"Gr\xfc\xdfe" * 100, os.urandom(large_bytes), os.urandom(70_000)
        files = ((f"small {count}.txt", small, "text/plain"), (f"large-{count}.bin", large, "application/octet-stream"))
        trace = client.trace(name=f"attached {count}", input={"n": count}, tags=[RUN], attachments=[
            opik.Attachment(data=data, file_name=name, content_type=kind) for name, data, kind in files])
        span = trace.span(name="attached", attachments=[
            opik.Attachment(data=odd, file_name=f"odd-{count}.bin", content_type="image/png")])
        expect("trace", trace.id, name=f"attached {count}", project_name=PROJECT, input={"n": count}, tags=[RUN])
        expect("span", span.id, trace_id=trace.id, name="attached")
        for id, name, data in [(trace.id, name, data) for name, data, _ in files] + [(span.id, f"odd-{count}.bin", odd)]:
            say(file=name, id=id, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


say(done="start")
for line in sys.stdin:
    command, *arguments = line.split()
    result = {}
    if command == "traces":
        traces(int(arguments[0]))
    elif command == "manual":
        by_hand(int(arguments[0]))
    elif command == "update":
        update()
    elif command == "scores":
        scores()
    elif command == "attach":
        attach(*map(int, arguments))
    elif command == "flush":
        result["flushed"] = flush()
    elif command == "quit":
        break
    else:
        sys.exit(f"unknown command {line!r}")
    say(done=command, **result)

flush()
client.end()
say(done="quit")
