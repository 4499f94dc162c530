//! Azure Blob Storage as Azurite speaks it.

use opik_offline::depot::{DepotAddress, DepotError, DepotSettings, ObjectService, open};

use crate::contract::{self, name};
use crate::support::depots::Azurite;

#[test]
fn azure_keeps_the_contract() {
    let storage = Azurite::start();
    let settings = storage.settings("contract/prod");
    contract::check(open(&settings).unwrap().as_ref(), open(&settings).unwrap().as_ref());
}

#[test]
fn a_missing_container_is_named_as_such() {
    let storage = Azurite::start();
    let address =
        DepotAddress::Bucket { service: ObjectService::Azure, bucket: "nowhere".to_owned(), prefix: String::new() };
    let depot = open(&DepotSettings { address, ..storage.settings("") }).unwrap();
    for error in [
        depot.create(&name("v1/heads/one"), b"1").map(|_| ()).unwrap_err(),
        depot.get(&name("v1/heads/one")).map(|_| ()).unwrap_err(),
        depot.list(&name("v1/heads"), None, 10).map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, DepotError::Missing { .. }), "a stream would count as finished: {error:?}");
    }
}
