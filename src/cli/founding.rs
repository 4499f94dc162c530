//! `replay --make-identity FILE --fleet URL`: a key pair, and the fleet's file that names its public key.

use std::path::Path;

use uuid::Uuid;

use super::fleet::open_depot;
use super::moving::{self, IdentityReport};
use super::{Common, Exit, Failure, configuration};
use crate::depot::Depot;
use crate::fleet::fleet_file::FleetFile;
use crate::fleet::names::ObjectName;
use crate::fleet::object_names::depot_name;

/// Makes a key pair, then the fleet's file. If the file can't be made, the pair is there and of use with
/// `fleet_recipients`.
pub(super) fn found(common: &Common, path: &Path) -> Result<IdentityReport, Failure> {
    let config = configuration(&common.flags())?;
    let depot = open_depot(&config)?;
    let name = depot_name(&ObjectName::FleetFile)?;
    if depot.get(&name)?.is_some() {
        return Err(exists(&*depot, "no key was made"));
    }
    let made = moving::new_identity(common, path)?;
    let file = FleetFile { fleet: Uuid::now_v7(), recipients: vec![made.recipient.clone()] }.encode();
    depot.create(&name, &file)?;
    // Somebody else may have made one at the same time: the first one stays.
    match depot.get(&name)? {
        Some((found, _)) if found == file => Ok(made),
        _ => Err(exists(&*depot, "it does not name the key that was just made")),
    }
}

fn exists(depot: &dyn Depot, so: &str) -> Failure {
    let message = format!("the depot {} has a v1/fleet.json already; {so}", depot.describe());
    let hint = "make a key pair without --fleet, and add its public key to `recipients` in v1/fleet.json";
    Failure::new(Exit::Failure, message, Some(hint))
}
