//! The fleet's names as those of a depot.

use super::names::ObjectName;
use crate::depot::{DepotError, Name};

/// Returns the depot's name of an object.
///
/// # Errors
///
/// [`DepotError::Unusable`] if the depot has no such names; every [`ObjectName`] is one.
pub fn depot_name(name: &ObjectName) -> Result<Name, DepotError> {
    folder_name(&name.to_string())
}

/// Returns the depot's name of a folder of [`super::names`].
///
/// # Errors
///
/// As [`depot_name`].
pub fn folder_name(folder: &str) -> Result<Name, DepotError> {
    Name::new(folder).map_err(|error| DepotError::Unusable { at: folder.to_owned(), reason: error.to_string() })
}
