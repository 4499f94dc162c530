"""The Python SDK's own replay of spans that it stored, to the server that OPIK_URL_OVERRIDE names.

    sdk_replay.py COUNT SPANS     prints {"seconds": ...}: from the start of the replay until everything was sent

Spans that it coalesced stay in its store at status 1, so whether that is empty says nothing.
"""

import json
import sys
import time

import opik
from opik.message_processing import messages
from opik.message_processing.replay import db_manager
from opik.rest_api.types import span_write

from sdk_store import span

count, spans = int(sys.argv[1]), int(sys.argv[2])
client = opik.Opik(project_name="demo-project")
manager = client._streamer._fallback_replay_manager
store = manager.database_manager
for number in range(count):
    message = span(number)
    if spans > 1:
        batch = [span_write.SpanWrite(**span(number).as_payload_dict()) for _ in range(spans)]
        message = messages.CreateSpansBatchMessage(batch=batch)
    message.message_id = number
    manager._next_message_id = number + 1
    store.register_message(message, status=db_manager.MessageStatus.failed)
started = time.perf_counter()
store.replay_failed_messages(client._streamer.put)
assert client.flush(timeout=600), "the SDK did not send everything in ten minutes"
print(json.dumps({"seconds": time.perf_counter() - started}))
client.end()
