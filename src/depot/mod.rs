//! Depots: where copies of stored messages outlive the agent that made them.
//!
//! A depot keeps *objects*: named bytes that are written once, except for a few small ones that are replaced by
//! compare-and-swap. [`Depot`] has as few verbs as every engine can keep honestly:
//!
//! | engine | URL | conditions are kept by |
//! | --- | --- | --- |
//! | a folder | `file:///srv/depot` | hard links and a lock file ([`folder`]) |
//! | object storage | `s3://`, `gs://`, `az://` | the service, which [`prove()`] finds out |
//! | PostgreSQL | `postgres://` | the primary key and row versions ([`postgres`]) |
//! | the model | | a mutex; its faults are set by tests ([`model`]) |
//!
//! The rules that every engine keeps, and that `tests/depot` checks on each of them:
//!
//! - A write that a verb reported is durable, as far as the engine promises durability at all.
//! - A name is created by one caller. A repeat after an unknown outcome is safe: it answers
//!   [`Created::AlreadyThere`].
//! - A swap names the version that it replaces, and of several swaps from one version one succeeds, if
//!   [`Proofs::replaces_kept`].
//! - A listing may lag behind; everything else reads what was written.
//!
//! Every call is blocking and bounded in time ([`DepotSettings::timeout`]). An agent without a depot touches nothing of
//! this room.

mod error;
pub mod folder;
pub mod model;
mod name;
mod object;
pub mod postgres;
mod prove;
mod settings;

use std::fmt;
use std::sync::Arc;

pub use self::error::DepotError;
pub use self::name::{BadName, Name};
pub use self::prove::{Proofs, prove};
pub use self::settings::{CONNECT_TIMEOUT, DepotAddress, DepotSettings, ObjectService, TIMEOUT};

/// The largest object that a depot takes, in bytes.
pub const OBJECT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The version of an object, as its engine names it.
///
/// Two versions of one object with different bytes have different names. Equal bytes may have equal names (an `ETag` is
/// often a digest), so what is swapped to be seen has to change its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(String);

impl Version {
    /// Returns the version of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Returns its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The result of a [`Depot::create`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object is there, by this call.
    New,
    /// There was an object of this name before; its bytes were not compared.
    AlreadyThere,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Its version, the same that [`Depot::get`] returns with its bytes.
    pub version: Version,
}

/// A depot in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DepotDescription {
    /// Its URL without secrets.
    pub url: String,
    /// The engine: `folder`, `s3`, `gs`, `az`, `postgres`, `model`.
    pub engine: &'static str,
    /// The host that serves it, for comparing it with the server's; `None` for a folder.
    pub host: Option<String>,
}

impl fmt::Display for DepotDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Where copies outlive their agent. Shared between threads; every call blocks.
pub trait Depot: Send + Sync {
    /// Creates an object of at most [`OBJECT_BYTES_MAX`] bytes. It is durable when this returns.
    ///
    /// # Errors
    ///
    /// [`DepotError::UnknownOutcome`] if it may have been created: the call is idempotent, a retry is safe.
    fn create(&self, name: &Name, bytes: &[u8]) -> Result<Created, DepotError>;

    /// Returns an object's bytes, whole, and its version; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`DepotError::Damaged`] if its bytes did not arrive whole.
    fn get(&self, name: &Name) -> Result<Option<(Vec<u8>, Version)>, DepotError>;

    /// Replaces the version `expected` of an object; `None`: the object must not exist.
    ///
    /// # Errors
    ///
    /// [`DepotError::Lost`] if the object has another version or is gone, [`DepotError::UnknownOutcome`] if it may have
    /// been replaced: read it.
    fn swap(&self, name: &Name, expected: Option<&Version>, bytes: &[u8]) -> Result<Version, DepotError>;

    /// Returns up to `limit` objects below the folder `under`, in all depths, ascending by the bytes of their names,
    /// beginning behind `after`. Recent writes may be missing. Fewer than `limit` are the end.
    ///
    /// Names have to be chosen so that no object or folder is called like a folder beside it with `-` or `.` and more
    /// behind it (`a/1` beside `a-b`): storage on top of a file system (SeaweedFS) orders these two differently, and
    /// continues behind the wrong one.
    ///
    /// # Errors
    ///
    /// [`DepotError::NotAuthorised`] with credentials that may only write.
    fn list(&self, under: &Name, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, DepotError>;

    /// Deletes objects, whatever their version. Absent ones are fine.
    ///
    /// # Errors
    ///
    /// On any error some may be deleted: the call is idempotent, a retry is safe.
    fn delete(&self, names: &[Name]) -> Result<(), DepotError>;

    /// Returns the depot in words.
    fn describe(&self) -> DepotDescription;

    /// Asks the engine, where it can be asked, for what makes copies less safe than they look, a sentence each: a
    /// single server, a short lifecycle rule, kept versions. A question without an answer is a sentence as well.
    ///
    /// # Errors
    ///
    /// [`DepotError::Unreachable`] only; a refusal is one of the sentences.
    fn weaknesses(&self) -> Result<Vec<String>, DepotError>;
}

/// Opens a depot. Makes no request yet; a folder has to be there.
///
/// # Errors
///
/// [`DepotError::Unusable`] for settings that fit no engine, [`DepotError::NotAuthorised`] for unusable credentials.
pub fn open(settings: &DepotSettings) -> Result<Arc<dyn Depot>, DepotError> {
    match &settings.address {
        DepotAddress::Folder(path) => Ok(Arc::new(folder::FolderDepot::open(path, settings.timeout)?)),
        DepotAddress::Bucket { .. } => Ok(Arc::new(object::ObjectDepot::open(settings)?)),
        DepotAddress::Postgres(url) => Ok(Arc::new(postgres::PostgresDepot::open(url, settings)?)),
    }
}
