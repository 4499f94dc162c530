//! What an agent has to know of its fleet before it ships: for whom to seal, and how secrets are named.

use super::super::fleet_file::FleetFile;
use super::super::seals::Seals;
use super::{DepotError, ObjectName, ShipError, Shipper, depot_name};
use crate::hint;

impl Shipper {
    /// Returns for whom to seal. From then on the ledger knows that, and how secrets are named.
    pub(super) fn seals(&self) -> Result<Seals, ShipError> {
        if let Some(seals) = &self.ledger.lock().seals {
            return Ok(seals.clone());
        }
        let settings = &self.ledger.settings;
        let file = match settings.recipients.is_empty() || settings.is_by_reference {
            true => self.fleet_file()?,
            false => None,
        };
        let names_secrets_in = match (settings.is_by_reference, &file) {
            (true, Some(file)) => Some(file.fleet),
            (true, None) => return Err(ShipError::Hopeless(self.no_fleet_id())),
            (false, _) => None,
        };
        let seals = match settings.recipients.is_empty() {
            false => Seals::For(settings.recipients.clone()),
            true => match self.recipients_of(file)? {
                Some(seals) => seals,
                None if settings.is_plain => Seals::Plain,
                None => return Err(ShipError::Hopeless(self.no_recipients())),
            },
        };
        self.ledger.change(|state| {
            state.seals = Some(seals.clone());
            state.names_secrets_in = names_secrets_in;
        });
        Ok(seals)
    }

    /// Returns the fleet's file, if it exists and may be read.
    fn fleet_file(&self) -> Result<Option<FleetFile>, ShipError> {
        let depot = self.ledger.depot.as_ref();
        let name = depot_name(&ObjectName::FleetFile)?;
        let bytes = match depot.get(&name) {
            Ok(Some((bytes, _))) => bytes,
            Ok(None) => return Ok(None),
            // Agents that may only write can't read it.
            Err(DepotError::NotAuthorised { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let file = FleetFile::decode(&bytes).map_err(|fault| self.unusable(fault.to_string()))?;
        Ok(Some(file))
    }

    /// Returns the recipients that the depot names.
    fn recipients_of(&self, file: Option<FleetFile>) -> Result<Option<Seals>, ShipError> {
        let named = file.map(|file| file.recipients).unwrap_or_default();
        let recipients: Result<Vec<_>, _> = named.iter().map(|text| text.parse()).collect();
        let no_key = |_| self.unusable("fleet.json names a recipient that is not a key".to_owned());
        let recipients = recipients.map_err(no_key)?;
        Ok((!recipients.is_empty()).then_some(Seals::For(recipients)))
    }

    fn unusable(&self, reason: String) -> DepotError {
        DepotError::Unusable { at: self.ledger.depot.describe().url, reason }
    }

    fn no_recipients(&self) -> String {
        format!(
            "nothing is shipped to {}: no public key is known for which bodies and keys could be sealed; name the \
             replayers' keys with fleet_recipients ({} makes a pair), or set fleet_plain if the depot's own encryption \
             is enough",
            self.ledger.depot.describe(),
            hint::command("replay --make-identity FILE")
        )
    }

    fn no_fleet_id(&self) -> String {
        let depot = self.ledger.depot.describe();
        let make = hint::command("replay --make-identity FILE --fleet URL");
        format!(
            "nothing is shipped to {depot}: fleet_credentials is reference, and the depot has no v1/fleet.json that \
             this agent can read, whose id keys are named with; {make} makes it, or set fleet_credentials to sealed"
        )
    }
}
