"""An application that protects itself with `opik_offline`, driven line by line from standard input like app.py.

Commands, one a line; each is answered by lines that say what the server has to know in the end, and by one line
{"done": "<command>", ...}:

    import            imports the Opik SDK
    protect           opik_offline.protect(); "protected" says what it returned
    auto              import opik_offline.auto
    traces N          N calls of a tracked function: the global client
    client            makes a client, which `held` uses
    client URL        the same with an explicit host
    held N            N traces made by hand with that client
    threads N         N threads that protect and trace at once
    fork N            a forked child, which makes N traces, also with the client, flushes and ends as a script does
    processes M N     the same in each of two children of multiprocessing with the start method M; spawned ones have no client
    flush SECONDS     opik_offline.flush(); "delivered" says what it returned
    sdkflush          the SDK's own flush
    status            opik_offline.status()
    watch SECONDS     how often the agent is looked after
    unprotect         opik_offline.unprotect()
    env               where the environment leads
    quit              ends the process as a script ends
"""

import datetime
import json
import multiprocessing
import os
import sys
import threading

PROJECT = "protected-test"
RUN = sys.argv[1] if len(sys.argv) > 1 else "run"


def say(**line):
    os.write(1, (json.dumps(line) + "\n").encode())


def traced(number):
    import opik
    from opik import opik_context

    @opik.track(project_name=PROJECT)
    def answer(question):
        trace = opik_context.get_current_trace_data()
        say(kind="trace", id=trace.id, fields={"input": {"question": question}})
        span = opik_context.get_current_span_data()
        say(kind="span", id=span.id, fields={"trace_id": trace.id})
        return {"answer": 42}

    for n in range(number):
        answer("{} {}".format(os.getpid(), n))


def held(client, number):
    for n in range(number):
        fields = {"input": {"held": n}}
        # In one request: an update right after its create would overtake it inside the SDK.
        now = datetime.datetime.now(datetime.timezone.utc)
        trace = client.trace(name="held", input=fields["input"], start_time=now, end_time=now)
        say(kind="trace", id=trace.id, fields=fields)


def in_child(number, client=None):
    import opik
    import opik_offline

    traced(number)
    if client is not None:
        # The parent's client, whose threads are not in this process.
        held(client, number)
        client.flush()
    opik.flush_tracker()
    if not opik_offline.status():
        # Spawned: nothing but the environment leads it.
        assert "OPIK_OFFLINE_WRAPPED_BY" in os.environ, os.environ


class App:
    def __init__(self):
        self.client = None

    def do_import(self):
        import opik

        return {"version": opik.__version__}

    def do_protect(self):
        import opik_offline

        return describe(opik_offline.protect())

    def do_auto(self):
        import opik_offline.auto

        return describe(opik_offline.status())

    def do_traces(self, number):
        traced(int(number))

    def do_client(self, host=None):
        import opik

        self.client = opik.Opik(project_name=PROJECT, host=host)

    def do_held(self, number):
        held(self.client, int(number))

    def do_threads(self, number):
        import opik_offline

        def work():
            assert opik_offline.protect(), opik_offline.status()
            traced(2)

        threads = [threading.Thread(target=work) for _ in range(int(number))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def do_fork(self, number):
        child = os.fork()
        if child == 0:
            in_child(int(number), self.client)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        return {"code": status}

    def do_processes(self, method, number):
        context = multiprocessing.get_context(method)
        client = self.client if method == "fork" else None
        children = [context.Process(target=in_child, args=(int(number), client)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        return {"codes": [child.exitcode for child in children]}

    def do_flush(self, seconds):
        import opik_offline

        return opik_offline.flush(float(seconds))._asdict()

    def do_sdkflush(self):
        import opik

        opik.flush_tracker()
        if self.client is not None:
            self.client.flush()

    def do_status(self):
        import opik_offline

        return describe(opik_offline.status())

    def do_watch(self, seconds):
        from opik_offline import _protection

        _protection.WATCH_INTERVAL = float(seconds)

    def do_unprotect(self):
        import opik_offline

        opik_offline.unprotect()

    def do_env(self):
        return {"url": os.environ.get("OPIK_URL_OVERRIDE")}


def describe(status):
    return dict(vars(status), shown=repr(status))


def main():
    app = App()
    say(done="start")
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "quit":
            say(done="quit")
            return
        result = getattr(app, "do_" + command)(*arguments)
        say(done=command, **(result or {}))


if __name__ == "__main__":
    main()
