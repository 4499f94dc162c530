//! The facts behind the verdict of `status`: the snapshot of an overview, and what only a command knows: orphaned stores
//! to salvage, stranded messages, and the dead letters' reasons.

use super::gather::Gathered;
use crate::config::Config;
use crate::diagnosis::{Facts, FullFacts, HeldFacts, RecoveryFacts, StoreSituation, StrandedFacts, UnprovenFacts};
use crate::figures::separated;
use crate::message::{Lane, Server};
use crate::overview::Overview;
use crate::overview::asked::{AskedAgent, degraded_text};
use crate::overview::details::{REASONS_OF_NEWEST, Reason, StoreDetails};
use crate::overview::page::file_system;
use crate::report::orphans::{self, OrphanLine};
use crate::store::{Hold, Stranded};

/// How many of the server's reasons are named.
const REASONS_MAX: usize = 3;

/// Returns what is known; `deliver` is the command that delivers what waits, if it is not the usual one.
pub(super) fn facts(config: &Config, gathered: &Gathered, orphans: &[OrphanLine], deliver: Option<String>) -> Facts {
    let overview = &gathered.overview;
    let known = overview.facts();
    let details = gathered.store.as_ref().ok();
    let condition = details.and_then(|details| details.condition.as_ref());
    let held = condition.map_or(&[][..], |condition| &condition.held);
    let agent = gathered.agent.as_ref();
    Facts {
        deliver: deliver.unwrap_or(known.deliver),
        other_agent: gathered.other_agent.as_ref().map(AskedAgent::other_store_text),
        has_agent: agent.is_some(),
        agent_problem: agent
            .and_then(|agent| degraded_text(agent.live_writes.as_deref(), agent.store_problem.as_deref())),
        store: store(config, gathered, known.store),
        rejected_reasons: details.and_then(reasons).unwrap_or(known.rejected_reasons),
        held_ids: details.map_or(0, |details| details.backlog.held()),
        near_window_since_ms: details.and_then(|details| details.near_window_ms),
        held: held.iter().map(|(lane, hold)| held_facts(lane, hold, &overview.server.url)).collect(),
        stranded: details.map_or(&[][..], |details| &details.stranded).iter().map(stranded).collect(),
        orphans: orphans::facts(orphans),
        orphans_pattern: orphans::pattern(),
        ..known
    }
}

fn store(config: &Config, gathered: &Gathered, known: StoreSituation) -> StoreSituation {
    let path = &config.db.value;
    let store = &gathered.overview.store;
    let recoveries = known.recoveries.into_iter().zip(&store.recoveries);
    StoreSituation {
        problem: gathered.store.as_ref().err().map(ToString::to_string),
        unproven: crate::store::unproven(path)
            .map(|unproven| UnprovenFacts { since_ms: unproven.since_ms, reason: unproven.reason }),
        full: known.full.map(|full| match gathered.is_full_from_agent {
            true => full,
            false => FullFacts { refused: None, passed_on: None, ..full },
        }),
        file_system: file_system(path),
        recoveries: recoveries
            .map(|(facts, recovery)| RecoveryFacts { set_aside: Some(recovery.set_aside.clone()), ..facts })
            .collect(),
        narrow_disk: narrow_disk(&gathered.overview),
        ..known
    }
}

/// Returns the free bytes of the disk and the size that the store can reach, if that is less than its limit.
fn narrow_disk(overview: &Overview) -> Option<(u64, u64)> {
    let store = &overview.store;
    let capacity = store.capacity_bytes.filter(|capacity| store.size_max_bytes.is_some_and(|max| *capacity < max))?;
    Some((store.disk_free_bytes.unwrap_or(0), capacity))
}

/// Returns the server's most frequent answers to rejected messages, in words; `None` if they can't be read.
fn reasons(details: &StoreDetails) -> Option<Vec<String>> {
    let newest = REASONS_OF_NEWEST as u64;
    let of_newest = match newest < details.backlog.rejected() {
        true => format!("of the newest {newest} "),
        false => String::new(),
    };
    let reason = |reason: &Reason| {
        let status = reason.status.map_or(String::new(), |status| format!("{status} "));
        format!("{of_newest}{} x {status}{}", separated(reason.messages), reason.text)
    };
    let reasons: Vec<String> = details.reasons.iter().take(REASONS_MAX).map(reason).collect();
    (!reasons.is_empty()).then_some(reasons)
}

/// Returns the facts about a lane that is held; `server_url` is the server of this call.
pub(crate) fn held_facts(lane: &Lane, hold: &Hold, server_url: &str) -> HeldFacts {
    let elsewhere = lane.server.as_ref().filter(|server| **server != Server::new(server_url));
    HeldFacts {
        workspace: lane.workspace_name().to_owned(),
        key: lane.credential.as_ref().map(ToString::to_string),
        reason: hold.reason.clone(),
        until_ms: hold.until_ms,
        is_key_refused: hold.is_credential_refused(),
        elsewhere: elsewhere.map(ToString::to_string),
    }
}

fn stranded(stranded: &Stranded) -> StrandedFacts {
    StrandedFacts {
        workspace: stranded.lane.workspace_name().to_owned(),
        messages: stranded.messages,
        create: stranded.create.0,
        status: stranded.status.name(),
    }
}
