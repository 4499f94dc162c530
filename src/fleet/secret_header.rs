//! Which headers of a message hold secrets.

/// Parts of the names of headers whose values are secret.
const SECRET_WORDS: [&str; 11] = [
    "auth",
    "cookie",
    "token",
    "secret",
    "api-key",
    "apikey",
    "access-key",
    "password",
    "credential",
    "session",
    "signature",
];

/// Returns whether the value of a header with this name is a secret.
pub(super) fn is_secret_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    SECRET_WORDS.iter().any(|word| name.contains(word)) || name.ends_with("-key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_with_secrets_are_recognised_by_their_names() {
        for name in ["Authorization", "X-Api-Key", "cookie", "CF-Access-Client-Secret", "X_AUTH", "X-Functions-Key"] {
            assert!(is_secret_header(name), "{name}");
        }
        for name in ["content-type", "x-opik-debug-sdk-version", "user-agent", "traceparent", "content-encoding"] {
            assert!(!is_secret_header(name), "{name}");
        }
    }
}
