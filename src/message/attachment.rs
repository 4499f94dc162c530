//! The file of an attachment message, as far as it can be told without its bytes.

use std::fmt;

/// A SHA-256 digest; shows itself in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256([u8; Sha256::LEN]);

impl Sha256 {
    /// Bytes of a digest.
    pub const LEN: usize = 32;

    /// Returns the digest that these bytes are.
    pub fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Returns its bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

/// What is known of an attachment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its size in bytes.
    pub bytes: u64,
    /// The digest of its bytes as they were received.
    pub sha256: Sha256,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_shown_as_other_tools_show_it() {
        let mut bytes = [0; Sha256::LEN];
        bytes[0] = 0x0a;
        bytes[31] = 0xff;
        let shown = Sha256::new(bytes).to_string();
        assert_eq!((shown.len(), &shown[..4], &shown[62..]), (64, "0a00", "ff"));
    }
}
