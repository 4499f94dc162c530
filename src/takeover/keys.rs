//! The keys of a fleet's replayer: what it opens bundles with, and for whom it seals marks.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::TakeoverError;
use super::objects::{name_of, read_whole};
use crate::depot::Depot;
use crate::fleet::fleet_file::FleetFile;
use crate::fleet::names::ObjectName;
use crate::fleet::seals::Seals;
use crate::sealing::{Identity, Recipient, read_identities};

/// The keys of a replayer.
#[derive(Clone)]
pub(crate) struct FleetKeys {
    /// Opens what is sealed for us; none where the fleet is kept in plain.
    pub identities: Arc<[Identity]>,
    /// Seals marks and rejected messages for every replayer.
    pub seals: Seals,
}

impl FleetKeys {
    /// Reads the identities of these files, and the recipients of the fleet from the depot.
    ///
    /// The marks of this replayer are sealed for the fleet's recipients, or if `fleet.json` names none for those of its own
    /// identities: nobody else could read it otherwise.
    ///
    /// # Errors
    ///
    /// If a file or `fleet.json` can't be used.
    pub(crate) fn read(depot: &dyn Depot, identity_files: &[PathBuf]) -> Result<Self, TakeoverError> {
        let mut identities = Vec::new();
        for file in identity_files {
            identities.extend(read_identities(file)?);
        }
        let mut recipients = Vec::new();
        if let Some(bytes) = read_whole(depot, &name_of(&ObjectName::FleetFile))? {
            let file = FleetFile::decode(&bytes)
                .map_err(|fault| TakeoverError::FleetFile { depot: depot.describe().url, fault })?;
            recipients = file.recipients.iter().map(|key| key.parse()).collect::<Result<Vec<Recipient>, _>>()?;
        }
        if recipients.is_empty() {
            recipients = identities.iter().map(Identity::recipient).collect();
        }
        let seals = if recipients.is_empty() { Seals::Plain } else { Seals::For(recipients) };
        Ok(Self { identities: identities.into(), seals })
    }
}
