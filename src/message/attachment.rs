//! Size and digest of an attachment's file; its bytes are in the store.

use std::fmt;

/// A SHA-256 digest; displayed in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256([u8; Sha256::LEN]);

impl Sha256 {
    /// Bytes of a digest.
    pub const LEN: usize = 32;

    /// Wraps the 32 bytes of a digest.
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

/// Size and digest of an attachment's file.
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
    fn digests_are_displayed_in_lower_case_hexadecimal() {
        let mut bytes = [0; Sha256::LEN];
        bytes[0] = 0x0a;
        bytes[31] = 0xff;
        let shown = Sha256::new(bytes).to_string();
        assert_eq!((shown.len(), &shown[..4], &shown[62..]), (64, "0a00", "ff"));
    }
}
