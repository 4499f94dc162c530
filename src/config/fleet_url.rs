//! The address of the fleet's depot, and the provider's variables that its credentials come from.

use std::fmt;
use std::path::Path;

use percent_encoding::percent_decode_str;

use super::server_url::hide_user_info;
use super::sources::Environment;
use super::value::Value;

/// The kind of a depot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetScheme {
    /// S3, and what is compatible.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// A folder.
    File,
    /// PostgreSQL.
    Postgres,
}

/// The URL of a depot, such as `s3://acme-backlog/prod`. A password in it is masked when displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct FleetUrl {
    text: String,
    scheme: FleetScheme,
    /// The bucket or container.
    bucket: String,
    /// Below the bucket, without slashes at its ends; the path of a folder.
    path: String,
}

/// Other names of schemes, and ours.
const OTHER_NAMES: [(&str, &str); 12] = [
    ("s3a", "s3"),
    ("s3n", "s3"),
    ("minio", "s3"),
    ("gcs", "gs"),
    ("gcp", "gs"),
    ("google", "gs"),
    ("azure", "az"),
    ("adl", "az"),
    ("abfs", "az"),
    ("abfss", "az"),
    ("wasb", "az"),
    ("wasbs", "az"),
];

impl FleetUrl {
    /// Returns the kind of the depot.
    pub fn scheme(&self) -> FleetScheme {
        self.scheme
    }

    /// Returns the bucket or container; empty for a folder and a database.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Returns the prefix below the bucket, without slashes at its ends.
    pub fn prefix(&self) -> &str {
        &self.path
    }

    /// Returns the folder of a `file://` URL.
    pub fn folder(&self) -> &Path {
        Path::new(&self.path)
    }

    /// Returns the URL with the password that it may hold.
    pub fn expose(&self) -> &str {
        &self.text
    }

    fn bucket_url(scheme: FleetScheme, text: &str, rest: &str) -> Result<Self, String> {
        let name = &text[..text.len() - rest.len()];
        if rest.contains('@') {
            return Err(
                "has a user or password; credentials come from the environment, such as AWS_ACCESS_KEY_ID and \
                        AWS_SECRET_ACCESS_KEY, or from the platform"
                    .to_owned(),
            );
        }
        if rest.contains(['?', '#']) {
            return Err("has a query or fragment; settings of the storage come from the environment, such as \
                        AWS_ENDPOINT_URL and AWS_REGION"
                .to_owned());
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(format!("names no bucket; write {name}BUCKET/PREFIX"));
        }
        if bucket.contains(':') {
            return Err(format!(
                "has a host and a port in place of the bucket; write {name}BUCKET/PREFIX, and the address of the \
                 storage into AWS_ENDPOINT_URL"
            ));
        }
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if bucket.len() < 3 || bucket.len() > 222 || !bucket.bytes().all(is_allowed) {
            return Err("names a bucket that can't exist: at least three letters, digits, dots or dashes".to_owned());
        }
        let path = prefix.trim_end_matches('/');
        let is_segment =
            |segment: &str| !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(is_allowed);
        if !path.is_empty() && !path.split('/').all(is_segment) {
            return Err("has a prefix with an empty segment, one that begins with a dot, or other characters than \
                        letters, digits, '.', '_' and '-'"
                .to_owned());
        }
        const PREFIX_BYTES_MAX: usize = 300;
        if path.len() > PREFIX_BYTES_MAX {
            return Err(format!("has a prefix of more than {PREFIX_BYTES_MAX} bytes"));
        }
        let text = format!("{name}{bucket}{}{path}", if path.is_empty() { "" } else { "/" });
        Ok(Self { text, scheme, bucket: bucket.to_owned(), path: path.to_owned() })
    }

    fn folder_url(rest: &str) -> Result<Self, String> {
        if !rest.starts_with('/') {
            return Err("is not an absolute path; write three slashes: file:///srv/opik-depot".to_owned());
        }
        if let Some(mark) = rest.chars().find(|c| ['?', '#'].contains(c)) {
            let (what, escaped) = if mark == '?' { ("parameters", "%3F") } else { ("a fragment", "%23") };
            return Err(format!(
                "has {what} behind a {mark}, and a folder has none; a {mark} in the name of the folder is {escaped}"
            ));
        }
        let path = percent_decode_str(rest).decode_utf8().map_err(|_| "is not valid UTF-8")?;
        let path = match path.trim_end_matches('/') {
            "" => return Err("names the root of the file system; use a folder of its own".to_owned()),
            path => path.to_owned(),
        };
        let text = format!("file://{}", folder_text(&path));
        Ok(Self { text, scheme: FleetScheme::File, bucket: String::new(), path })
    }
}

/// Returns the path of a folder for a URL, with the characters escaped that are not parsed as a part of it.
fn folder_text(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '%' | '?' | '#' | ' ' => text.push_str(&format!("%{:02X}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

/// Returns the error for a text that begins with no known scheme.
fn unknown_scheme(text: &str) -> String {
    const KNOWN: &str = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///FOLDER or \
                         postgres://HOST/DATABASE";
    let lower = text.to_ascii_lowercase();
    if text.starts_with(['/', '.', '~']) {
        return "is a path; write file:// and the absolute path of the folder".to_owned();
    }
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return "is the address of a server; write s3://BUCKET/PREFIX, and the address of the storage into \
                AWS_ENDPOINT_URL"
            .to_owned();
    }
    let scheme = lower.split(':').next().unwrap_or_default();
    let is_known = ["s3", "gs", "az", "file", "postgres", "postgresql"].contains(&scheme);
    if is_known && lower.contains(':') {
        return format!("has one slash, or none, behind {scheme}: where two belong: {scheme}://...");
    }
    match OTHER_NAMES.iter().find(|(other, _)| *other == scheme) {
        Some((_, ours)) => format!("is not a depot's URL; write {ours}://BUCKET/PREFIX"),
        None => format!("is not a depot's URL, such as {KNOWN}"),
    }
}

impl fmt::Display for FleetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hide_user_info(&self.text))
    }
}

impl fmt::Debug for FleetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FleetUrl({self})")
    }
}

impl Value for FleetUrl {
    fn parse(text: &str) -> Result<Self, String> {
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("holds a space or a control character".to_owned());
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Err(unknown_scheme(text)) };
        match scheme.to_ascii_lowercase().as_str() {
            "s3" => Self::bucket_url(FleetScheme::S3, text, rest),
            "gs" => Self::bucket_url(FleetScheme::Gs, text, rest),
            "az" => Self::bucket_url(FleetScheme::Az, text, rest),
            "file" => Self::folder_url(rest),
            "postgres" | "postgresql" => Ok(Self {
                text: text.to_owned(),
                scheme: FleetScheme::Postgres,
                bucket: String::new(),
                path: String::new(),
            }),
            _ => Err(unknown_scheme(text)),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(text: &str) -> String {
        hide_user_info(text)
    }

    fn secrets(&self) -> Vec<String> {
        super::server_url::passwords_in(&self.text)
    }
}

/// The variables from which the providers' libraries take credentials, endpoints and regions. Empty without a depot.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FleetVariables(Vec<(String, String)>);

/// Beginnings of the providers' variables.
const PROVIDERS: [&str; 6] = ["AWS_", "AZURE_", "GOOGLE_", "IDENTITY_", "MSI_", "PG"];

/// The file in which AWS' tools keep keys; by default `~/.aws/credentials`.
const AWS_KEYS: &str = "AWS_SHARED_CREDENTIALS_FILE";

impl FleetVariables {
    /// Reads the variables of all providers. A blank one counts as unset.
    pub(super) fn read(environment: &dyn Environment) -> Self {
        let names = PROVIDERS.iter().flat_map(|prefix| environment.names(prefix));
        let set = names.filter_map(|name| {
            let value = environment.variable(&name)?.into_string().ok()?;
            (!value.trim().is_empty()).then_some((name, value))
        });
        let mut variables: Vec<_> = set.collect();
        if !variables.iter().any(|(name, _)| name == AWS_KEYS)
            && let Some(home) = environment.home_dir()
            && let Some(path) = home.join(".aws").join("credentials").to_str()
        {
            variables.push((AWS_KEYS.to_owned(), path.to_owned()));
        }
        Self(variables)
    }

    /// Returns the secrets among the values, as texts that must not be printed.
    pub fn secrets(&self) -> impl Iterator<Item = String> {
        const WORDS: [&str; 8] =
            ["KEY", "SECRET", "TOKEN", "PASSWORD", "SIGNATURE", "CREDENTIAL", "CONNECTION_STRING", "SAS"];
        let is_secret = |name: &str| WORDS.iter().any(|word| name.to_ascii_uppercase().contains(word));
        self.0.iter().filter(move |(name, _)| is_secret(name)).map(|(_, value)| value.clone())
    }

    /// Returns the names and values, for the connection to the depot and for nothing else.
    pub fn expose(&self) -> &[(String, String)] {
        &self.0
    }
}

/// Lists the names without the values, most of which are secret.
impl fmt::Debug for FleetVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_depots_are_read() {
        for (text, scheme, bucket, prefix) in [
            ("s3://acme-backlog/prod", FleetScheme::S3, "acme-backlog", "prod"),
            ("S3://acme-backlog", FleetScheme::S3, "acme-backlog", ""),
            ("s3://acme-backlog/a/b/", FleetScheme::S3, "acme-backlog", "a/b"),
            ("gs://acme.example/x", FleetScheme::Gs, "acme.example", "x"),
            ("az://backlog/x", FleetScheme::Az, "backlog", "x"),
        ] {
            let url = FleetUrl::parse(text).expect(text);
            assert_eq!((url.scheme(), url.bucket(), url.prefix()), (scheme, bucket, prefix), "{text}");
        }
        let folder = FleetUrl::parse("file:///srv/my%20depot/").expect("a folder");
        assert_eq!((folder.scheme(), folder.folder()), (FleetScheme::File, Path::new("/srv/my depot")));
        let odd = FleetUrl::parse("file:///srv/what%3F%231%25").expect("a folder");
        assert_eq!(odd.folder(), Path::new("/srv/what?#1%"));
        assert_eq!(FleetUrl::parse(&odd.to_string()), Ok(odd), "the URL in a hint can't be pasted");
        assert_eq!(FleetUrl::parse("s3://acme-backlog/").expect("valid").to_string(), "s3://acme-backlog");
    }

    #[test]
    fn a_mistyped_url_says_how_to_write_it() {
        for (text, hint) in [
            ("s3:/bucket", "s3://"),
            ("s3:bucket", "s3://"),
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
            ("s3a://bucket/x", "write s3://"),
            ("gcs://bucket", "write gs://"),
            ("abfss://bucket", "write az://"),
            ("https://minio:9000/bucket", "AWS_ENDPOINT_URL"),
            ("s3://minio:9000/bucket", "AWS_ENDPOINT_URL"),
            ("/srv/depot", "file://"),
            ("file://srv/depot", "three slashes"),
            ("file:///", "root"),
            ("file:///srv/depot?x=1", "%3F"),
            ("file:///srv/depot#x", "%23"),
            ("s3://key:secret@bucket/x", "come from the environment"),
            ("s3://bucket/x?region=eu", "come from the environment"),
            ("gs://bucket/x#y", "come from the environment"),
            ("az://bucket?x=1", "come from the environment"),
            ("s3://bucket/a//b", "empty segment"),
            ("s3://bucket/../b", "dot"),
            ("s3://b/x", "can't exist"),
            ("redis://host", "s3://BUCKET/PREFIX"),
            ("bucket", "s3://BUCKET/PREFIX"),
        ] {
            let reason = FleetUrl::parse(text).expect_err(text);
            assert!(reason.contains(hint), "{text}: {reason}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_shown_to_nobody() {
        let url = FleetUrl::parse("postgres://me:geheim@db/opik").expect("valid");
        assert!(!format!("{url} {url:?} {}", url.show()).contains("geheim"), "{url}");
        assert!(!FleetUrl::mask("s3://key:geheim@bucket").contains("geheim"));
        let variables = FleetVariables(vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "geheim".to_owned())]);
        assert_eq!(format!("{variables:?}"), r#"["AWS_SECRET_ACCESS_KEY"]"#);
    }
}
