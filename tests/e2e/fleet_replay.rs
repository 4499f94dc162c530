//! Streams of agents that are gone: a replayer takes them over and delivers them, in order, whatever kills it.
//!
//! `OPIK_OFFLINE_KILLS` sets how often the replayer is killed, `OPIK_OFFLINE_STREAMS` how many streams are replayed for
//! the figures.

use std::time::Duration;

use opik_offline::fleet::head::{Head, HeadState};
use opik_offline::fleet::marks::{Fate, Mark, encode_marks};
use opik_offline::fleet::names::ObjectName;
use opik_offline::fleet::record::MessageRef;

use crate::fleet_streams::{Outage, TestFleet, bundle_folder};
use crate::support::agent::Home;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::{PATIENCE, wait_until};

/// Checks that the server has everything, each entity in its order.
#[track_caller]
fn assert_delivered(server: &FakeOpik, outage: &Outage) {
    server.assert_equals(&outage.ledger);
    server.assert_order(&outage.ledger);
    server.assert_no_update_before_create();
    server.assert_no_violations();
}

#[test]
fn streams_of_agents_that_are_gone_are_delivered_in_order_and_deleted() {
    let server = FakeOpik::new_stopped();
    let outage = Outage::new(&server, 5, 6);
    let fleet = TestFleet::new();
    outage.ship(&fleet, HeadState::Closed);
    server.start();
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_delivered(&server, &outage);
    assert_eq!(report["delivered"], outage.messages(), "{report}");
    assert_eq!(report["streams"]["finished"], 5, "{report}");
    assert_eq!(fleet.left(), Vec::<String>::new(), "what was delivered is kept and paid for");
}
