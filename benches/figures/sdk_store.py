"""The Python SDK's own store: how fast it takes spans, and what they take on the disk.

    sdk_store.py COUNT FOLDER     prints {"per_second": ..., "bytes_per_message": ...}
"""

import datetime
import json
import os
import random
import sys
import time
import uuid

from opik.message_processing import messages
from opik.message_processing.replay import db_manager

WORDS = ("the of and to in a is that for it as was with be by on not he his but at are this have from or had an they "
         "document question answer retrieval context embedding model token prompt completion customer invoice").split()


def text(size):
    out = ""
    while len(out) < size:
        out += random.choice(WORDS) + " "
    return out[:size]


def span(number):
    now = datetime.datetime.now(datetime.timezone.utc)
    message = messages.CreateSpanMessage(
        span_id=str(uuid.uuid4()), trace_id=str(uuid.uuid4()), project_name="demo-project",
        parent_span_id=str(uuid.uuid4()), name="chat_completion_create", start_time=now, end_time=now,
        input={"messages": [{"role": "user", "content": text(900)}]},
        output={"choices": [{"message": {"role": "assistant", "content": text(440)}}]},
        metadata={"temperature": 0.2, "created_from": "openai"}, tags=["openai"], type="llm",
        usage={"prompt_tokens": 900, "completion_tokens": 440, "total_tokens": 1340}, model="gpt-4o-mini",
        provider="openai", error_info=None, total_cost=None, last_updated_at=now, source="sdk")
    message.message_id = number
    return message


def write(count, folder):
    path = os.path.join(folder, "opik_messages.db")
    store = db_manager.DBManager(batch_size=50, batch_replay_delay=0.5, db_file=path)
    spans = [span(number) for number in range(count)]
    started = time.perf_counter()
    for message in spans:
        store.register_message(message, status=db_manager.MessageStatus.failed)
    took = time.perf_counter() - started
    print(json.dumps({"per_second": count / took, "bytes_per_message": os.path.getsize(path) / count}))


if __name__ == "__main__":
    write(int(sys.argv[1]), sys.argv[2])
