//! Custom request headers for whatever the operator runs in front of the server: an access gateway, an API gateway.

use std::fmt;

use percent_encoding::percent_decode_str;

use super::secret::Secret;
use super::value::Value;

/// Headers that the agent or the client sets, and hop-by-hop headers.
const RESERVED: [&str; 18] = [
    "accept-encoding",
    "authorization",
    "comet-workspace",
    "connection",
    "date",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-opik-offline-agent",
    "x-opik-offline-token",
];

/// Headers whose values are secret. Empty if none are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderLines(Vec<(String, Secret)>);

impl HeaderLines {
    /// Returns the headers, names in lower case.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Parses `Name: value` lines, with blank lines and comments (`#`) between them, or `name=value,name=value`.
    ///
    /// # Errors
    ///
    /// The reason, without any header value.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut headers: Vec<(String, Secret)> = Vec::new();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let delimiter = line.find([':', '=']).ok_or("no `Name: value` in a line")?;
            if line[delimiter..].starts_with(':') {
                headers.push(header(&line[..delimiter], line[delimiter + 1..].trim())?);
                continue;
            }
            for pair in line.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').ok_or("no `name=value` between two commas")?;
                let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| "a value is not valid UTF-8")?;
                headers.push(header(name.trim(), &value)?);
            }
        }
        for (number, (name, _)) in headers.iter().enumerate() {
            if headers[..number].iter().any(|(other, _)| other == name) {
                return Err(format!("{name} is there twice"));
            }
        }
        Ok(Self(headers))
    }

    /// Merges two sets; on a conflict these headers take precedence over `others`.
    #[must_use]
    pub fn before(mut self, others: Self) -> Self {
        for (name, value) in others.0 {
            if !self.0.iter().any(|(own, _)| *own == name) {
                self.0.push((name, value));
            }
        }
        self
    }
}

/// Validates one header.
fn header(name: &str, value: &str) -> Result<(String, Secret), String> {
    let name = name.trim_end();
    let parsed: http::HeaderName = name.parse().map_err(|_| "a name is not a valid header name".to_owned())?;
    let name = parsed.as_str().to_owned();
    if RESERVED.contains(&name.as_str()) || name.starts_with("content-") {
        return Err(format!("{name} is not for the user to set: it belongs to the request or the connection"));
    }
    if value.is_empty() {
        return Err(format!("{name} has no value"));
    }
    if http::HeaderValue::from_str(value).is_err() {
        return Err(format!("the value of {name} holds a character that a header cannot carry"));
    }
    Ok((name, Secret::new(value)))
}

impl fmt::Display for HeaderLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let shown: Vec<String> = self.iter().map(|(name, _)| format!("{name}: ***")).collect();
        f.write_str(&shown.join(", "))
    }
}

impl Value for HeaderLines {
    fn parse(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("none") { Ok(Self::default()) } else { Self::read(text) }
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(_: &str) -> String {
        "***".to_owned()
    }

    fn secrets(&self) -> Vec<String> {
        self.iter().map(|(_, value)| value.expose().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
        let lines = HeaderLines::read(text)?;
        Ok(lines.iter().map(|(name, value)| (name.to_owned(), value.expose().to_owned())).collect())
    }

    #[test]
    fn headers_parse_as_lines_and_in_opentelemetry_syntax() {
        for (text, expected) in [
            ("", &[][..]),
            ("CF-Access-Client-Id: a.access\n", &[("cf-access-client-id", "a.access")]),
            ("# gateway\r\nX-A: b=c, d\r\n\r\nx-b:e:f\r\n", &[("x-a", "b=c, d"), ("x-b", "e:f")]),
            ("x-a=b%20c, X-B=d==,", &[("x-a", "b c"), ("x-b", "d==")]),
        ] {
            let expected = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(pairs(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn reserved_headers_are_rejected_without_showing_values() {
        for (text, why) in [
            ("Authorization: secret-4717", "authorization is not for the user to set"),
            ("comet-workspace: secret-4717", "comet-workspace is not"),
            ("HOST: secret-4717", "host is not"),
            ("content-type: secret-4717", "content-type is not"),
            ("Proxy-Authorization: secret-4717", "proxy-authorization is not"),
            ("X-Opik-Offline-Agent: secret-4717", "x-opik-offline-agent is not"),
            ("X-A: secret-4717\u{1}", "the value of x-a"),
            ("X-A: secret-4717\nX-a: secret-4718", "x-a is there twice"),
            ("X A: secret-4717", "a name is not a valid header name"),
            ("secret-4717", "no `Name: value`"),
            ("x-a=secret-4717,secret-4718", "no `name=value`"),
            ("X-A:", "x-a has no value"),
        ] {
            let reason = HeaderLines::parse(text).expect_err(text);
            assert!(reason.starts_with(why), "{text}: {reason}");
            assert!(!reason.contains("471"), "{text}: {reason}");
        }
        let lines = HeaderLines::read("X-A: secret-4717-long-enough-to-be-known").expect("valid");
        assert!(!format!("{} {lines:?}", lines.show()).contains("4717-long"), "{lines:?}");
        assert_eq!(lines.show(), "x-a: ***");
    }

    #[test]
    fn the_variable_takes_precedence_over_the_file() {
        let variable = HeaderLines::read("x-a: 1").expect("valid");
        let both = variable.before(HeaderLines::read("x-a: 2\nx-b: 3").expect("valid"));
        let shown: Vec<_> = both.iter().map(|(name, value)| (name, value.expose())).collect();
        assert_eq!(shown, [("x-a", "1"), ("x-b", "3")]);
    }
}
