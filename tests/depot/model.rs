//! The model keeps the promises that the engines keep, so that tests may rely on it.

use opik_offline::depot::model::{ModelDepot, ModelFault, Verb};
use opik_offline::depot::{Created, Depot as _, DepotError};

use crate::contract::{self, name};

#[test]
fn the_model_keeps_the_contract() {
    let depot = ModelDepot::new();
    contract::check(&depot, &depot);
}

#[test]
fn faults_of_the_model_are_those_of_real_depots() {
    let depot = ModelDepot::new();
    let bundle = name("v1/bundles/0");
    depot.fail_next(Verb::Create, ModelFault::DoneUnanswered);
    assert!(matches!(depot.create(&bundle, b"bundle"), Err(DepotError::UnknownOutcome { .. })));
    assert_eq!(depot.create(&bundle, b"bundle").unwrap(), Created::AlreadyThere, "it was done");
    depot.fail_next(Verb::Get, ModelFault::Truncated);
    assert!(matches!(depot.get(&bundle), Err(DepotError::Damaged { .. })));
    depot.fail_next(Verb::Get, ModelFault::FlippedBit);
    assert_ne!(depot.get(&bundle).unwrap().unwrap().0, b"bundle");
    assert_eq!(depot.get(&bundle).unwrap().unwrap().0, b"bundle", "only the answer was damaged");
    depot.set(|faults| faults.listing_lags_by = 1);
    assert_eq!(depot.list(&name("v1"), None, 10).unwrap(), []);
    depot.set(|faults| faults.is_away = true);
    assert!(matches!(depot.get(&bundle), Err(DepotError::Unreachable { .. })));
}
