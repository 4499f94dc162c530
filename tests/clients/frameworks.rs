//! Frameworks with the integrations of the Opik Python SDK, each with a model that answers from a list.

use crate::install::python;
use crate::scenario::{Client, Scenario, is_as_without_an_agent, is_as_without_an_agent_in};

fn framework(script: &str) -> Client {
    Client::script(python("frameworks").join("python"), script)
}

#[test]
fn langchain() {
    is_as_without_an_agent(&framework("langchain_app.py"));
}

#[test]
fn openai_agents() {
    is_as_without_an_agent(&framework("openai_agents_app.py"));
}

#[test]
fn dspy() {
    is_as_without_an_agent(&framework("dspy_app.py"));
}

#[test]
fn llama_index() {
    is_as_without_an_agent(&framework("llama_index_app.py"));
}

#[test]
fn haystack() {
    let client = framework("haystack_app.py").env("HAYSTACK_CONTENT_TRACING_ENABLED", "true");
    // The connector's output is part of the trace, and its link names the address that the SDK was given: the agent's.
    is_as_without_an_agent(&client.volatile(&["project_url"]));
}

/// Without the server they fail closed, as they do without an agent.
#[test]
fn guardrails() {
    is_as_without_an_agent_in(&framework("guardrails_app.py"), &[Scenario::Online, Scenario::Wrapped]);
}
