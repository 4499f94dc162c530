//! The keys of a fleet's replayer: what it opens bundles with, and for whom it seals marks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::TakeoverError;
use super::key_folder::KeyFolder;
use super::objects::{name_of, read_whole};
use crate::depot::Depot;
use crate::fleet::fleet_file::FleetFile;
use crate::fleet::names::ObjectName;
use crate::fleet::seals::Seals;
use crate::sealing::{Identity, Recipient, read_identities};

/// The keys of a replayer.
#[derive(Clone)]
pub(crate) struct FleetKeys {
    /// Decrypts what is encrypted for us; none where the fleet is kept in plain.
    pub identities: Arc<[Identity]>,
    /// Encrypts marks and rejected messages for every replayer.
    pub seals: Seals,
    /// The keys of messages that only name them.
    pub folder: Arc<KeyFolder>,
    /// The public keys that `fleet.json` names.
    pub fleet_recipients: Vec<String>,
}

impl FleetKeys {
    /// Reads the identities of these files, the recipients of the fleet from the depot, and the keys in a folder.
    ///
    /// The marks of this replayer are sealed for the fleet's recipients, or if `fleet.json` names none for those of its own
    /// identities: nobody else could read it otherwise.
    ///
    /// # Errors
    ///
    /// If a file, the folder or `fleet.json` can't be used.
    pub(crate) fn read(
        depot: &dyn Depot,
        identity_files: &[PathBuf],
        credentials_dir: Option<&Path>,
    ) -> Result<Self, TakeoverError> {
        let mut identities = Vec::new();
        for file in identity_files {
            identities.extend(read_identities(file)?);
        }
        let (mut recipients, mut fleet_recipients, mut fleet) = (Vec::new(), Vec::new(), None);
        if let Some(bytes) = read_whole(depot, &name_of(&ObjectName::FleetFile))? {
            let file = FleetFile::decode(&bytes)
                .map_err(|fault| TakeoverError::FleetFile { depot: depot.describe().url, fault })?;
            recipients = file.recipients.iter().map(|key| key.parse()).collect::<Result<Vec<Recipient>, _>>()?;
            (fleet_recipients, fleet) = (file.recipients, Some(file.fleet));
        }
        if recipients.is_empty() {
            recipients = identities.iter().map(Identity::recipient).collect();
        }
        let seals = if recipients.is_empty() { Seals::Plain } else { Seals::For(recipients) };
        let folder = match (credentials_dir, fleet) {
            (None, _) => KeyFolder::none(),
            (Some(path), Some(fleet)) => KeyFolder::read(path, fleet)?,
            (Some(_), None) => return Err(TakeoverError::NoFleetFile { depot: depot.describe().url }),
        };
        Ok(Self { identities: identities.into(), seals, folder: Arc::new(folder), fleet_recipients })
    }
}
