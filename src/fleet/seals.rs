//! For whom objects are sealed before they leave the machine.

use std::borrow::Cow;

use crate::sealing::{Recipient, SealError, seal};

/// How objects are sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seals {
    /// For the holders of these private keys; never empty.
    For(Vec<Recipient>),
    /// Not at all: the user said that the depot's own encryption is enough.
    Plain,
}

impl Seals {
    /// Seals an object.
    ///
    /// # Errors
    ///
    /// As [`seal`].
    pub fn seal<'bytes>(&self, plain: &'bytes [u8]) -> Result<Cow<'bytes, [u8]>, SealError> {
        match self {
            Self::For(recipients) => Ok(Cow::Owned(seal(recipients, plain)?)),
            Self::Plain => Ok(Cow::Borrowed(plain)),
        }
    }
}
