//! S3 as SeaweedFS speaks it: the contract, rights, and a server that is killed.

use opik_offline::depot::{Created, DepotError, open, prove};

use crate::contract::{self, name};
use crate::support::depots::{Person, SeaweedFs};
use crate::support::{PATIENCE, wait_until};

#[test]
fn s3_keeps_the_contract() {
    let storage = SeaweedFs::start();
    let settings = storage.settings(Person::Replayer, "contract/prod");
    let (depot, other) = (open(&settings).unwrap(), open(&settings).unwrap());
    contract::check_with(contract::NAMES_USED, depot.as_ref(), other.as_ref());
}

#[test]
fn rights_are_found_out_and_never_exceeded() {
    let storage = SeaweedFs::start();
    let open_as = |person| open(&storage.settings(person, "rights")).unwrap();
    let pod = open_as(Person::Pod);
    assert_eq!(pod.create(&name("v1/bundles/0"), b"bundle").unwrap(), Created::New);
    let proofs = prove(pod.as_ref()).unwrap();
    assert!(!proofs.can_list && proofs.are_conditions_kept(), "a pod that may not list may ship: {proofs:?}");
    let refused = prove(open_as(Person::Reader).as_ref()).unwrap_err();
    assert!(matches!(refused, DepotError::NotAuthorised { action: "write", .. }), "{refused}");
    let reader = open_as(Person::Reader);
    assert_eq!(reader.list(&name("v1/bundles"), None, 10).unwrap().len(), 1);
    let stranger = open_as(Person::Stranger).create(&name("v1/bundles/1"), b"x").unwrap_err();
    assert!(matches!(stranger, DepotError::NotAuthorised { .. }), "{stranger}");
    for error in [refused, stranger] {
        assert!(!error.to_string().contains("-secret"), "a key is in an error: {error}");
    }
}

#[test]
fn a_storage_that_is_gone_is_unreachable_and_never_empty() {
    let mut storage = SeaweedFs::start();
    let depot = open(&storage.settings(Person::Replayer, "gone")).unwrap();
    depot.create(&name("v1/heads/one"), b"1").unwrap();
    storage.kill9();
    wait_until("the connections of the killed process are gone", PATIENCE, || {
        matches!(depot.get(&name("v1/heads/one")), Err(DepotError::Unreachable { .. }))
    });
    let listed = depot.list(&name("v1/heads"), None, 10);
    assert!(matches!(listed, Err(DepotError::Unreachable { .. })), "all streams would count as finished: {listed:?}");
    assert!(matches!(depot.create(&name("v1/heads/two"), b"2"), Err(DepotError::Unreachable { .. })));
}
