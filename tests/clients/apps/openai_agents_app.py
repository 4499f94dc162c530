"""An application of the OpenAI Agents SDK with Opik's tracing processor and a model that answers from a list."""

import asyncio

import opik
from agents import Agent, Model, ModelResponse, Runner, Usage, function_tool, set_trace_processors, trace
from halves import halfway
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from opik.integrations.openai.agents import OpikTracingProcessor

PROJECT = "agents-test"


def message(text):
    content = [ResponseOutputText(text=text, type="output_text", annotations=[])]
    return ResponseOutputMessage(id="msg", content=content, role="assistant", status="completed", type="message")


class FakeModel(Model):
    """Asks for the weather first, and answers when it has been told."""

    async def get_response(self, system_instructions, input, *args, **kwargs):
        told = [item for item in input if isinstance(item, dict) and item.get("type") == "function_call_output"]
        if told:
            output = [message(f"It is {told[-1]['output']}. Grüße 你好")]
        else:
            call = {"name": "weather", "arguments": '{"city": "Bergen"}', "call_id": "call", "id": "fc"}
            output = [ResponseFunctionToolCall(type="function_call", **call)]
        usage = Usage(requests=1, input_tokens=11, output_tokens=7, total_tokens=18)
        return ModelResponse(output=output, usage=usage, response_id=None)

    def stream_response(self, *args, **kwargs):
        raise NotImplementedError


@function_tool
def weather(city: str) -> str:
    """Tells the weather."""
    return f"raining in {city}"


agent = Agent(name="Meteorologist", instructions="Tell the weather.", model=FakeModel(), tools=[weather])


async def half(run):
    for number in range(2):
        with trace(f"weather {run}", group_id=f"thread-{run}", metadata={"number": number}):
            for question in ["How is it?", "And now?"]:
                result = await Runner.run(agent, question)
                print(result.final_output)


processor = OpikTracingProcessor(project_name=PROJECT)
set_trace_processors([processor])
asyncio.run(half("first"))
processor.force_flush()
halfway()
asyncio.run(half("second"))
print("flushed", processor.force_flush())
opik.flush_tracker()
