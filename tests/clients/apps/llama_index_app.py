"""A LlamaIndex application with Opik's callback handler and models that make up their answers."""

import opik
from halves import halfway
from llama_index.core import Document, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from opik.integrations.llama_index import LlamaIndexCallbackHandler

handler = LlamaIndexCallbackHandler(project_name="llama-index-test")
manager = CallbackManager([handler])
Settings.callback_manager = manager
Settings.llm = MockLLM(max_tokens=16, callback_manager=manager)
Settings.embed_model = MockEmbedding(embed_dim=8, callback_manager=manager)
Settings.tokenizer = str.split


def half(run):
    documents = [Document(text=f"Text {number} of {run}. Grüße 你好", id_=f"{run}-{number}") for number in range(3)]
    # All embeddings are the same, so several documents would come in any order.
    for index in [SummaryIndex.from_documents(documents), VectorStoreIndex.from_documents(documents[:1])]:
        engine = index.as_query_engine()
        for question in ["What is it?", "And why?"]:
            print(str(engine.query(f"{run}: {question}"))[:40])
    handler.flush()


half("first")
halfway()
half("second")
opik.flush_tracker()
