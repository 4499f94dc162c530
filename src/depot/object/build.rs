//! Connections to the services, from the provider's variables.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use super::super::OBJECT_BYTES_MAX;
use super::super::error::DepotError;
use super::super::settings::{CONNECT_TIMEOUT, DepotSettings, ObjectService};
use super::bucket_rules::BucketRules;
use super::web::{Connector, beside_the_platform, may_be_plain};
use super::{BucketStore, answer, keys_file};
use crate::upstream::web::{WebClient, WebSettings};

/// The longest answer, in bytes: an object, or a listing of a thousand names.
const ANSWER_BYTES_MAX: usize = OBJECT_BYTES_MAX + 4 * 1024 * 1024;

/// The variables that name a file with the key of a service account.
const GOOGLE_FILES: [&str; 3] =
    ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_APPLICATION_CREDENTIALS"];

/// A bucket that no request was made to yet.
pub(super) struct Built {
    pub(super) store: Box<dyn BucketStore>,
    /// The host that serves it.
    pub(super) host: Option<String>,
    pub(super) rules: Option<BucketRules>,
}

/// Connects to a bucket or container.
pub(super) fn bucket(settings: &DepotSettings, service: ObjectService, bucket: &str) -> Result<Built, DepotError> {
    let connector = connector(settings);
    match service {
        ObjectService::S3 => s3(settings, bucket, connector),
        ObjectService::Google => google(settings, bucket, connector),
        ObjectService::Azure => azure(settings, bucket, connector),
    }
}

fn connector(settings: &DepotSettings) -> Connector {
    let client = WebClient::new(WebSettings {
        tls: settings.tls.clone(),
        proxies: beside_the_platform(settings.proxies.clone()),
        connect_timeout: CONNECT_TIMEOUT.min(settings.timeout),
        timeout: settings.timeout,
        bytes_max: ANSWER_BYTES_MAX,
    });
    let made = Arc::new(AtomicUsize::new(0));
    Connector { client: Arc::new(client), is_insecure: settings.is_insecure, made }
}

/// The crate never repeats a request: [`super::answer`] decides.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn s3(settings: &DepotSettings, bucket: &str, connector: Connector) -> Result<Built, DepotError> {
    let mut builder = AmazonS3Builder::new();
    let mut variables: Vec<(&str, String)> = Vec::new();
    for (name, value) in &settings.variables {
        variables.push((name, value.clone()));
    }
    let has = |name: &str| settings.variable(name).is_some();
    let is_told = has("AWS_ACCESS_KEY_ID")
        || has("AWS_SECRET_ACCESS_KEY")
        || has("AWS_WEB_IDENTITY_TOKEN_FILE")
        || has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || has("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    if !is_told && let Some(path) = settings.variable("AWS_SHARED_CREDENTIALS_FILE") {
        let profile = settings.variable("AWS_PROFILE");
        let found = keys_file::read(path.as_ref(), profile).map_err(|reason| DepotError::NotAuthorised {
            at: settings.address.to_string(),
            action: "write",
            reason,
        })?;
        variables.extend(found);
    }
    for (name, value) in &variables {
        let Some(key) = key::<AmazonS3ConfigKey>("AWS_", name) else { continue };
        builder = builder.with_config(key, value);
    }
    let endpoint = settings.variable("AWS_ENDPOINT_URL_S3");
    let endpoint = endpoint.or(settings.variable("AWS_ENDPOINT_URL")).or(settings.variable("AWS_ENDPOINT"));
    if let Some(endpoint) = endpoint {
        check_endpoint(settings, "AWS_ENDPOINT_URL", endpoint)?;
    }
    let region = settings.variable("AWS_REGION").or(settings.variable("AWS_DEFAULT_REGION")).unwrap_or("us-east-1");
    let own = format!("https://s3.{region}.amazonaws.com");
    let endpoint = endpoint.unwrap_or(&own);
    let client = Arc::clone(&connector.client);
    let builder = builder.with_bucket_name(bucket).with_retry(once()).with_http_connector(connector);
    let store = builder.build().map_err(|error| unusable(settings, &error))?;
    let rules = BucketRules {
        store: store.clone(),
        client,
        region: region.to_owned(),
        url: format!("{}/{bucket}", endpoint.trim_end_matches('/')),
    };
    Ok(Built { store: Box::new(store), host: host_of(endpoint), rules: Some(rules) })
}

fn google(settings: &DepotSettings, bucket: &str, connector: Connector) -> Result<Built, DepotError> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in &settings.variables {
        let Some(key) = key::<GoogleConfigKey>("GOOGLE_", name) else { continue };
        builder = builder.with_config(key, value);
    }
    let base = settings.variable("GOOGLE_BASE_URL");
    if let Some(base) = base {
        check_endpoint(settings, "GOOGLE_BASE_URL", base)?;
    }
    let host = base.map_or_else(|| Some("storage.googleapis.com".to_owned()), host_of);
    let builder = builder.with_bucket_name(bucket).with_retry(once()).with_http_connector(connector);
    let store = builder.build().map_err(|error| match unreadable(settings, &GOOGLE_FILES) {
        Some(reason) => no_credentials(settings, &reason),
        None => unusable(settings, &error),
    })?;
    Ok(Built { store: Box::new(store), host, rules: None })
}

fn azure(settings: &DepotSettings, container: &str, connector: Connector) -> Result<Built, DepotError> {
    let mut builder = MicrosoftAzureBuilder::new();
    let (mut account, mut endpoint) = (None, None);
    let in_string = settings.variable("AZURE_STORAGE_CONNECTION_STRING").map(connection_string).unwrap_or_default();
    let set = settings.variables.iter().map(|(name, value)| (azure_name(name), value.as_str()));
    for (name, value) in in_string.iter().map(|(name, value)| (*name, *value)).chain(set) {
        let key = ["AZURE_", "IDENTITY_", "MSI_"].iter().find_map(|prefix| key::<AzureConfigKey>(prefix, name));
        match key {
            None => continue,
            Some(AzureConfigKey::AccountName) => account = Some(value),
            Some(AzureConfigKey::Endpoint) => endpoint = Some(value),
            Some(_) => {}
        }
        if let Some(key) = key {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = endpoint {
        check_endpoint(settings, "AZURE_STORAGE_ENDPOINT", endpoint)?;
    }
    let own = account.map(|account| format!("{account}.blob.core.windows.net"));
    let host = endpoint.map_or(own, host_of);
    let builder = builder.with_container_name(container).with_retry(once()).with_http_connector(connector);
    let store = builder.build().map_err(|error| match account {
        Some(_) => unusable(settings, &error),
        None => DepotError::Unusable {
            at: settings.address.to_string(),
            reason: "no storage account is named; set AZURE_STORAGE_ACCOUNT_NAME".to_owned(),
        },
    })?;
    Ok(Built { store: Box::new(store), host, rules: None })
}

/// Returns the crate's key of a variable of this provider. The bucket is that of the URL, and connections are ours.
fn key<K: std::str::FromStr>(prefix: &str, name: &str) -> Option<K> {
    const OURS: [&str; 8] = [
        "BUCKET",
        "BUCKET_NAME",
        "CONTAINER_NAME",
        "ALLOW_HTTP",
        "ALLOW_INVALID_CERTIFICATES",
        "PROXY_URL",
        "TIMEOUT",
        "URL",
    ];
    let rest = name.strip_prefix(prefix)?;
    if OURS.contains(&rest) {
        return None;
    }
    name.to_ascii_lowercase().parse().ok()
}

/// Returns the name that the crate knows for one that Azure's command line uses.
fn azure_name(name: &str) -> &str {
    match name {
        "AZURE_STORAGE_ACCOUNT" => "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_KEY" => "AZURE_STORAGE_ACCOUNT_KEY",
        name => name,
    }
}

/// Returns what is in a connection string of Azure's portal, by the names of variables.
fn connection_string(text: &str) -> Vec<(&'static str, &str)> {
    let part = |part: &'static str| text.split(';').find_map(|pair| pair.trim().strip_prefix(part)?.strip_prefix('='));
    [
        ("AccountName", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("AccountKey", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("SharedAccessSignature", "AZURE_STORAGE_SAS_TOKEN"),
        ("BlobEndpoint", "AZURE_STORAGE_ENDPOINT"),
    ]
    .into_iter()
    .filter_map(|(name, variable)| Some((variable, part(name)?)))
    .collect()
}

fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// Refuses an invalid endpoint, and one that would show keys and data to the network.
fn check_endpoint(settings: &DepotSettings, variable: &str, endpoint: &str) -> Result<(), DepotError> {
    let unusable = |reason: String| Err(DepotError::Unusable { at: settings.address.to_string(), reason });
    let uri: Option<http::Uri> = endpoint.parse().ok();
    let host = uri.as_ref().and_then(|uri| uri.host().filter(|host| !host.is_empty()));
    match (uri.as_ref().and_then(|uri| uri.scheme_str()), host) {
        (Some("https"), Some(_)) => Ok(()),
        (Some("http"), Some(host)) if settings.is_insecure || may_be_plain(host) => Ok(()),
        (Some("http"), Some(host)) => unusable(format!(
            "{variable} names {host} without TLS, where the network can read everything; use https, or --fleet-insecure"
        )),
        _ => unusable(format!("{variable} is not a URL; write https://HOST or https://HOST:PORT")),
    }
}

/// Returns which of the files that these variables name can't be read, and why: the errors of the crate that parses them
/// do not name it.
fn unreadable(settings: &DepotSettings, variables: &[&str]) -> Option<String> {
    variables.iter().find_map(|variable| {
        let path = settings.variable(variable)?;
        let error = std::fs::File::open(path).err()?;
        Some(format!("cannot read {path}, which {variable} names: {error}"))
    })
}

fn unusable(settings: &DepotSettings, error: &object_store::Error) -> DepotError {
    // Everything else was checked before.
    no_credentials(settings, &answer::innermost(error))
}

fn no_credentials(settings: &DepotSettings, reason: &str) -> DepotError {
    let at = settings.address.to_string();
    DepotError::NotAuthorised { at, action: "write", reason: format!("no usable credentials: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::super::super::settings::DepotAddress;
    use super::super::ObjectDepot;
    use super::*;

    fn settings(service: ObjectService, variables: &[(&str, &str)]) -> DepotSettings {
        let (bucket, prefix) = ("acme-backlog".to_owned(), "prod".to_owned());
        let address = DepotAddress::Bucket { service, bucket, prefix };
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        DepotSettings { variables, ..DepotSettings::plain(address) }
    }

    fn error(service: ObjectService, variables: &[(&str, &str)]) -> String {
        ObjectDepot::open(&settings(service, variables)).err().expect("an error").to_string()
    }

    #[test]
    fn an_endpoint_without_tls_is_refused_beyond_this_machine() {
        let said = error(ObjectService::S3, &[("AWS_ENDPOINT_URL", "http://minio:9000")]);
        assert!(said.contains("--fleet-insecure"), "keys would cross the network readable: {said}");
        let insecure = settings(ObjectService::S3, &[("AWS_ENDPOINT_URL", "http://minio:9000")]);
        let insecure = DepotSettings { is_insecure: true, ..insecure };
        assert!(ObjectDepot::open(&insecure).is_ok());
        let here = settings(ObjectService::S3, &[("AWS_ENDPOINT", "http://127.0.0.1:9000")]);
        assert!(ObjectDepot::open(&here).is_ok());
        assert!(error(ObjectService::S3, &[("AWS_ENDPOINT_URL", "minio:9000")]).contains("is not a URL"));
    }

    #[test]
    fn half_of_a_key_pair_is_named() {
        let said = error(ObjectService::S3, &[("AWS_ACCESS_KEY_ID", "AKIA0123456789")]);
        assert!(said.contains("SecretAccessKey") || said.contains("secret"), "{said}");
        assert!(error(ObjectService::Azure, &[]).contains("AZURE_STORAGE_ACCOUNT_NAME"));
    }

    #[test]
    fn a_missing_file_of_credentials_is_named() {
        let said = error(ObjectService::Google, &[("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/key.json")]);
        let is_named = said.contains("/no/such/key.json, which GOOGLE_APPLICATION_CREDENTIALS names");
        assert!(is_named, "which file is missing remains unknown: {said}");
    }

    #[test]
    fn azure_is_reached_by_the_names_that_its_tools_use() {
        let key = "ZmFrZS1rZXktb2YtYS10ZXN0LXdpdGgtc29tZS1ieXRlcw==";
        let text =
            format!("DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={key};EndpointSuffix=core.windows.net");
        for variables in [
            vec![("AZURE_STORAGE_CONNECTION_STRING", text.as_str())],
            vec![("AZURE_STORAGE_ACCOUNT", "acme"), ("AZURE_STORAGE_KEY", key)],
            vec![("AZURE_STORAGE_ACCOUNT_NAME", "acme"), ("AZURE_STORAGE_ACCOUNT_KEY", key)],
        ] {
            let depot = ObjectDepot::open(&settings(ObjectService::Azure, &variables)).expect("usable settings");
            assert_eq!(depot.host.as_deref(), Some("acme.blob.core.windows.net"));
        }
    }

    #[test]
    fn settings_show_no_secret() {
        let settings = settings(ObjectService::S3, &[("AWS_SECRET_ACCESS_KEY", "geheim")]);
        assert!(!format!("{settings:?}").contains("geheim"));
        assert!(!error(ObjectService::S3, &[("AWS_SECRET_ACCESS_KEY", "geheim")]).contains("geheim"));
    }
}
