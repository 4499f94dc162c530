//! The progress and the result of re-encrypting a store.

/// How far [`crate::store::reseal`] has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resealing {
    /// Things that were sealed, opened or sealed anew.
    pub done: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// How [`crate::store::reseal`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resealed {
    /// Every value is encrypted as configured, and older data is scrubbed.
    Complete(Resealing),
    /// Every value is encrypted as configured, but older data in unused parts of the files could not be scrubbed.
    Remnants {
        /// The progress made.
        done: Resealing,
        /// Why.
        reason: String,
    },
    /// It was ended by its caller.
    Stopped(Resealing),
}
