//! Making `fleet.json`: the fleet's id, and the public key that agents encrypt for.

use uuid::Uuid;

use super::error::TakeoverError;
use super::objects::name_of;
use crate::depot::Depot;
use crate::fleet::fleet_file::FleetFile;
use crate::fleet::names::ObjectName;

/// Checks that the depot has no such file.
///
/// # Errors
///
/// [`TakeoverError::FleetFileExists`] if it has one.
pub(crate) fn ensure_none(depot: &dyn Depot) -> Result<(), TakeoverError> {
    match depot.get(&name_of(&ObjectName::FleetFile))? {
        None => Ok(()),
        Some(_) => Err(TakeoverError::FleetFileExists { depot: depot.describe().url }),
    }
}

/// Makes the file with a new id and this public key.
///
/// # Errors
///
/// [`TakeoverError::FleetFileExists`] if another process was faster: the first file stays.
pub(crate) fn found(depot: &dyn Depot, recipient: &str) -> Result<(), TakeoverError> {
    let name = name_of(&ObjectName::FleetFile);
    let file = FleetFile { fleet: Uuid::now_v7(), recipients: vec![recipient.to_owned()] }.encode();
    depot.create(&name, &file)?;
    match depot.get(&name)? {
        Some((found, _)) if found == file => Ok(()),
        _ => Err(TakeoverError::FleetFileExists { depot: depot.describe().url }),
    }
}
