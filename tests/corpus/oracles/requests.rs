//! The head of a request: which write it is, and whose.

use opik_offline::intake::guard::split_token;
use opik_offline::message::{Encoding, HeaderSet};
use opik_offline::protocol::attachment::{Subject, is_same_origin};
use opik_offline::protocol::operations::{Class, OPERATIONS};
use opik_offline::protocol::path::normalise;
use opik_offline::protocol::routes::{Route, classify};
use opik_offline::protocol::target::{ServerAddress, Target};

/// Lines of `METHOD target`.
pub(crate) fn requests(input: &[u8]) {
    let headers = HeaderSet::from_wire(input);
    assert_eq!(HeaderSet::from_wire(&headers.to_wire()).to_wire(), headers.to_wire(), "a header changes in the store");

    let text = String::from_utf8_lossy(input);
    for line in text.lines() {
        let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        request(method, path);
        let _ = Encoding::from_header(Some(line));
        if let Ok(subject) = Subject::from_query(query) {
            let again = Subject::from_query(&subject.to_query());
            assert_eq!(again.as_ref(), Ok(&subject), "the query of an upload says something else when written again");
            let again = Subject::from_body(&subject.to_body());
            assert!(again.is_ok_and(|again| again.is_same_file(&subject)), "a stored upload is of another file");
        }
        if is_same_origin(target, "https://opik.example:8443/api") {
            assert!(target.to_ascii_lowercase().contains("opik.example:8443"), "a key goes to {target}");
        }
    }
}

fn request(method: &str, path: &str) {
    let (token, rest) = split_token(path, None);
    match token {
        None => assert_eq!(rest, path, "a path without a token stays as it is"),
        Some(token) => {
            assert!(!token.contains('/'), "a token is one segment");
            assert!(
                path.contains(token) && (path.ends_with(rest) || rest == "/"),
                "a path loses a part with its token"
            );
        }
    }
    let server = ServerAddress::new("https://opik.example/opik/api");
    let Ok(target) = Target::of(rest, &server) else { return };
    let (below, sent) = match &target {
        Target::Own { path } => {
            let is_own = matches!(path.as_str(), "/" | "/metrics" | "/-")
                || path.contains("/-/token/")
                || path.starts_with("/-/");
            return assert!(is_own && target.url(&server).is_none(), "{path} is not the agent's own");
        }
        Target::Api { path, sent, .. } => (path.as_str(), sent),
        Target::Origin { path, sent } => (path.trim_start_matches('/'), sent),
    };
    let is_sent_as_it_came = rest.ends_with(sent.as_str());
    let is_plain = normalise(sent).is_ok_and(|normal| normal.trim_start_matches('/') == below.trim_end_matches('/'));
    assert!(is_plain, "{sent} is not {below}");
    assert!(is_sent_as_it_came || normalise(sent).as_ref() == Ok(sent), "a part of {rest} is invented: {sent}");
    let urls = [target.url(&server), target.page_url(&server)];
    let leads_away = urls.iter().flatten().any(|url| !url.starts_with("https://opik.example/"));
    assert!(!leads_away, "{rest} leads to {urls:?}");

    let route = classify(method, below);
    let fitting = OPERATIONS.iter().filter(|row| row.method == method && fits(row.path, below.trim_end_matches('/')));
    let fitting: Vec<_> = fitting.collect();
    match &route {
        Route::Ping => assert!(below.starts_with("is-alive/ping") && matches!(method, "GET" | "HEAD")),
        Route::PassThrough => {
            let exact = fitting.iter().filter(|row| !row.path.contains('{'));
            let is_kept = exact.clone().any(|row| row.class != Class::NeedsAnswer);
            assert!(!is_kept, "a protected write is passed through: {method} {below}");
            assert!(exact.count() > 0 || fitting.iter().all(|row| row.class == Class::NeedsAnswer));
        }
        Route::Upload(step) => assert!(fitting.iter().any(|row| row.class == Class::Upload(*step))),
        Route::Protected(write) => {
            let same = |class| matches!(class, Class::Protected(t) | Class::Deferrable(t) if t == write.message_type);
            let row = fitting.iter().find(|row| same(row.class));
            let row = row.unwrap_or_else(|| panic!("{method} {below} is no {}", write.message_type));
            assert_eq!(write.path_id.is_some(), row.path.contains('{'), "an id is in the path or it is not");
            if let Some(id) = &write.path_id {
                assert!(!id.is_empty() && below.split('/').any(|segment| segment == id), "an id is invented: {id}");
            }
        }
    }
    assert_eq!(classify(method, &format!("{below}/")), route, "a slash at the end changes what a request is");
}

/// Returns whether a path matches a pattern, in the simplest way.
fn fits(pattern: &str, path: &str) -> bool {
    let (wanted, found): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    let fit = |(wanted, found): (&&str, &&str)| wanted == found || wanted.starts_with('{') && !found.is_empty();
    wanted.len() == found.len() && wanted.iter().zip(&found).all(fit)
}
