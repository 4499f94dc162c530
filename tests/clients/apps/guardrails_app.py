"""An application with Opik's guardrails, which ask a service of their own below the server's origin."""

import opik
from halves import halfway
from opik import exceptions
from opik.guardrails import PII, Guardrail, Topic

guard = Guardrail(guards=[Topic(restricted_topics=["finance"], threshold=0.8), PII(blocked_entities=["CREDIT_CARD"])])


@opik.track(project_name="guardrails-test")
def answer(text):
    try:
        guard.validate(text)
    except exceptions.GuardrailValidationFailed:
        return "blocked"
    except exceptions.GuardrailValidationError as error:
        return f"failed closed: {error}"
    return "passed"


def half(run):
    for text in ["How is the weather?", "Here is my card number"]:
        print(answer(f"{text} ({run})"))
    opik.flush_tracker()


half("first")
halfway()
half("second")
