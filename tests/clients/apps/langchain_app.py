"""A LangChain application with Opik's tracer and models that answer from a list."""

import opik
from halves import halfway
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from opik.integrations.langchain import OpikTracer

PROJECT = "langchain-test"


@tool
def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


def fails(_):
    raise ValueError("as it is meant to")


def half(run):
    llm = PromptTemplate.from_template("Say {word}") | FakeListLLM(responses=["Grüße 你好", "two"]) | StrOutputParser()
    chat = ChatPromptTemplate.from_messages([("system", "You are {mood}."), ("human", "{word}")])
    chat = chat | FakeListChatModel(responses=["one", "two"])
    tracer = OpikTracer(project_name=PROJECT, tags=["langchain", run], metadata={"run": run}, thread_id=f"thread-{run}")
    config = {"callbacks": [tracer]}
    for word in ["hello", "bye"]:
        print(llm.invoke({"word": word}, config=config))
    print(chat.invoke({"word": "hello", "mood": "kind"}, config=config).content)
    print("".join(chunk.content for chunk in chat.stream({"word": "hello", "mood": "kind"}, config=config)))
    both = RunnableParallel(first=llm, second=RunnableLambda(lambda given: multiply.invoke({"a": 6, "b": 7})))
    print(both.invoke({"word": "parallel"}, config=config)["second"])
    try:
        (llm | RunnableLambda(fails)).invoke({"word": "wrong"}, config=config)
    except ValueError as error:
        print("failed", error)
    tracer.flush()
    for trace in tracer.created_traces():
        trace.log_feedback_score("quality", 0.5, reason=run)
    print(len(tracer.created_traces()), "traces")
    opik.flush_tracker()


half("first")
halfway()
half("second")
client = opik.get_global_client() if hasattr(opik, "get_global_client") else opik.Opik()
print("flushed", client.flush())
client.end()
