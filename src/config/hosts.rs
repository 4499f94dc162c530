//! A list of hosts and origins.

use super::value::Value;

/// Hosts and origins as configured. The room that uses the list decides what an entry allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostList(Vec<String>);

impl HostList {
    /// Returns the entries.
    pub fn entries(&self) -> &[String] {
        &self.0
    }
}

impl Value for HostList {
    fn parse(text: &str) -> Result<HostList, String> {
        if text.is_empty() || text.eq_ignore_ascii_case("none") {
            return Ok(HostList::default());
        }
        let entries = text.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(|entry| check(entry).map(|()| entry.to_owned())).collect::<Result<_, _>>().map(HostList)
    }

    fn show(&self) -> String {
        if self.0.is_empty() { "none".to_owned() } else { self.0.join(",") }
    }
}

/// Rejects entries that no request can match: the mistake is reported at startup instead of as a client's 403.
fn check(entry: &str) -> Result<(), String> {
    let expected = "an entry is a host with or without a port, *.DOMAIN, or an origin such as https://opik.example.org";
    let (scheme, rest) = entry.split_once("://").map_or(("", entry), |(scheme, rest)| (scheme, rest));
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]%".contains(&byte);
    let name = if scheme.is_empty() { rest.strip_prefix("*.").unwrap_or(rest) } else { rest };
    if entry == "*" {
        Ok(())
    } else if rest.contains('/') {
        Err(format!("holds a path; {expected}"))
    } else if name.is_empty()
        || entry.starts_with("://")
        || !scheme.bytes().all(is_scheme)
        || !name.bytes().all(is_host)
    {
        Err(format!("does not hold a valid host; {expected}"))
    } else if name.split('%').next().is_some_and(|name| name.matches(':').count() > 1) && !name.starts_with('[') {
        Err("an IPv6 address is written in brackets, such as [fd00::1]".to_owned())
    } else if port(name).is_some_and(|port| port.parse::<u16>().is_err()) {
        Err("holds an invalid port".to_owned())
    } else {
        Ok(())
    }
}

fn port(name: &str) -> Option<&str> {
    match name.rsplit_once(']') {
        Some((_, rest)) => rest.strip_prefix(':'),
        None => name.split_once(':').map(|(_, port)| port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_origins_parse_from_comma_separated_lists() {
        let read = |text: &str| HostList::parse(text).map(|list| list.show());
        for (text, expected) in [
            ("none", "none"),
            ("", "none"),
            ("agent.example.org", "agent.example.org"),
            (
                " a:1, *.b.example ,,https://c.example:8443 [fd00::1]:80",
                "a:1,*.b.example,https://c.example:8443,[fd00::1]:80",
            ),
            ("*", "*"),
            ("vscode-webview://abc", "vscode-webview://abc"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in [
            "http://a/x",
            "a/b",
            "a.*.b",
            "**",
            "://a",
            "fd00::1",
            "a:b",
            "a:99999",
            "[::1]:x",
            "*.",
            "a@b",
            "\u{e9}.example",
            "http://",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
