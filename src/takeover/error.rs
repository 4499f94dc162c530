//! Errors of a takeover.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::scratch::ScratchError;
use crate::depot::DepotError;
use crate::fleet::fleet_file::FleetFileFault;
use crate::sealing::SealError;
use crate::store::StoreError;

/// Why streams can't be taken over or looked at.
#[derive(Debug, Error)]
pub enum TakeoverError {
    /// The depot can't be used.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// The scratch store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no scratch store.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The keys can't be used.
    #[error(transparent)]
    Keys(#[from] SealError),
    /// The fleet's file can't be used.
    #[error("cannot use fleet.json in the depot {depot}: {fault}")]
    FleetFile {
        /// The depot.
        depot: String,
        /// The fault.
        fault: FleetFileFault,
    },
    /// The folder with the keys can't be used.
    #[error("cannot read the keys in {}: {reason}", path.display())]
    KeyFolder {
        /// The folder.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Keys can't be matched with what messages name.
    #[error("the depot {depot} has no v1/fleet.json, whose id keys are named with")]
    NoFleetFile {
        /// The depot.
        depot: String,
    },
    /// The fleet has an id and keys already.
    #[error("the depot {depot} has a v1/fleet.json already")]
    FleetFileExists {
        /// The depot.
        depot: String,
    },
    /// It is not known which streams are our own.
    #[error("cannot look up which streams are this agent's own, so none is taken over: {0}")]
    OwnStreams(Arc<StoreError>),
    /// Two replayers could own one stream.
    #[error(
        "the depot {depot} does not keep conditional writes, so two replayers could deliver the same stream: {reason}"
    )]
    NotExclusive {
        /// The depot.
        depot: String,
        /// The result of the proof.
        reason: String,
    },
}
