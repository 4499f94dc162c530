//! Opik's MCP server, which assistants start.

use crate::install::{here, newer_python, python_by};
use crate::scenario::{Client, Reads, Scenario, is_as_without_an_agent_in};
use crate::support::not_run::not_run;

/// It needs a newer Python than the other clients.
const PYTHON: &str = "python3.13";

/// It reads first: in the scenarios in which the server is away from the beginning, nobody gets that.
#[test]
fn opik_mcp() {
    let Some(interpreter) = newer_python(PYTHON) else {
        return not_run("no Python 3.13: install one, or `pyenv install 3.13`");
    };
    let bin = python_by(&interpreter, "mcp");
    let args = [here("apps/mcp_app.py"), bin.join("opik-mcp")].map(|path| path.display().to_string());
    let client = Client::program("python3".into(), args.into()).reading(Reads::McpUrl).seeded();
    let client = client.env("OPIK_MCP_ANALYTICS_ENABLED", "false").env("OPIK_MCP_SENTRY_ENABLED", "false");
    let client = client.env("OPIK_MCP_LOG_LEVEL", "WARNING");
    is_as_without_an_agent_in(&client, &[Scenario::Online, Scenario::Middle, Scenario::Wrapped]);
}
