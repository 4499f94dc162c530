//! Rules of a bucket that copies of messages depend on: kept versions, expiry, locks. Asked for by three requests.

use std::sync::Arc;

use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpRequest, HttpRequestBody};

use super::answer::in_words;
use super::wait::wait;
use crate::upstream::web::WebClient;

/// Objects that expire within this many days may be deleted before a long outage ends.
const EXPIRY_DAYS_MIN: u32 = 14;

/// Asks S3 for the rules of a bucket.
pub(super) struct BucketRules {
    pub(super) store: AmazonS3,
    pub(super) client: Arc<WebClient>,
    pub(super) region: String,
    /// The URL of the bucket.
    pub(super) url: String,
}

impl BucketRules {
    /// Returns a sentence for each rule that makes copies less safe than they look, and for what could not be asked.
    pub(super) fn weaknesses(&self) -> Vec<String> {
        let asked = ["versioning", "lifecycle", "object-lock"].map(|rule| self.ask(rule));
        let [versioning, lifecycle, lock] = &asked;
        [versions_kept(versioning), expiry(lifecycle), locks(lock)].into_iter().flatten().collect()
    }

    /// Returns status and body of the answer, or why there is none.
    fn ask(&self, rule: &str) -> Result<(u16, String), String> {
        let uri = format!("{}?{rule}", self.url);
        let request = http::Request::builder().method("GET").uri(uri).body(HttpRequestBody::empty());
        let mut request: HttpRequest = request.map_err(|error| error.to_string())?;
        let credential = wait(self.store.credentials().get_credential()).map_err(|_| "no credentials".to_owned())?;
        let authorizer = AwsAuthorizer::new(&credential, "s3", &self.region);
        authorizer.try_authorize(&mut request, None).map_err(|error| error.to_string())?;
        let answer = self.client.exchange(request).map_err(|failure| failure.to_string())?;
        Ok((answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned()))
    }
}

type RuleAnswer = Result<(u16, String), String>;

fn not_checked(subject: &str, asked: &RuleAnswer) -> Option<String> {
    let reason = match asked {
        Ok((status, said)) => in_words(*status, said),
        Err(reason) => reason.clone(),
    };
    Some(format!("not checked: whether the bucket {subject} ({reason})"))
}

fn versions_kept(asked: &RuleAnswer) -> Option<String> {
    match asked {
        Ok((200, said)) if said.contains("<Status>Enabled</Status>") => Some(
            "the bucket keeps old versions, so deleted copies stay in it and are paid for; expire noncurrent versions by a \
             lifecycle rule"
                .to_owned(),
        ),
        Ok((200, _)) => None,
        asked => not_checked("keeps old versions", asked),
    }
}

fn expiry(asked: &RuleAnswer) -> Option<String> {
    match asked {
        Ok((200, said)) => {
            let days = expiry_days(said)?;
            (days < EXPIRY_DAYS_MIN).then(|| {
                format!(
                    "a lifecycle rule of the bucket deletes objects after {days} days: what waits longer is lost; use \
                     {EXPIRY_DAYS_MIN} days or more, such as 30"
                )
            })
        }
        Ok((404, said)) if said.contains("NoSuchLifecycleConfiguration") => None,
        asked => not_checked("expires objects", asked),
    }
}

/// Returns the fewest days after which an enabled rule deletes current objects.
fn expiry_days(said: &str) -> Option<u32> {
    let rules = said.split("<Rule>").skip(1).filter(|rule| rule.contains("<Status>Enabled</Status>"));
    let days = |rule: &str| {
        let expiration = rule.split_once("<Expiration>")?.1.split_once("</Expiration>")?.0;
        expiration.split_once("<Days>")?.1.split_once("</Days>")?.0.trim().parse().ok()
    };
    rules.filter_map(days).min()
}

fn locks(asked: &RuleAnswer) -> Option<String> {
    match asked {
        Ok((200, said)) if said.contains("<DefaultRetention>") => Some(
            "the bucket locks its objects by default: delivered copies and those that a person purges can't be deleted \
             until their lock ends"
                .to_owned(),
        ),
        Ok((200 | 404, _)) => None,
        asked => not_checked("locks objects", asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, said: &str) -> RuleAnswer {
        Ok((status, said.to_owned()))
    }

    #[test]
    fn a_bucket_that_deletes_within_an_outage_is_named() {
        let rules = "<LifecycleConfiguration><Rule><Status>Disabled</Status><Expiration><Days>1</Days></Expiration></Rule>\
                     <Rule><Status>Enabled</Status><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
                     </NoncurrentVersionExpiration></Rule><Rule><Status>Enabled</Status><Expiration><Days>3</Days>\
                     </Expiration></Rule></LifecycleConfiguration>";
        let said = expiry(&answer(200, rules)).expect("messages would be deleted before they are delivered");
        assert!(said.contains("after 3 days"), "{said}");
        assert_eq!(expiry(&answer(200, &rules.replace("<Days>3<", "<Days>30<"))), None);
        assert_eq!(expiry(&answer(404, "<Code>NoSuchLifecycleConfiguration</Code>")), None);
    }

    #[test]
    fn kept_versions_and_locks_are_named() {
        let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        assert!(versions_kept(&answer(200, enabled)).is_some_and(|said| said.contains("keeps old versions")));
        assert_eq!(versions_kept(&answer(200, "<VersioningConfiguration/>")), None);
        assert!(locks(&answer(200, "<DefaultRetention><Days>9</Days></DefaultRetention>")).is_some());
        assert_eq!(locks(&answer(404, "<Code>ObjectLockConfigurationNotFoundError</Code>")), None);
    }

    #[test]
    fn an_unanswered_question_is_reported() {
        let refused = answer(403, "<Code>AccessDenied</Code><Message>No.</Message>");
        for said in [versions_kept(&refused), expiry(&refused), locks(&refused), expiry(&Err("away".to_owned()))] {
            assert!(said.is_some_and(|said| said.starts_with("not checked: ")));
        }
    }
}
