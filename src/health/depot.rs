//! Checks of the fleet's depot: whether it can be reached, what we may do there, and what it keeps.

use super::check::{Check, FailureCause};
use crate::depot::{self, Depot, DepotError, DepotSettings, Proofs, prove};
use crate::upstream::web::addresses;

const NAME: &str = "depot";
const CONDITIONS: &str = "conditions";

/// Tries the depot: writes, reads, lists and deletes small objects below its prefix.
pub(crate) fn depot_checks(settings: &DepotSettings, server_host: &str) -> Vec<Check> {
    let tried = depot::open(settings).and_then(|depot| Ok((prove(depot.as_ref())?, depot)));
    match tried {
        Ok((proofs, depot)) => proved(&proofs, depot.as_ref(), server_host),
        Err(error) => vec![
            Check::failed(NAME, cause(&error), error.to_string(), error.hint()),
            Check::note(CONDITIONS, "not checked without a depot that can be written"),
        ],
    }
}

fn cause(error: &DepotError) -> FailureCause {
    match error {
        DepotError::NotAuthorised { .. } => FailureCause::NotAuthorised,
        DepotError::Full { .. } | DepotError::Unusable { .. } => FailureCause::Failure,
        _ => FailureCause::Unreachable,
    }
}

fn proved(proofs: &Proofs, depot: &dyn Depot, server_host: &str) -> Vec<Check> {
    let described = depot.describe();
    let mut checks = vec![rights(proofs, &described.url), conditions(proofs)];
    if let Some(host) = described.host.filter(|host| is_same_domain(host, server_host)) {
        let text =
            format!("it is served by {host}, beside the Opik server {server_host}: what takes one away may take both");
        checks.push(Check::warning(NAME, text, "a bucket elsewhere outlives the server's cluster as well"));
    }
    checks.extend(proofs.weaknesses.iter().map(|weakness| Check::note(NAME, weakness.as_str())));
    checks
}

fn rights(proofs: &Proofs, url: &str) -> Check {
    let written = format!("{url} takes a write in {} ms", proofs.write.as_millis());
    let missing: Vec<&str> = [(proofs.can_read, "read"), (proofs.can_list, "list"), (proofs.can_delete, "delete")]
        .iter()
        .filter_map(|(may, verb)| (!may).then_some(*verb))
        .collect();
    match missing.as_slice() {
        [] => Check::good(NAME, format!("{written}; we may write, read, list and delete")),
        missing => Check::note_with_hint(
            NAME,
            format!("{written}; we may not {}", missing.join(" or ")),
            "that is enough for an agent that only ships, if it may read what it wrote; a replayer has to list and \
             delete as well",
        ),
    }
}

fn conditions(proofs: &Proofs) -> Check {
    const HINT: &str = "agents may ship copies; run one replayer only, with fleet_single_replayer: true, or use storage \
                        that keeps If-None-Match and If-Match";
    match (proofs.creates_kept, proofs.replaces_kept) {
        (true, Some(true)) => Check::good(CONDITIONS, "conditional writes were tried, several at once, and are kept"),
        (true, None) => {
            Check::note(CONDITIONS, "conditional creates are kept; replaces were not checked: we may not read")
        }
        (false, Some(true)) => {
            Check::warning(CONDITIONS, "conditional creates are ignored: two may create one name", HINT)
        }
        (true, Some(false)) => {
            Check::warning(CONDITIONS, "conditional replaces are ignored: two may own one stream", HINT)
        }
        (false, _) => Check::warning(CONDITIONS, "conditional writes are ignored: two may own one stream", HINT),
    }
}

/// Returns whether two hosts are one machine, or in one Kubernetes cluster by their names.
fn is_same_domain(depot: &str, server: &str) -> bool {
    let server = server.trim_start_matches('[').trim_end_matches(']');
    if depot.eq_ignore_ascii_case(server) || is_in_cluster(depot) && is_in_cluster(server) {
        return true;
    }
    let of_depot = addresses(depot);
    let is_here = |addresses: &[std::net::IpAddr]| addresses.iter().any(std::net::IpAddr::is_loopback);
    let of_server = addresses(server);
    of_depot.iter().any(|address| of_server.contains(address)) || is_here(&of_depot) && is_here(&of_server)
}

/// Returns whether a name is resolved only within a Kubernetes cluster.
fn is_in_cluster(host: &str) -> bool {
    host.ends_with(".svc") || host.contains(".svc.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::check::Finding;
    use super::*;
    use crate::depot::model::{ModelDepot, Verb};

    fn said(depot: &ModelDepot) -> Vec<Check> {
        proved(&prove(depot).unwrap(), depot, "opik.test")
    }

    #[test]
    fn a_depot_that_ignores_conditions_is_a_warning_with_a_way_out() {
        let depot = ModelDepot::new();
        assert!(said(&depot).iter().all(|check| matches!(check.finding, Finding::Good(_))));
        depot.set(|faults| faults.races_for = Some(Duration::from_millis(20)));
        let checks = said(&depot);
        let Finding::Warning { hint, .. } = &checks[1].finding else { panic!("two replayers would own one stream") };
        assert!(hint.contains("fleet_single_replayer"));
        assert!(checks.iter().all(Check::is_passed), "agents may still ship to it");
    }

    #[test]
    fn a_pod_that_may_only_write_passes() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.refused = vec![Verb::List, Verb::Delete]);
        let checks = said(&depot);
        let Finding::Note { text, .. } = &checks[0].finding else { panic!("it must not fail: {checks:?}") };
        assert!(text.ends_with("we may not list or delete"), "{text}");
        assert!(checks.iter().all(Check::is_passed));
    }

    #[test]
    fn a_depot_beside_the_server_is_seen() {
        assert!(is_same_domain("127.0.0.1", "localhost") && is_same_domain("10.1.2.3", "10.1.2.3"));
        assert!(is_same_domain("opik-minio.opik.svc", "opik-frontend.opik.svc.cluster.local"));
        assert!(!is_same_domain("10.1.2.3", "10.1.2.4"));
    }
}
