//! Errors of a depot.

use thiserror::Error;

use super::name::Name;

/// An error of a depot, classified by what the caller can do about it. `at` is the depot's URL without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DepotError {
    /// No connection, no answer, or only errors of the service. Nothing was written. Try again later.
    #[error("cannot reach the depot {at}: {reason}")]
    Unreachable {
        /// The depot.
        at: String,
        /// The reason.
        reason: String,
    },
    /// It refuses us, or we have no credentials for it.
    #[error("the depot {at} does not let us {action}: {reason}")]
    NotAuthorised {
        /// The depot.
        at: String,
        /// The refused action: `write`, `read`, `list`, `delete`.
        action: &'static str,
        /// Its answer.
        reason: String,
    },
    /// There is no such bucket, container or folder.
    #[error("there is no depot at {at}: {reason}")]
    Missing {
        /// The depot.
        at: String,
        /// The reason.
        reason: String,
    },
    /// The object has another version than expected, is there though it should not be, or is gone.
    #[error("{name} in the depot {at} was changed by another process")]
    Lost {
        /// The depot.
        at: String,
        /// The object.
        name: Name,
    },
    /// The write may have happened. A repeat of a create or delete is safe; after a swap, read the object.
    #[error("it is unknown whether {name} was written to the depot {at}: {reason}")]
    UnknownOutcome {
        /// The depot.
        at: String,
        /// The object, or the first of several.
        name: Name,
        /// The reason.
        reason: String,
    },
    /// The bytes that arrived are not those of the object.
    #[error("{name} did not arrive whole from the depot {at}: {reason}")]
    Damaged {
        /// The depot.
        at: String,
        /// The object.
        name: Name,
        /// The difference.
        reason: String,
    },
    /// A newer opik-offline wrote it; it was left untouched.
    #[error("{name} in the depot {at} was written by a newer opik-offline: {reason}")]
    TooNew {
        /// The depot.
        at: String,
        /// The object.
        name: Name,
        /// The version that it needs.
        reason: String,
    },
    /// It has no room left: a quota, a full disk.
    #[error("the depot {at} is full: {reason}")]
    Full {
        /// The depot.
        at: String,
        /// Its answer.
        reason: String,
    },
    /// An object is larger than [`super::OBJECT_BYTES_MAX`].
    #[error("{name} has {bytes} bytes, and the depot {at} takes at most {max}")]
    TooLarge {
        /// The depot.
        at: String,
        /// The object.
        name: Name,
        /// Its size, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// Settings that fit no engine, or that it refuses.
    #[error("cannot use {at} as a depot: {reason}")]
    Unusable {
        /// The depot.
        at: String,
        /// The reason.
        reason: String,
    },
}

impl DepotError {
    /// Returns whether trying again later may help, without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::UnknownOutcome { .. } | Self::Damaged { .. })
    }

    /// Returns what a person can do about it, as a sentence without a full stop.
    pub fn hint(&self) -> String {
        match self {
            Self::Unreachable { .. } | Self::UnknownOutcome { .. } => {
                "nothing is lost: it is tried again; check address, network and proxy with \
                 `opik-offline healthcheck --fleet URL`"
                    .to_owned()
            }
            Self::NotAuthorised { at, .. } if at.starts_with("postgres://") => {
                "check the user, PGPASSWORD, and what the role may do with depot_object (docs/fleet.md)".to_owned()
            }
            Self::NotAuthorised { at, action, .. } if at.starts_with("file://") => {
                format!(
                    "check the owner and the mode of that folder and of what is in it: this user may not {action} there"
                )
            }
            Self::NotAuthorised { action, .. } => format!(
                "check the credentials in the environment, and that their policy allows to {action} below the prefix"
            ),
            Self::Missing { .. } => "create the bucket, container or folder, or correct the URL".to_owned(),
            Self::Lost { .. } => "another process owns it now; no action is needed".to_owned(),
            Self::Damaged { .. } => "it is read again; if that stays, the depot or the way to it is broken".to_owned(),
            Self::TooNew { .. } => "update this opik-offline".to_owned(),
            Self::Full { .. } => "make room, or raise the quota; the local stores hold on until then".to_owned(),
            Self::TooLarge { .. } => "report this as a bug".to_owned(),
            Self::Unusable { .. } => "correct --fleet (s3://BUCKET/PREFIX, gs://, az://, file:///FOLDER, \
                 postgres://USER@HOST/DATABASE?fleet=NAME), or the variables of its provider: \
                 AWS_ENDPOINT_URL, AWS_REGION, AZURE_STORAGE_ACCOUNT_NAME"
                .to_owned(),
        }
    }
}
