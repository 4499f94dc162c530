//! Secrets: text that is masked when displayed.

use std::fmt;

use zeroize::Zeroizing;

/// An API key or token. Masked in `Debug` and `Display` output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Returns the text itself, for the request that needs it and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Shows enough to recognise a long secret (`abcd...(22 chars)`), and masks a short one completely.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_CHARS: usize = 4;
        /// Below this length, four characters would reveal too much.
        const MASKED_CHARS_MIN: usize = 16;

        let chars = self.0.chars().count();
        if chars < MASKED_CHARS_MIN {
            return f.write_str("***");
        }
        let start: String = self.0.chars().take(SHOWN_CHARS).collect();
        write!(f, "{}...({chars} chars)", start.escape_debug())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

/// The text of an encryption key. Fully masked, and zeroized on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    pub fn new(text: impl Into<String>) -> KeyText {
        KeyText(Zeroizing::new(text.into()))
    }

    /// Returns the text itself, to derive the key from it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyText({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_show_at_most_four_characters() {
        let long = Secret::new("abcdefghijklmnopqrstuv");
        assert_eq!(long.to_string(), "abcd...(22 chars)");
        assert_eq!(format!("{long:?}"), "Secret(abcd...(22 chars))");
        assert_eq!(Secret::new("short-secret").to_string(), "***");
        assert_eq!(long.expose(), "abcdefghijklmnopqrstuv");
        let key = KeyText::new("abcdefghijklmnopqrstuv");
        assert_eq!(format!("{key} {key:?}"), "*** KeyText(***)");
    }
}
