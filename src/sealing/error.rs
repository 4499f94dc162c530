//! Why something cannot be sealed or opened.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::keys::{RECIPIENTS_MAX, Recipient};

/// How the error begins that no identity opens something.
pub(crate) const NOT_OPENED: &str = "none of the given identities opens it";

/// Why something cannot be sealed or opened. No message quotes a key: a secret one may be where a public one belongs.
#[derive(Debug, Error)]
pub enum SealError {
    /// A recipient is not a usable public key.
    #[error("this is not a recipient: {reason}; a recipient is a public key `age1...` of 62 characters")]
    Recipient {
        /// The reason.
        reason: &'static str,
    },
    /// An identity is not a usable secret key.
    #[error("this is not an identity: {reason}; an identity is a secret key `AGE-SECRET-KEY-1...` of 74 characters")]
    Identity {
        /// The reason.
        reason: &'static str,
    },
    /// A file of keys cannot be used.
    #[error("cannot use the key file {path}: {reason}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A new file of keys cannot be made.
    #[error("cannot make the key file {path}: {reason}")]
    NewKeyFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// There is nobody to seal for.
    #[error("no recipient is given: nobody could open it")]
    NoRecipients,
    /// There are more recipients than [`RECIPIENTS_MAX`].
    #[error("{given} recipients are given, and {RECIPIENTS_MAX} is the maximum")]
    TooManyRecipients {
        /// How many.
        given: usize,
    },
    /// The system gives no random numbers.
    #[error("the system provides no random numbers")]
    Random,
    /// It is not in the `age` format at all.
    #[error("it is not sealed in the age format")]
    NotSealed,
    /// It is in the `age` format as text.
    #[error(
        "it is ASCII-armoured, which is not read here: `age --decrypt` and `age --encrypt` without --armor remove it"
    )]
    Armoured,
    /// It is in a version of the format that this program does not know.
    #[error("it is sealed in version {version} of the age format; this program reads version v1")]
    TooNew {
        /// The version as the file has it.
        version: String,
    },
    /// The header is not valid.
    #[error("its header is not valid: {reason}")]
    Header {
        /// The reason.
        reason: &'static str,
    },
    /// The header was changed after it was sealed.
    #[error("its header was changed after it was sealed")]
    HeaderChanged,
    /// None of the identities is one of its recipients'.
    #[error("{}: {}", NOT_OPENED, sealed_for(named, *recipients, passphrase))]
    NoIdentity {
        /// The recipients that the header names, which only programs like this one write. A hint: anybody can change
        /// a header that nobody here can open.
        named: Vec<Recipient>,
        /// How many recipients it has.
        recipients: usize,
        /// Whether it is sealed with a passphrase instead.
        passphrase: bool,
    },
    /// It ends too early.
    #[error("it is cut off: its end is missing")]
    Truncated,
    /// A chunk was changed, moved or added after it was sealed.
    #[error("it was changed after it was sealed, within the 64 KiB from byte {at} of its contents")]
    Changed {
        /// Where the chunk begins in the contents, in bytes.
        at: u64,
    },
    /// It cannot be read or written.
    #[error("{0}")]
    Io(io::Error),
}

impl SealError {
    /// Returns the error that [`super::OpenReader`] put into an [`io::Error`], or that error itself.
    pub fn from_io(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => error,
            Err(error) => Self::Io(error),
        }
    }
}

fn sealed_for(named: &[Recipient], recipients: usize, passphrase: &bool) -> String {
    if *passphrase {
        return "it is sealed with a passphrase, and only identities are supported".into();
    }
    if named.is_empty() {
        let whom = if recipients == 1 { "one recipient" } else { "several recipients" };
        return format!("it is sealed for {whom}, and does not say for whom");
    }
    let named: Vec<String> = named.iter().map(Recipient::to_string).collect();
    format!("it is sealed for {}", named.join(", "))
}
