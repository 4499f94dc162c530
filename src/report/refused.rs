//! The report of writes that the server refused while an agent forwarded them: their payloads are in no store.

use serde::Serialize;

use crate::figures::time;
use crate::telemetry::refusals::{ForwardedRefused, RefusedStatus};

/// Writes of applications that the server refused since the agent started: they were told, and nothing is stored.
#[derive(Serialize)]
pub(crate) struct ForwardedRefusedReport {
    pub writes: u64,
    /// The status of the last of these answers.
    pub last_status: Option<u16>,
    pub last_at: Option<String>,
    /// In the order of the statuses.
    pub by_status: Vec<RefusedStatus>,
}

impl ForwardedRefusedReport {
    pub(crate) fn of(refused: &ForwardedRefused) -> Self {
        Self {
            writes: refused.writes,
            last_status: refused.last_status,
            last_at: refused.last_at_ms.map(time),
            by_status: refused.by_status.clone(),
        }
    }
}
