//! Checks of the server: a ping, access to the workspace, and the smoke test.

use std::time::Duration;

use super::Health;
use super::check::{Check, FailureCause};
use crate::protocol::answers::Answer;
use crate::protocol::hub::{Hub, Reached};
use crate::protocol::recognise::{Presence, Recognised, unwell_hint};
use crate::shutdown::Shutdown;
use crate::upstream::smoke::{Passed, SmokeFailure};

/// How long the smoke test waits for the server to show what it accepted: as long as the SDK's own.
const SMOKE_TIMEOUT: Duration = Duration::from_secs(20);

/// The checks of the server.
pub(super) struct ServerChecks {
    pub server: Check,
    /// Of the server behind it, if it is a hub.
    pub behind: Option<Check>,
    /// Whether access to it can be checked.
    pub is_available: bool,
}

/// Returns the check of a hub's own server.
///
/// That the hub can't reach it is no failure: the hub keeps what this agent sends, which is what it is for.
fn behind(hub: &Hub) -> Check {
    const NAME: &str = "hub's server";
    let url = hub.server_url.as_deref().unwrap_or("its server");
    let waiting = match hub.waiting {
        Some(1) => "1 message waits at the hub".to_owned(),
        Some(waiting) => format!("{waiting} messages wait at the hub"),
        None => "the hub can't read its store".to_owned(),
    };
    match hub.server {
        Reached::Available => Check::good(NAME, format!("the hub reaches {url}; {waiting}")),
        Reached::Unknown => Check::note(NAME, format!("the hub has just started and looks for {url}; {waiting}")),
        Reached::Unavailable => Check::warning(
            NAME,
            format!("the hub cannot reach {url}; {waiting}"),
            "nothing is lost: the hub keeps what it gets; `status` at the hub shows why",
        ),
    }
}

/// Returns what an answer of the server means that neither grants nor denies access, and what to do.
fn refused_access(status: u16) -> (FailureCause, &'static str) {
    match (status, unwell_hint(status)) {
        (_, Some(hint)) => (FailureCause::Unreachable, hint),
        (400..=499, None) => (
            FailureCause::NotAuthorised,
            "check OPIK_API_KEY and OPIK_WORKSPACE; the server's log shows what it refuses",
        ),
        (_, None) => (FailureCause::Unreachable, "check the server's log"),
    }
}

impl Health<'_> {
    /// Pings the server; a hub also tells how it reaches its own.
    pub(super) fn server(&self) -> ServerChecks {
        const NAME: &str = "server";
        let pong = match self.upstream.ping(self.timeout) {
            Ok(pong) => pong,
            Err(failure) => {
                let hint = "start the server, check the network, or choose another server with --upstream";
                let server = Check::failed(NAME, FailureCause::Unreachable, failure.to_string(), hint);
                return ServerChecks { server, behind: None, is_available: false };
            }
        };
        let cause = match &pong.presence {
            Presence::There => {
                let version = self.upstream.version(self.timeout);
                let version = version.map_or(String::new(), |version| format!(", version {version}"));
                let (url, latency) = (self.upstream.base_url(), pong.latency.as_millis());
                let hub = pong.hub.as_ref().map_or(String::new(), |hub| {
                    let version = hub.version.as_ref().map_or(String::new(), |version| format!(" {version}"));
                    format!(" as a hub (opik-offline{version})")
                });
                let check = Check::good(NAME, format!("{url} answers in {latency} ms{hub}{version}"));
                let hub = pong.hub.as_deref();
                let is_away = hub.is_some_and(|hub| hub.server != Reached::Available);
                return ServerChecks { server: check, behind: hub.map(behind), is_available: !is_away };
            }
            Presence::Unauthorised(_) => FailureCause::NotAuthorised,
            Presence::Foreign(foreign) if foreign.is_hubs && matches!(foreign.status, 401 | 403) => {
                FailureCause::NotAuthorised
            }
            Presence::Foreign(_) | Presence::Unhealthy(..) => FailureCause::Unreachable,
        };
        let hint = pong.presence.hint().unwrap_or_default();
        let is_available = matches!(pong.presence, Presence::Unauthorised(_));
        let server = Check::failed(NAME, cause, pong.presence.sentence(&self.upstream.described()), hint);
        ServerChecks { server, behind: None, is_available }
    }

    /// Checks whether the server accepts the credential for the workspace.
    pub(super) fn access(&self) -> Check {
        const NAME: &str = "access";
        let workspace = self.lane.workspace_name();
        match self.upstream.check_access(&self.lane, self.timeout) {
            Ok(answer) if answer.is_confirmed() => {
                Check::good(NAME, format!("this key has access to workspace {workspace}"))
            }
            Ok(Answer { recognised: Recognised::Foreign(foreign), .. }) => {
                let is_refused = matches!(foreign.status, 401..=403);
                let cause = if is_refused { FailureCause::NotAuthorised } else { FailureCause::Unreachable };
                let text = format!("the access check got an answer that is {foreign}");
                Check::failed(NAME, cause, text, foreign.hint())
            }
            Ok(answer) if answer.status == 404 => {
                Check::note(NAME, "the server has no access check; local servers need none")
            }
            Ok(answer) if (401..=403).contains(&answer.status) => {
                let text = format!("the server answers {} for workspace {workspace}", answer.status);
                Check::failed(NAME, FailureCause::NotAuthorised, text, "check OPIK_API_KEY and OPIK_WORKSPACE")
            }
            Ok(answer) => {
                let text = format!("the server answers {} to the access check", answer.status);
                let (cause, hint) = refused_access(answer.status);
                Check::failed(NAME, cause, text, hint)
            }
            Err(failure) => Check::error(NAME, failure),
        }
    }

    /// Writes a trace with a span and an image to the server, and reads it back.
    pub(crate) fn smoke_test(&self, project: &str, shutdown: &Shutdown) -> (Check, Option<Passed>) {
        const NAME: &str = "smoke test";
        let failure = match self.upstream.smoke_test(&self.lane, project, SMOKE_TIMEOUT, shutdown) {
            Ok(passed) => {
                let text = format!(
                    "trace {} with a span and an image, written in {} ms and read back after {} ms, project {project}",
                    passed.trace_id,
                    passed.written_in.as_millis(),
                    passed.visible_after.as_millis()
                );
                return (Check::good(NAME, text), Some(passed));
            }
            Err(failure) => failure,
        };
        let (cause, hint) = match &failure {
            SmokeFailure::Send(_) => {
                (FailureCause::Unreachable, "the server became unavailable during the test; try again")
            }
            SmokeFailure::Refused { answer, .. } => match answer.recognised.foreign() {
                _ if (401..=403).contains(&answer.status) => (
                    FailureCause::NotAuthorised,
                    "check OPIK_API_KEY and OPIK_WORKSPACE, and that the key may write to the project",
                ),
                Some(foreign) => (FailureCause::Unreachable, foreign.hint()),
                None => (FailureCause::Failure, "check the server's log"),
            },
            SmokeFailure::NotVisible { .. } => (
                FailureCause::Failure,
                "the server accepts data but does not show it: check its database (ClickHouse) and its log",
            ),
        };
        (Check::failed(NAME, cause, failure.to_string(), hint), None)
    }
}
