"""A DSPy program with Opik's callback and a model that answers from a list."""

import dspy
import opik
from dspy.utils import DummyLM
from halves import halfway
from opik.integrations.dspy.callback import OpikCallback

dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
callback = OpikCallback(project_name="dspy-test", log_graph=True)


class Answers(dspy.Module):
    def __init__(self):
        super().__init__()
        self.thinks = dspy.ChainOfThought("question -> answer")
        self.shortens = dspy.Predict("text -> short")

    def forward(self, question):
        long = self.thinks(question=question)
        return self.shortens(text=long.answer)


def half(run):
    replies = [{"reasoning": "It is known.", "answer": f"Grüße 你好 {run}"}, {"short": "Hi"}] * 3
    lm = DummyLM(replies)
    lm.model = "fake/model"  # the callback takes it apart into provider and model
    dspy.configure(lm=lm, callbacks=[callback])
    program = Answers()
    for number in range(3):
        print(program(question=f"{run} question {number}").short)
    callback.flush()


half("first")
halfway()
half("second")
opik.flush_tracker()
