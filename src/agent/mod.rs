//! The composition root: builds the store, the connections to the server, monitor, replay and intake, and starts and
//! stops them in order.
//!
//! # Starting
//!
//! 1. The address is bound. If another agent has it, or it is not ours, the start fails before anything has changed.
//! 2. A hub takes the lock of its store ([`hub_lock`]). If another hub has it, the start fails before anything has
//!    changed.
//! 3. The server's address is compared with ours: an agent that is its own server would store the same message for
//!    ever.
//! 4. The store is opened. If that fails, the agent warns, passes on the writes that overtake nothing that may wait in
//!    it, and retries. It writes its record into every store that it opens.
//! 5. The components start in the order of one list (`components.rs`, `supervisor.rs`): committer, connection monitor,
//!    replay manager, background maintenance, then intake. A service manager is notified that the agent is ready, and
//!    from then on that it is alive (`service_manager.rs`).
//!
//! # Stopping (SIGINT, SIGTERM; the end of a wrapped command, see [`child`])
//!
//! 1. Intake accepts no new connections; requests in progress finish. Writes that the server does not answer in the
//!    first half of `shutdown_timeout` are stored and acknowledged in the second half. Requests that are cut off after
//!    that were never acknowledged.
//! 2. Background maintenance stops, and the replay of other agents' streams releases them. The committer commits its queue, and stops.
//! 3. An agent that wraps a command flushes ([`mod@flush`]): it delivers as many stored messages as it can.
//! 4. The replay manager finishes the request in flight, settles its batch, requeues the rest and releases the lease.
//!    If the server does not answer in time, the lease is taken away and the messages in flight are *failed* again.
//! 5. With a depot, what was not delivered is shipped to it, and the stream's head is closed.
//! 6. The connection monitor stops; nobody waits for a ping in flight.
//! 7. The agent's record is removed from the store.

pub(crate) mod background;
pub(crate) mod child;
pub(crate) mod environment;
pub(crate) mod files;
pub(crate) mod fleet_member;
mod fleet_overview;
pub(crate) mod flush;
pub(crate) mod hub_lock;
pub(crate) mod relay;
pub(crate) mod wrapped;

mod components;
mod idle;
mod redirect;
mod service_manager;
mod settings;
mod supervisor;
mod upkeep;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;

use thiserror::Error;

use self::components::Composition;
pub(crate) use self::components::RunEnd;
use self::flush::{Flush, flush};
use self::hub_lock::{HubLock, HubLockError};
pub(crate) use self::settings::AgentSettings;
use self::supervisor::{StopStage, Supervisor};
use crate::intake::workers::Workers;
use crate::shutdown::Shutdown;
use crate::upstream::Upstream;
use crate::upstream::forward::Forwarder;

/// Why an agent can't start. Nothing was started or changed.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The agent can't listen on the address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The server's address is the agent's own.
    #[error("the Opik server {url} is this agent's own address {address}")]
    UpstreamIsSelf {
        /// The server's URL.
        url: String,
        /// The address that the agent listens on.
        address: SocketAddr,
    },
    /// The hub can't have its store for itself.
    #[error(transparent)]
    HubLock(#[from] HubLockError),
    /// Threads or signal handlers can't be created.
    #[error("cannot start: {reason}")]
    System {
        /// The system's error.
        reason: String,
    },
}

/// An agent that is bound to its address and has started nothing yet.
pub(crate) struct Agent {
    settings: AgentSettings,
    listener: TcpListener,
    address: SocketAddr,
    upstream: Upstream,
    forwarders: Vec<Forwarder>,
    /// Held for as long as the agent runs, if it is a hub.
    hub_lock: Option<HubLock>,
}

impl Agent {
    /// Binds the address and checks the settings.
    ///
    /// # Errors
    ///
    /// [`AgentError`]; nothing was started.
    pub(crate) fn bind(settings: AgentSettings) -> Result<Self, AgentError> {
        let failed = |source| AgentError::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        if leads_to(&settings.upstream_address, local) {
            return Err(AgentError::UpstreamIsSelf { url: settings.upstream.base_url.clone(), address: local });
        }
        let hub_lock = settings.is_hub.then(|| HubLock::take(&settings.store_path)).transpose()?;
        let upstream = Upstream::new(&settings.upstream).asking_as(settings.asks_as.clone());
        let forwarders = {
            let idle_max = usize::try_from(settings.files.idle_of_a_worker).unwrap_or(usize::MAX);
            Forwarder::several(&settings.upstream, Workers::count(), idle_max)
        };
        Ok(Self { settings, listener, address: local, upstream, forwarders, hub_lock })
    }

    /// Returns the address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `shutdown`, and for as long as the flush that may follow takes, in the order that the module's head
    /// states.
    ///
    /// # Errors
    ///
    /// [`AgentError::System`] if threads can't be started; nothing was acknowledged then.
    pub(crate) fn run(self, shutdown: &Shutdown, flushing: Option<&Flush<'_>>) -> Result<RunEnd, AgentError> {
        let system = |error: io::Error| AgentError::System { reason: error.to_string() };
        let Self { settings, listener, address, upstream, forwarders, hub_lock } = self;
        let shutdown_timeout = settings.shutdown_timeout;
        // Accepts connections and hands them to the workers.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let workers = Workers::start(forwarders.len()).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(system)?
        };

        let composition = Composition::new(settings, address, upstream).map_err(system)?;
        let mut components = composition.components(shutdown);
        let liveness = Arc::new(supervisor::liveness(&mut components));
        components.extend(composition.notifier(&liveness, shutdown));
        let intake = composition.intake(forwarders, liveness);
        let mut supervisor = Supervisor::start(components).map_err(system)?;

        runtime.block_on(intake.serve(listener, &workers, shutdown.clone(), shutdown_timeout));
        supervisor.stop_through(StopStage::Commit);
        let flushed =
            flushing.map(|flushing| flush(&composition.slot, &composition.connection, &composition.server, flushing));
        supervisor.stop_through(StopStage::Monitor);
        // Requests that were cut off end here, without an acknowledgement.
        drop(workers);
        drop(runtime);
        supervisor.stop_through(StopStage::Report);
        let end = composition.end(flushed);
        // The next hub may have the store once this one has left it.
        drop(hub_lock);
        Ok(end)
    }
}

/// Returns whether a connection to the server's address would reach our own listener.
fn leads_to((host, port): &(String, u16), own: SocketAddr) -> bool {
    if *port != own.port() {
        return false;
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(addresses) = (host, *port).to_socket_addrs() else {
        // A name that can't be resolved now can't be our loopback address either.
        return false;
    };
    addresses.map(|address| address.ip()).any(|ip| match own.ip() {
        own_ip if own_ip == ip => true,
        // We listen on every address of this machine. Of these, we know the loopback addresses.
        own_ip => own_ip.is_unspecified() && (ip.is_loopback() || ip.is_unspecified()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_at_the_agents_own_address_is_recognised() {
        for (host, port, own, expected) in [
            ("127.0.0.1", 6745, "127.0.0.1:6745", true),
            ("localhost", 6745, "127.0.0.1:6745", true),
            ("127.0.0.1", 6745, "0.0.0.0:6745", true),
            ("[::1]", 6745, "[::1]:6745", true),
            ("127.0.0.1", 5173, "127.0.0.1:6745", false),
            ("127.0.0.2", 6745, "127.0.0.1:6745", false),
            ("no-such-host.invalid", 6745, "127.0.0.1:6745", false),
        ] {
            let own = own.parse().expect("an address");
            assert_eq!(leads_to(&(host.to_owned(), port), own), expected, "{host}:{port} {own}");
        }
    }
}
