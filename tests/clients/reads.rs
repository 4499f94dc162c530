//! What clients read: routes that the fake server gets for them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::fake_opik::{Answer, FakeOpik, Received, State, Then, When};

/// Adds the routes to a server.
pub fn serve(server: &FakeOpik) {
    server.always(When::any().method("GET"), Then::respond(answer));
}

fn answer(request: &Received, state: &State) -> Option<Answer> {
    let path = request.path.as_str();
    if path.contains("/v1/session/redirect/") {
        return Some(redirect(request));
    }
    let _ = state;
    match path {
        "/api/v1/private/workspaces/permissions" => Some(Answer::json(200, &json!({ "permissions": [] }))),
        _ => None,
    }
}

/// The real server builds the address of its user interface from `path`, up to `/api`.
fn redirect(request: &Received) -> Answer {
    let query = request.query.as_deref().unwrap_or("");
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let path = value("path").map(|path| path.replace("%3D", "=")).unwrap_or_default();
    let path = STANDARD.decode(path).ok().and_then(|path| String::from_utf8(path).ok());
    let Some(origin) = path.as_deref().and_then(|path| path.split("/api").next()) else {
        return Answer::error(400, "path must be the base64 of a URL");
    };
    let what = request.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let id = query.split('&').find(|pair| !pair.starts_with("path=")).unwrap_or_default();
    Answer::empty(303).with("Location", &format!("{origin}/{}/redirect/{what}?{id}", request.workspace))
}
