//! How far a change of the encryption has come, and how it ended.

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
    /// Everything is kept as asked, and nothing of before is left.
    Complete(Resealing),
    /// Everything is kept as asked, and what is left of before in unused parts of the files could not be removed.
    Remnants {
        /// What was done.
        done: Resealing,
        /// Why.
        reason: String,
    },
    /// It was ended by its caller.
    Stopped(Resealing),
}
