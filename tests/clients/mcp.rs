//! Opik's MCP server, which assistants start.

use crate::install::{here, npm};
use crate::scenario::{Client, Reads, Scenario, is_as_without_an_agent_in};

/// The version whose settings the README names.
const OPIK_MCP: &str = "opik-mcp@2.0.2";

/// What it reads, nobody gets without the server.
#[test]
fn opik_mcp() {
    let command = npm(OPIK_MCP).join("opik-mcp/build/cli.js").display().to_string();
    let app = here("apps/mcp_app.py").display().to_string();
    let args = [app, "node".into(), command, "--toolsets=all".into(), "--transport=stdio".into()];
    let client = Client::program("python3".into(), args.into()).reading(Reads::McpUrl).seeded();
    let client = client.env("OPIK_SELF_HOSTED", "true").env("OPIK_WORKSPACE_NAME", "default");
    is_as_without_an_agent_in(&client, &[Scenario::Online, Scenario::Middle, Scenario::Wrapped]);
}
