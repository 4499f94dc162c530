//! The background agent itself: it takes over the lock from its starter, and publishes where it listens.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::setsid;

use super::error::BackgroundError;
use super::instance::Instance;
use super::record::InstanceRecord;
use crate::agent::{Agent, AgentError, AgentSettings};
use crate::intake::identity::AgentIdentity;

/// Leaves the session of the starter, and takes over the lock, which is the standard input.
///
/// # Errors
///
/// [`BackgroundError`] if this process was not started by a starter.
pub(crate) fn enter(instance: &Instance) -> Result<(), BackgroundError> {
    match setsid() {
        // It leads a session already.
        Ok(_) | Err(Errno::PERM) => instance.folder.adopt_lock(std::io::stdin()),
        Err(errno) => Err(BackgroundError::NotStarted { reason: std::io::Error::from(errno).to_string() }),
    }
}

/// Binds the configured address; without one, the port of the previous agent, or a free one if that is taken. Publishes
/// the address.
///
/// # Errors
///
/// [`BackgroundError`]; nothing was started.
pub(crate) fn bind(
    instance: &Instance,
    settings: AgentSettings,
    is_listen_set: bool,
) -> Result<Agent, BackgroundError> {
    let before = InstanceRecord::read(instance)?;
    let free = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let mut record = InstanceRecord::of_this_process(free, &instance.server)?;
    let identity = Arc::new(AgentIdentity::new(record.secret.as_bytes()));
    let settings = AgentSettings { identity: Some(identity), ..settings };
    let agent = match (is_listen_set, before) {
        (true, _) => Agent::bind(settings)?,
        (false, None) => Agent::bind(AgentSettings { listen: free, ..settings })?,
        (false, Some(before)) => match Agent::bind(AgentSettings { listen: before.listen, ..settings.clone() }) {
            Err(AgentError::UpstreamIsSelf { .. }) => Agent::bind(AgentSettings { listen: free, ..settings })?,
            Err(AgentError::Listen { source, .. }) if is_other_port_better(source.kind()) => {
                Agent::bind(AgentSettings { listen: free, ..settings })?
            }
            bound => bound?,
        },
    };
    record.listen = agent.address();
    let unwritable = |error: serde_json::Error| BackgroundError::NotStarted { reason: error.to_string() };
    instance.folder.write_record(&serde_json::to_string(&record).map_err(unwritable)?)?;
    Ok(agent)
}

/// Returns whether another port may be free where the previous one can't be bound.
fn is_other_port_better(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied)
}
