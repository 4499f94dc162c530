//! Fallback for servers without the endpoint of assertion results.
//!
//! Such a server answers 404 or 405, and accepts them as feedback scores of traces: value 1.0 for passed and 0.0 for
//! anything else, category `suite_assertion` (Python SDK 2.2.122,
//! `message_processing/processors/assertion_results_processor.py`; protocol dossier, section a).

use super::json::{Kind, NotJson, Scanner};
use crate::message::{Body, Encoding, HeaderSet, MessageType, Request};

/// Path of the feedback scores.
const SCORES_PATH: &str = "v1/private/traces/feedback-scores";

/// Returns the fallback of a request that was answered with this status; `None` if it has none.
///
/// `content_bytes_max` bounds the decoded payload.
pub fn fallback(message_type: MessageType, request: &Request, status: u16, content_bytes_max: u64) -> Option<Request> {
    if message_type != MessageType::AddAssertionResultsBatch || !matches!(status, 404 | 405) {
        return None;
    }
    let content = request.body.decode(content_bytes_max).ok()?;
    let scores = scores(&content).ok()?;
    let headers = request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("content-encoding"));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_vec()));
    Some(Request {
        method: "PUT".to_owned(),
        path: SCORES_PATH.to_owned(),
        headers: HeaderSet::new(headers.collect()),
        body: Body::new(scores, Encoding::Identity),
    })
}

/// Converts assertion results to scores. Texts are copied verbatim.
fn scores(content: &[u8]) -> Result<Vec<u8>, NotJson> {
    const HEAD: &[u8] = b"{\"scores\":[";
    let mut scores = HEAD.to_vec();
    let mut scanner = Scanner::new(content)?;
    scanner.object(|key, scanner| {
        if key != "assertion_results" || scanner.peek()? != Kind::Array {
            return scanner.skip_value().map(drop);
        }
        // Of a duplicate list the last one counts, as in the server's parser.
        scores.truncate(HEAD.len());
        let mut is_first = true;
        scanner
            .array(|scanner| {
                if !std::mem::take(&mut is_first) {
                    scores.push(b',');
                }
                score(content, scanner, &mut scores)
            })
            .map(drop)
    })?;
    scanner.end()?;
    scores.extend_from_slice(b"]}");
    Ok(scores)
}

fn score(content: &[u8], scanner: &mut Scanner<'_>, scores: &mut Vec<u8>) -> Result<(), NotJson> {
    if scanner.peek()? != Kind::Object {
        // Values that no server accepts are kept, so that the server rejects them.
        scores.extend_from_slice(&content[scanner.skip_value()?]);
        return Ok(());
    }
    scores.push(b'{');
    let mut has_passed = false;
    scanner.object(|key, scanner| {
        let as_score = match key {
            "entity_id" => "id",
            "project_name" | "name" | "reason" | "source" => key,
            "status" if scanner.peek()? == Kind::String => {
                has_passed = scanner.string()? == "passed";
                return Ok(());
            }
            _ => return scanner.skip_value().map(drop),
        };
        let value = scanner.skip_value()?;
        scores.extend_from_slice(format!("\"{as_score}\":").as_bytes());
        scores.extend_from_slice(&content[value]);
        scores.push(b',');
        Ok(())
    })?;
    let value = if has_passed { "1.0" } else { "0.0" };
    scores.extend_from_slice(format!("\"value\":{value},\"category_name\":\"suite_assertion\"}}").as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assertions(content: &str) -> Request {
        Request {
            method: "PUT".into(),
            path: "v1/private/assertion-results".into(),
            headers: HeaderSet::new(vec![("Content-Type".into(), b"application/json".to_vec())]),
            body: Body::new(content.to_owned(), Encoding::Identity),
        }
    }

    #[test]
    fn duplicate_lists_still_make_a_valid_body() {
        let one = |id| format!(r#""assertion_results": [{{"entity_id": "{id}", "name": "n", "status": "passed"}}]"#);
        let request = assertions(&format!("{{{}, {}}}", one("a"), one("b")));
        let sent = fallback(MessageType::AddAssertionResultsBatch, &request, 404, 1000).expect("there is one");
        let sent: serde_json::Value = serde_json::from_slice(&sent.body.bytes).expect("it is JSON");
        assert_eq!(sent["scores"].as_array().map(Vec::len), Some(1), "the last list counts: {sent}");
        assert_eq!(sent["scores"][0]["id"], "b", "the last list counts: {sent}");
    }

    #[test]
    fn older_servers_get_assertion_results_as_the_sdk_sends_them() {
        let request = assertions(
            r#"{"entity_type": "TRACE", "assertion_results": [
                {"entity_id": "t", "project_name": "p", "name": "pol\u00efte", "status": "failed", "source": "sdk", "reason": null},
                {"entity_id": "u", "name": "n", "status": "passed", "source": "sdk"}]}"#,
        );
        for status in [404, 405] {
            let fallback =
                fallback(MessageType::AddAssertionResultsBatch, &request, status, 1000).expect("there is one");
            assert_eq!((fallback.method.as_str(), fallback.path.as_str()), ("PUT", SCORES_PATH));
            let expected = concat!(
                r#"{"scores":[{"id":"t","project_name":"p","name":"pol\u00efte","source":"sdk","reason":null,"#,
                r#""value":0.0,"category_name":"suite_assertion"},"#,
                r#"{"id":"u","name":"n","source":"sdk","value":1.0,"category_name":"suite_assertion"}]}"#
            );
            assert_eq!(String::from_utf8_lossy(&fallback.body.bytes), expected);
        }
    }

    #[test]
    fn other_answers_and_other_messages_have_no_fallback() {
        let request = assertions(r#"{"assertion_results":[]}"#);
        for (message_type, status) in [
            (MessageType::AddAssertionResultsBatch, 400),
            (MessageType::AddAssertionResultsBatch, 204),
            (MessageType::UpdateSpan, 404),
        ] {
            assert_eq!(fallback(message_type, &request, status, 1000), None, "{message_type} {status}");
        }
    }
}
