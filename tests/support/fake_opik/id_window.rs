//! The server's window of ids (`UUID_VALIDATION_WINDOW`): one create outside it fails its whole request.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::check::Kind;
use super::log::Received;
use super::script::Answer;

pub(super) struct IdWindow {
    pub window: Duration,
    /// Workspaces that are not checked.
    pub bypass: BTreeSet<String>,
}

impl IdWindow {
    /// Returns the server's refusal of a request; the first item outside the window decides.
    pub(super) fn refuses(&self, request: &Received) -> Option<Answer> {
        if self.bypass.contains(&request.workspace) {
            return None;
        }
        let now = SystemTime::now();
        let now_ms = now.duration_since(UNIX_EPOCH).expect("it is later than 1970").as_millis() as i64;
        let window_ms = self.window.as_millis() as i64;
        let is_checked = |kind| matches!(kind, Kind::Trace | Kind::Span);
        let creates = request.writes.iter().filter(|write| write.change.is_create() && is_checked(write.key.kind));
        let mut times = creates.filter_map(|write| {
            let id = uuid::Uuid::try_parse(&write.key.id).ok()?;
            Some((id.as_u128() >> 80) as i64)
        });
        let time_ms = times.find(|time_ms| (now_ms - time_ms).abs() > window_ms)?;
        let reason = if time_ms < now_ms { "too_old" } else { "too_far_future" };
        let (instant, hours) = (instant(time_ms), self.window.as_secs() / 3600);
        let details = format!(
            "id with timestamp '{instant}' must be in the allowed ingestion window of 'PT{hours}H' around now, reason \
             '{reason}'"
        );
        let error = serde_json::json!({ "code": 400, "message": "Invalid UUID for id", "details": details });
        Some(Answer::json(400, &error).with("Date", &httpdate::fmt_http_date(now)))
    }
}

/// Writes an instant as Java does.
fn instant(time_ms: i64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(time_ms as u64);
    // Sun, 06 Nov 1994 08:49:37 GMT
    let http = httpdate::fmt_http_date(at);
    let parts: Vec<&str> = http.split(' ').collect();
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|month| *month == parts[2]).expect("a month") + 1;
    format!("{}-{month:02}-{}T{}.{:03}Z", parts[3], parts[1], parts[4], time_ms % 1000)
}
