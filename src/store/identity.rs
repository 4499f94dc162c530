//! Which store is which.

/// Tells a store from any other; see [`super::Browse::identity`]. Opaque: only equality means something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreIdentity([u8; 32]);

/// Writes a part that is long enough to tell stores apart, for programs that compare it.
impl std::fmt::Display for StoreIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().take(16).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl StoreIdentity {
    /// Returns the identity of the store that its engine tells from all others by these bytes.
    pub fn of(distinguishing: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, distinguishing);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}
