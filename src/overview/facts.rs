//! The facts that a diagnosis is made of, as far as the snapshot of an overview has them.

use super::Overview;
use super::asked::degraded_text;
use super::lanes::LaneOverview;
use super::store::{FullOverview, RejectedOverview};
use crate::delivery::id_window;
use crate::diagnosis::{
    DroppedFacts, ElsewhereFacts, Facts, FullFacts, HeldFacts, RecoveryFacts, RefusedFacts, ReplayHoldFacts,
    StoreSituation, UnprovenFacts,
};
use crate::figures::separated;
use crate::message::MessageStatus;
use crate::telemetry::refusals::ForwardedRefused;

impl Overview {
    /// Returns what is known. Paths of this machine are left out: they are for a command to add.
    pub(crate) fn facts(&self) -> Facts {
        let store = &self.store;
        Facts {
            now_ms: self.at_ms,
            // During a hold, its end delivers the messages.
            deliver: match store.replay_hold {
                Some(_) => "opik-offline replay --resume".to_owned(),
                None => "opik-offline replay".to_owned(),
            },
            server_url: self.server.url.clone(),
            available: match self.server.connection {
                "available" => Some(true),
                "unavailable" => Some(false),
                _ => None,
            },
            server_reason: self.server.reason.clone(),
            has_agent: self.agent.pid != 0,
            agent_problem: None,
            files_problem: self.agent.files_problem.clone(),
            client_problem: self.agent.client_problem.clone(),
            refused: self.forwarded_refused.as_ref().and_then(refused),
            other_agent: None,
            store: self.store_facts(),
            waiting: store.waiting,
            rejected: store.rejected,
            rejected_reasons: store.rejected_by_answer.iter().map(answers).collect(),
            held_ids: (store.groups.iter())
                .filter(|group| group.status == MessageStatus::Held.name())
                .map(|group| group.messages)
                .sum(),
            held_ids_remedy: id_window::REMEDY,
            near_window_since_ms: None,
            eta: self.eta.as_ref().map(|eta| eta.eta),
            replay_hold: (store.replay_hold.as_ref())
                .map(|hold| ReplayHoldFacts { until_ms: hold.until_ms.cast_signed(), by: hold.by.clone() }),
            held: self.lanes.iter().filter_map(held).collect(),
            elsewhere: (store.elsewhere.iter())
                .map(|other| ElsewhereFacts { server: other.server.clone(), waiting: other.waiting })
                .collect(),
            stranded: Vec::new(),
            orphans: Vec::new(),
            orphans_pattern: String::new(),
        }
    }

    fn store_facts(&self) -> StoreSituation {
        let store = &self.store;
        let recoveries = store.recoveries.iter().map(|recovery| RecoveryFacts {
            at_ms: recovery.at_ms,
            recovered: recovery.recovered_messages,
            lost: recovery.lost_messages,
            set_aside: None,
        });
        let reason = store.reason.clone().filter(|_| !store.usable);
        StoreSituation {
            // How an agent handles writes while it can't use its store is part of the problem.
            problem: degraded_text(Some(store.live_writes), reason.as_deref())
                .filter(|_| self.agent.pid != 0)
                .or(reason),
            unproven: store
                .unproven_since_ms
                .map(|since_ms| UnprovenFacts { since_ms, reason: store.reason.clone().unwrap_or_default() }),
            full: store.full.as_ref().map(|full| full_facts(full, store.refused_writes)),
            file_system: self.page.file_system.clone(),
            moved: store.moved_stores.clone(),
            dropped: DroppedFacts {
                full: store.dropped_messages,
                rejected: store.rejected_dropped_messages,
                expired: store.expired_messages,
            },
            recoveries: recoveries.collect(),
            narrow_disk: None,
        }
    }
}

fn full_facts(full: &FullOverview, refused_ever: u64) -> FullFacts {
    FullFacts {
        since_ms: full.since_ms,
        reason: full.reason.clone(),
        refused: Some(full.refused_writes),
        passed_on: Some(full.passed_on_writes),
        refused_ever,
        remedies: full.remedies.clone(),
    }
}

/// Returns the writes that the server refused; `None` if there are none.
fn refused(refused: &ForwardedRefused) -> Option<RefusedFacts> {
    let (status, at_ms) = (refused.last_status?, refused.last_at_ms?);
    Some(RefusedFacts { writes: refused.writes, last_status: status, last_at_ms: at_ms })
}

/// `20,015 x 400`.
fn answers(by: &RejectedOverview) -> String {
    let status = by.status.map_or("no answer".to_owned(), |status| status.to_string());
    format!("{} x {status}", separated(by.messages))
}

fn held(lane: &LaneOverview) -> Option<HeldFacts> {
    let held = lane.held.as_ref()?;
    Some(HeldFacts {
        workspace: lane.workspace.clone(),
        key: lane.key.clone(),
        reason: held.reason.clone(),
        until_ms: held.until_ms,
        is_key_refused: held.is_key_refused,
        elsewhere: None,
    })
}
