//! A store whose messages have copies in a depot: the depot learns what becomes of a message before the store does.
//!
//! It passes every verb on to the store that it decorates. A [`ShippedLedger`] takes part in those that matter: an agent
//! ships what its store accepts, a replayer delivers what others shipped, and both make marks before they settle.
//!
//! # Invariants
//!
//! - **Marks before settle**: a final outcome is durable in the depot before the store has it ([`ShippedLedger::settle`]).
//! - **Fenced**: the lease under which requests are sent is acquired and renewed only while the ledger is sure of its
//!   streams ([`ShippedLedger::may_send`]).
//! - **Deletions are marked**: the ledger hears of messages that were deleted in another way.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::message::{Attachment, Claimed, EntityKey, Lane, Message, MessageId, MessageType, Server, Sha256, Touch};
use crate::store::{
    AgentRecord, Ahead, AttachmentId, Attachments, Backlog, BacklogSeen, Browse, Claim, ClaimLimits, Condition, Filter,
    Hold, Holdable, Intake, LaneId, LaneListed, LanePage, LaneRange, LaneWork, Lease, Listed, Maintain, Outcome, Owner,
    Page, Purged, Replay, ReplayHold, ReplayRecord, SalvagedRow, Shipped, ShippedMessage, Standing, Store, StoreError,
    StoreIdentity, StoredMessage, Stranded, StreamRecord, UnshippedCount, WaitEnd, Whose,
};

/// Why messages were deleted that no server confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A person deleted them.
    Purged,
    /// They were too old, or room was needed.
    Expired,
}

/// Which messages of a store are in a depot, and what has to be told there. `store` is the decorated one.
pub trait ShippedLedger: Send + Sync {
    /// Returns whether requests for what was shipped may be sent for the time of one renewal of the lease. Asked before
    /// the lease is acquired or renewed.
    ///
    /// # Errors
    ///
    /// [`StoreError::DepotAway`] if not.
    fn may_send(&self, store: &dyn Store) -> Result<(), StoreError>;

    /// Makes marks of the final outcomes durable, then settles in the store.
    ///
    /// # Errors
    ///
    /// [`StoreError::DepotAway`] if the depot did not confirm the marks: then nothing was settled.
    fn settle(&self, store: &dyn Store, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError>;

    /// Takes note of stored messages, before they are acknowledged.
    ///
    /// # Errors
    ///
    /// If they must not be acknowledged; they are not stored any more then.
    fn registered(&self, store: &dyn Store, ids: &[MessageId]) -> Result<(), StoreError>;

    /// Takes note that messages were deleted.
    fn deleted(&self, store: &dyn Store, why: Removal);
}

/// A store and the ledger of what of it is in a depot.
pub struct Spooled {
    store: Arc<dyn Store>,
    ledger: Arc<dyn ShippedLedger>,
}

impl Spooled {
    /// Returns the store with this ledger, which makes its marks from now on.
    pub fn new(store: Arc<dyn Store>, ledger: Arc<dyn ShippedLedger>) -> Self {
        store.makes_marks();
        Self { store, ledger }
    }
}

macro_rules! delegate {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) -> $returns:ty;)*) => {
        $(fn $name(&self $(, $argument: $type)*) -> $returns { self.store.$name($($argument),*) })*
    };
}

impl Intake for Spooled {
    fn register(&self, messages: &[Message]) -> Result<Vec<MessageId>, StoreError> {
        let ids = self.store.register(messages)?;
        self.ledger.registered(self.store.as_ref(), &ids)?;
        Ok(ids)
    }

    delegate! {
        fn ahead(&self, lane: &Lane, touches: &[Touch]) -> Result<Ahead, StoreError>;
        fn is_clear(&self, lane: &Lane) -> Result<bool, StoreError>;
        fn backlog_seen(&self, server: &Server, touches: &[Touch]) -> Result<BacklogSeen, StoreError>;
        fn limit(&self, lane: &Lane, hold: &Hold) -> Result<(), StoreError>;
        fn unseen_creates(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Vec<EntityKey>;
        fn note_updates_ahead(&self, updates: &[(Lane, EntityKey)], unsure_before_ms: i64) -> Result<(), StoreError>;
        fn confirmed(&self, lane: &Lane, message_type: MessageType, touches: &[Touch]) -> Result<(), StoreError>;
        fn hasten(&self, whose: &Whose) -> Result<(), StoreError>;
        fn salvage(&self, rows: &[SalvagedRow]) -> Result<Vec<Option<MessageId>>, StoreError>;
        fn is_salvaged(&self, row: &Sha256) -> Result<bool, StoreError>;
        fn note_full(&self, since_ms: Option<i64>, refused: u64) -> Result<(), StoreError>;
    }
}

impl Attachments for Spooled {
    fn register_attachment(
        &self,
        upload: AttachmentId,
        attachment: &Attachment,
        message: &Message,
    ) -> Result<MessageId, StoreError> {
        let id = self.store.register_attachment(upload, attachment, message)?;
        self.ledger.registered(self.store.as_ref(), &[id])?;
        Ok(id)
    }

    delegate! {
        fn begin_attachment(&self, bytes_expected: Option<u64>) -> Result<AttachmentId, StoreError>;
        fn add_piece(&self, attachment: AttachmentId, number: u32, piece: &[u8]) -> Result<(), StoreError>;
        fn abandon_attachment(&self, attachment: AttachmentId) -> Result<(), StoreError>;
        fn attachment(&self, message: MessageId) -> Result<Option<Attachment>, StoreError>;
        fn piece(&self, message: MessageId, number: u32) -> Result<Option<Vec<u8>>, StoreError>;
    }
}

impl Replay for Spooled {
    fn acquire(&self, owner: &Owner, time_to_live: Duration) -> Result<Lease, StoreError> {
        self.ledger.may_send(self.store.as_ref())?;
        self.store.acquire(owner, time_to_live)
    }

    fn renew(&self, lease: &Lease, time_to_live: Duration) -> Result<(), StoreError> {
        self.ledger.may_send(self.store.as_ref())?;
        self.store.renew(lease, time_to_live)
    }

    fn settle(&self, lease: &Lease, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        self.ledger.settle(self.store.as_ref(), lease, outcomes)
    }

    fn claim(
        &self,
        lease: &Lease,
        lane: LaneId,
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Claim, StoreError> {
        self.store.claim(lease, lane, filter, limits, now_ms)
    }

    fn claim_lanes(
        &self,
        lease: &Lease,
        lanes: &[LaneId],
        filter: &Filter,
        limits: ClaimLimits,
        now_ms: i64,
    ) -> Result<Vec<(LaneId, Vec<Claimed>)>, StoreError> {
        self.store.claim_lanes(lease, lanes, filter, limits, now_ms)
    }

    delegate! {
        fn release(&self, lease: &Lease) -> Result<(), StoreError>;
        fn return_in_flight(&self, lease: &Lease) -> Result<u64, StoreError>;
        fn interrupted(&self, lane: LaneId) -> Result<usize, StoreError>;
        fn make_due(&self, lease: &Lease, lanes: &[(LaneId, WaitEnd)], now_ms: i64) -> Result<(), StoreError>;
        fn hold(&self, lease: &Lease, lane: LaneId, hold: Option<&Hold>) -> Result<(), StoreError>;
        fn retry_held(&self, lease: &Lease, answered_before_ms: i64) -> Result<Vec<(LaneId, MessageId)>, StoreError>;
        fn release_held(&self, lease: &Lease, lane: LaneId) -> Result<u64, StoreError>;
    }
}

impl Browse for Spooled {
    delegate! {
        fn identity(&self) -> StoreIdentity;
        fn backlog(&self, filter: &Filter) -> Result<Backlog, StoreError>;
        fn list(&self, filter: &Filter, page: &Page) -> Result<Vec<Listed>, StoreError>;
        fn whole(&self, ids: &[MessageId]) -> Result<Vec<StoredMessage>, StoreError>;
        fn lanes(&self, filter: &Filter, now_ms: i64) -> Result<Vec<LaneWork>, StoreError>;
        fn lane_page(&self, filter: &Filter, range: LaneRange, now_ms: i64) -> Result<LanePage, StoreError>;
        fn lane_list(&self, now_ms: i64) -> Result<Vec<LaneListed>, StoreError>;
        fn stranded(&self) -> Result<Vec<Stranded>, StoreError>;
        fn newest(&self) -> Result<MessageId, StoreError>;
        fn standing(&self, whose: &Whose, up_to: MessageId) -> Result<Standing, StoreError>;
        fn condition(&self) -> Result<Condition, StoreError>;
        fn check(&self) -> Result<Vec<String>, StoreError>;
    }
}

impl Maintain for Spooled {
    fn purge(&self, filter: &Filter, limit: usize) -> Result<Purged, StoreError> {
        let purged = self.store.purge(filter, limit)?;
        if purged.messages > 0 {
            self.ledger.deleted(self.store.as_ref(), Removal::Purged);
        }
        Ok(purged)
    }

    fn expire(&self, accepted_before_ms: i64, limit: usize) -> Result<u64, StoreError> {
        let expired = self.store.expire(accepted_before_ms, limit)?;
        if expired > 0 {
            self.ledger.deleted(self.store.as_ref(), Removal::Expired);
        }
        Ok(expired)
    }

    delegate! {
        fn adopt(&self, server: &Server) -> Result<u64, StoreError>;
        fn reassign(&self, lease: &Lease, from: LaneId, to: &Lane, limit: usize) -> Result<u64, StoreError>;
        fn requeue(&self, filter: &Filter) -> Result<u64, StoreError>;
        fn erase_credentials(&self) -> Result<bool, StoreError>;
        fn compact(&self) -> Result<u64, StoreError>;
        fn keep_room(&self) -> Result<(), StoreError>;
        fn announce(&self, agent: Option<&AgentRecord>) -> Result<(), StoreError>;
        fn note_replay(&self, record: &ReplayRecord) -> Result<(), StoreError>;
        fn has_to_be_reopened(&self) -> bool;
        fn close(&self) -> ();
    }
}

impl Holdable for Spooled {
    delegate! {
        fn set_replay_hold(&self, hold: Option<&ReplayHold>) -> Result<(), StoreError>;
        fn replay_hold(&self) -> Result<Option<ReplayHold>, StoreError>;
    }
}

impl Shipped for Spooled {
    delegate! {
        fn makes_marks(&self) -> ();
        fn streams(&self) -> Result<Vec<StreamRecord>, StoreError>;
        fn note_stream(&self, record: &StreamRecord) -> Result<(), StoreError>;
        fn end_stream(&self, stream: Uuid) -> Result<(), StoreError>;
        fn begin_bundle(&self, stream: Uuid, limits: ClaimLimits) -> Result<Vec<MessageId>, StoreError>;
        fn confirm_bundle(&self, stream: Uuid, next_bundle: u32) -> Result<(), StoreError>;
        fn withdraw_bundle(&self, stream: Uuid) -> Result<(), StoreError>;
        fn outstanding(&self, ids: &[MessageId]) -> Result<Vec<ShippedMessage>, StoreError>;
        fn outstanding_and_gone(&self, limit: usize) -> Result<Vec<ShippedMessage>, StoreError>;
        fn note_marked(&self, ids: &[MessageId]) -> Result<(), StoreError>;
        fn unshipped(&self) -> Result<UnshippedCount, StoreError>;
        fn hand_over(&self, stream: Uuid) -> Result<Vec<MessageId>, StoreError>;
    }
}
