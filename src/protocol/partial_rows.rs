//! The partial rows of a project: traces and spans of which the server has an update and no create.
//!
//! A batch create stays hidden behind a partial row, and a single create completes it (Opik issue 8121). One request
//! reads back those of a whole project: a partial row has no start, and an unset time is the epoch in a column without
//! nulls (the server's `TraceDAO.java` and `SpanDAO.java`), so `start_time <` finds it
//! (`FilterQueryBuilder.java`).
//!
//! A missing id counts only in a response that is complete and lists partial rows only: a server that ignores the filter
//! lists whole entities, and one that fails in the middle of a stream ends it with an error.

use std::collections::BTreeSet;

use serde_json::json;

use super::readback::{EXCLUDED, PAGE_LIMIT, Read, ReadableKind, shown};

/// The start of a whole entity is later.
const UNSET_BEFORE: &str = "1970-01-01T00:00:01Z";

/// Returns the request for the partial rows of a project; `None` for kinds that have none.
pub(crate) fn search(kind: ReadableKind, project: &str) -> Option<Read> {
    let list = match kind {
        ReadableKind::Trace => "traces",
        ReadableKind::Span => "spans",
        _ => return None,
    };
    let body = json!({
        "project_name": project, "limit": PAGE_LIMIT, "truncate": true, "exclude": EXCLUDED,
        "filters": [{ "field": "start_time", "operator": "<", "value": UNSET_BEFORE }],
    });
    Some(Read { method: "POST", path: format!("v1/private/{list}/search"), body: Some(body.to_string()) })
}

/// Returns the ids of all partial rows; `None` if this response does not list them all.
pub(crate) fn ids(answer: &[u8]) -> Option<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    for line in lines {
        let entity = shown(line).filter(|entity| entity.is_partial && !entity.id.is_empty())?;
        ids.insert(entity.id);
        if ids.len() >= PAGE_LIMIT {
            return None;
        }
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01a20445-0b53-7443-881b-86277651b909";

    #[test]
    fn only_a_page_of_partial_rows_tells_which_are_missing() {
        let row = |rest: &str| format!("{{\"id\":\"{ID}\"{rest}}}\n");
        let partial = row("");
        let epoch = row(",\"start_time\":\"1970-01-01T00:00:00Z\"");
        let known = Some(BTreeSet::from([ID.to_owned()]));
        for (answer, expected, case) in [
            (String::new(), Some(BTreeSet::new()), "there are none"),
            (partial.clone(), known.clone(), "without a start"),
            (epoch, known.clone(), "the epoch"),
            (format!("{partial}\r\n{partial}"), known, "blank lines"),
            (row(",\"start_time\":\"2026-03-01T04:00:16Z\""), None, "the filter was ignored"),
            (format!("{partial}{{\"code\":500,\"message\":\"broken\"}}"), None, "an error at the end"),
            (format!("{partial}{{\"id\":\"01a2"), None, "cut off"),
            ("<html>".to_owned(), None, "something else"),
        ] {
            assert_eq!(ids(answer.as_bytes()), expected, "{case}");
        }
        let page = |rows: u128| -> String {
            (0..rows).map(|n| format!("{{\"id\":\"{}\"}}\n", uuid::Uuid::from_u128(n + 1))).collect()
        };
        assert_eq!(ids(page(PAGE_LIMIT as u128 - 1).as_bytes()).map(|ids| ids.len()), Some(PAGE_LIMIT - 1));
        assert_eq!(ids(page(PAGE_LIMIT as u128).as_bytes()), None, "there may be another page");
    }

    #[test]
    fn traces_and_spans_have_partial_rows() {
        let read = search(ReadableKind::Span, "p \"q\"").expect("spans have some");
        assert_eq!(read.path, "v1/private/spans/search");
        let body: serde_json::Value = serde_json::from_str(&read.body.expect("a body")).expect("JSON");
        assert_eq!(body["project_name"], "p \"q\"");
        assert_eq!(body["filters"][0]["operator"], "<");
        assert_eq!(search(ReadableKind::Dataset, "p"), None);
    }
}
