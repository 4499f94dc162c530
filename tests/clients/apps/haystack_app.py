"""A Haystack pipeline with Opik's connector and a generator that answers from a list."""

import opik
from halves import halfway
from haystack import Pipeline, component
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage
from opik.integrations.haystack import OpikConnector


@component
class FakeGenerator:
    @component.output_types(replies=list[ChatMessage])
    def run(self, messages: list[ChatMessage]):
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        text = f"Grüße 你好, {messages[-1].text}"
        return {"replies": [ChatMessage.from_assistant(text, meta={"model": "gpt-4o-mini", "usage": usage})]}


pipeline = Pipeline()
pipeline.add_component("tracer", OpikConnector("haystack pipeline", project_name="haystack-test"))
pipeline.add_component("prompt", ChatPromptBuilder())
pipeline.add_component("llm", FakeGenerator())
pipeline.connect("prompt.prompt", "llm.messages")


def half(run):
    for place in ["Bergen", "Kyoto"]:
        template = [ChatMessage.from_system("Answer in German."), ChatMessage.from_user("Tell me about {{place}}")]
        data = {"prompt": {"template_variables": {"place": f"{place} {run}"}, "template": template}}
        result = pipeline.run(data=data)
        print(result["llm"]["replies"][0].text)
        print(result["tracer"]["project_url"])


half("first")
halfway()
half("second")
opik.flush_tracker()
