//! The meaning of a failed request: for the caller, and for a retry.

use super::super::error::DepotError;
use super::super::name::Name;
use super::web::LastExchange;
use crate::upstream::web::{WebFailure, WebStage};

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Create,
    Get,
    Swap,
    List,
    Delete,
}

impl Doing {
    fn writes(self) -> bool {
        matches!(self, Self::Create | Self::Swap | Self::Delete)
    }

    fn action(self) -> &'static str {
        match self {
            Self::Create | Self::Swap => "write",
            Self::Get => "read",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// The meaning of a failed request, with the reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is an object of this name.
    Exists,
    /// The object has another version.
    Changed,
    /// There is no such object.
    Absent,
    /// It was not done: no connection, too busy, too many at once.
    NotDone(String),
    /// It may have been done.
    Unknown(String),
    /// The answer broke off.
    CutShort(String),
    Refused(String),
    NoBucket(String),
    Full(String),
    Unusable(String),
}

impl Verdict {
    /// Returns whether the same request may be sent again at once.
    pub(super) fn may_repeat(&self, doing: Doing) -> bool {
        match self {
            // Without a connection, the caller waits.
            Self::NotDone(reason) => reason.starts_with(BUSY),
            // The repeat of a swap that was done would be told that it lost.
            Self::Unknown(_) => doing != Doing::Swap,
            Self::CutShort(_) => true,
            _ => false,
        }
    }

    pub(super) fn error(self, at: &str, doing: Doing, name: Option<&Name>) -> DepotError {
        let at = at.to_owned();
        let unreachable = |at, reason| DepotError::Unreachable { at, reason };
        match (self, name.cloned()) {
            (Self::Exists | Self::Changed, Some(name)) => DepotError::Lost { at, name },
            (Self::Unknown(reason), Some(name)) if doing.writes() => DepotError::UnknownOutcome { at, name, reason },
            (Self::CutShort(reason), Some(name)) if doing == Doing::Get => DepotError::Damaged { at, name, reason },
            (Self::Refused(reason), _) => DepotError::NotAuthorised { at, action: doing.action(), reason },
            (Self::NoBucket(reason), _) => DepotError::Missing { at, reason },
            (Self::Full(reason), _) => DepotError::Full { at, reason },
            (Self::Unusable(reason), _) => DepotError::Unusable { at, reason },
            (Self::NotDone(reason) | Self::Unknown(reason) | Self::CutShort(reason), _) => unreachable(at, reason),
            (Self::Exists | Self::Changed | Self::Absent, _) => {
                unreachable(at, "it contradicts itself about an object".to_owned())
            }
        }
    }
}

/// How the reasons of a busy service begin.
const BUSY: &str = "it is busy";

/// Judges a failed request by how its last exchange ended.
pub(super) fn judge(doing: Doing, error: &object_store::Error, last: Option<LastExchange>) -> Verdict {
    let Some(last) = last else {
        // It failed before its first request: a token or key file that can't be read.
        let reason = innermost(error);
        // The crate names no file.
        let reason = match reason.starts_with("Error reading federated token file") {
            true => "cannot read the file that AZURE_FEDERATED_TOKEN_FILE names",
            false => &reason,
        };
        return Verdict::Refused(format!("no usable credentials: {reason}"));
    };
    if last.is_for_credentials {
        return of_credentials(&last);
    }
    match &last.ending {
        Err(failure) => of_failure(doing, failure),
        Ok((status, said)) => of_answer(doing, *status, said, error),
    }
}

/// Credentials could not be fetched.
fn of_credentials(last: &LastExchange) -> Verdict {
    let host = last.origin.split("://").nth(1).unwrap_or_default();
    let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
    match &last.ending {
        Err(failure) if super::web::may_be_plain(bare) => Verdict::Refused(format!(
            "there are no credentials in the environment, and this machine's platform has none ({}: {failure})",
            last.origin
        )),
        Err(failure) => Verdict::NotDone(format!("no credentials from {}: {failure}", last.origin)),
        Ok((status @ (429 | 500..), said)) => {
            Verdict::NotDone(format!("{BUSY}: no credentials from {}: {}", last.origin, in_words(*status, said)))
        }
        Ok((status, said)) => {
            Verdict::Refused(format!("no credentials from {}: {}", last.origin, in_words(*status, said)))
        }
    }
}

fn of_failure(doing: Doing, failure: &WebFailure) -> Verdict {
    let reason = failure.reason.clone();
    match failure.stage {
        WebStage::Connecting => Verdict::NotDone(reason),
        WebStage::Waiting if doing.writes() => Verdict::Unknown(reason),
        WebStage::Waiting => Verdict::NotDone(reason),
        WebStage::Reading if doing.writes() => Verdict::Unknown(reason),
        WebStage::Reading => Verdict::CutShort(reason),
    }
}

fn of_answer(doing: Doing, status: u16, said: &str, error: &object_store::Error) -> Verdict {
    let reason = in_words(status, said);
    let has = |codes: &[&str]| codes.iter().any(|code| said.contains(code));
    if has(&["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]) {
        return Verdict::NoBucket(reason);
    }
    if has(&["QuotaExceeded", "InsufficientStorage", "StorageFull", "InsufficientCapacity"]) || status == 507 {
        return Verdict::Full(reason);
    }
    match status {
        200..=299 => of_bad_success(doing, error),
        304 | 412 if doing == Doing::Create => Verdict::Exists,
        304 | 412 => Verdict::Changed,
        // S3: another conditional write of the name is under way, and this one was not done.
        409 if has(&["ConditionalRequestConflict", "OperationAborted"]) => {
            Verdict::NotDone(format!("{BUSY}: {reason}"))
        }
        409 if doing == Doing::Create || doing == Doing::Swap && has(&["AlreadyExists"]) => Verdict::Exists,
        401 | 403 | 407 => Verdict::Refused(reason),
        404 if doing == Doing::Swap => Verdict::Changed,
        404 if doing == Doing::Create => Verdict::NoBucket(reason),
        404 => Verdict::Absent,
        300..=399 => Verdict::Unusable(format!("{reason}; is the bucket in another region? set AWS_REGION")),
        400 if has(&["AuthorizationHeaderMalformed", "IllegalLocationConstraint"]) => {
            Verdict::Unusable(format!("{reason}; set AWS_REGION"))
        }
        400 if has(&["ExpiredToken", "InvalidToken", "TokenRefreshRequired"]) => Verdict::Refused(reason),
        429 | 503 => Verdict::NotDone(format!("{BUSY}: {reason}")),
        408 | 500..=599 if status != 501 && doing.writes() => Verdict::Unknown(reason),
        408 | 500..=599 if status != 501 => Verdict::NotDone(format!("{BUSY}: {reason}")),
        501 => Verdict::Unusable(format!("{reason}; it does not know what a depot needs, such as conditional writes")),
        _ => Verdict::Unusable(reason),
    }
}

/// The service answered with success, and the crate can't use the answer.
fn of_bad_success(doing: Doing, error: &object_store::Error) -> Verdict {
    let reason = innermost(error);
    // The answer to several deletes has an error for each.
    if ["AccessDenied", "AuthorizationFailure", "AuthorizationPermission"].iter().any(|code| reason.contains(code)) {
        return Verdict::Refused(reason);
    }
    if doing.writes() { Verdict::Unknown(reason) } else { Verdict::CutShort(reason) }
}

/// Returns the root cause of the crate's error.
pub(super) fn innermost(error: &object_store::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Returns an answer in words: its status, and what its XML or JSON says.
pub(super) fn in_words(status: u16, said: &str) -> String {
    let between = |open: &str, close: &str| {
        let rest = said.split_once(open)?.1;
        let text = rest.split_once(close)?.0.trim();
        (!text.is_empty()).then(|| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    };
    let code = between("<Code>", "</Code>").or_else(|| between("\"error\": \"", "\""));
    let message = between("<Message>", "</Message>").or_else(|| between("\"message\": \"", "\""));
    match (code, message) {
        (Some(code), Some(message)) => format!("{status} {code}: {}", message.trim_end_matches('.')),
        (Some(text), None) | (None, Some(text)) => format!("{status} {}", text.trim_end_matches('.')),
        (None, None) => format!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(doing: Doing, status: u16, said: &str) -> Verdict {
        let error = object_store::Error::NotImplemented { operation: String::new(), implementer: String::new() };
        let last = LastExchange {
            origin: "https://s3.test".to_owned(),
            is_for_credentials: false,
            ending: Ok((status, said.to_owned())),
        };
        judge(doing, &error, Some(last))
    }

    #[test]
    fn a_refusal_says_what_the_service_said() {
        let said = "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>";
        let verdict = judged(Doing::List, 403, said);
        assert_eq!(verdict, Verdict::Refused("403 AccessDenied: Access Denied".to_owned()));
        let error = verdict.error("s3://b", Doing::List, None);
        assert_eq!(error.to_string(), "the depot s3://b does not let us list: 403 AccessDenied: Access Denied");
    }

    #[test]
    fn a_write_that_may_have_been_done_is_never_called_not_done() {
        for status in [500, 502, 504, 408] {
            for doing in [Doing::Create, Doing::Swap, Doing::Delete] {
                let verdict = judged(doing, status, "");
                assert!(matches!(verdict, Verdict::Unknown(_)), "{doing:?} {status}: {verdict:?}");
                assert_eq!(verdict.may_repeat(doing), doing != Doing::Swap, "a repeated swap loses to itself");
            }
        }
        assert!(matches!(judged(Doing::Swap, 503, "<Code>SlowDown</Code>"), Verdict::NotDone(_)));
    }

    #[test]
    fn conditions_that_failed_differ_from_conflicts_that_pass() {
        assert_eq!(judged(Doing::Create, 412, ""), Verdict::Exists);
        assert_eq!(judged(Doing::Create, 409, "<Code>BlobAlreadyExists</Code>"), Verdict::Exists);
        assert_eq!(judged(Doing::Swap, 412, ""), Verdict::Changed);
        assert_eq!(judged(Doing::Swap, 404, "<Code>NoSuchKey</Code>"), Verdict::Changed);
        let verdict = judged(Doing::Create, 409, "<Code>ConditionalRequestConflict</Code>");
        assert!(matches!(&verdict, Verdict::NotDone(_)) && verdict.may_repeat(Doing::Create), "{verdict:?}");
        assert!(matches!(judged(Doing::Get, 404, "<Code>NoSuchBucket</Code>"), Verdict::NoBucket(_)));
        assert_eq!(judged(Doing::Get, 404, "<Code>NoSuchKey</Code>"), Verdict::Absent);
    }

    #[test]
    fn missing_credentials_are_reported_as_a_refusal() {
        let ending = Err(WebFailure { stage: WebStage::Connecting, reason: "connection refused".to_owned() });
        let last = LastExchange { origin: "http://169.254.169.254".to_owned(), is_for_credentials: true, ending };
        assert!(matches!(of_credentials(&last), Verdict::Refused(_)), "retrying for hours would not find any");
        let last = LastExchange { origin: "https://sts.eu.amazonaws.com".to_owned(), ..last };
        assert!(matches!(of_credentials(&last), Verdict::NotDone(_)));
    }
}
