//! Stops the background agent.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::BackgroundError;
use super::instance::Instance;
use super::record::{InstanceRecord, InstanceState};

/// Timeout for the agent's shutdown: it finishes requests in flight, and its `shutdown_timeout` may be long.
const END_WITHIN: Duration = Duration::from_secs(120);
/// For how long an agent that does not answer is retried.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What [`stop`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopEnd {
    /// None ran.
    None,
    /// This process has ended.
    Process(u32),
}

/// Asks the agent to stop, and waits until it has ended.
///
/// The signal goes to the process that has just proved to be the agent, never to an id from a file.
///
/// # Errors
///
/// [`BackgroundError::Stuck`] if it does not end in time.
pub(crate) fn stop(instance: &Instance) -> Result<StopEnd, BackgroundError> {
    let started = Instant::now();
    let mut asked: Option<(u32, InstanceRecord)> = None;
    loop {
        if instance.folder.try_lock()?.is_some() {
            return Ok(asked.map_or(StopEnd::None, |(pid, _)| StopEnd::Process(pid)));
        }
        let record = InstanceRecord::read(instance)?;
        match (&asked, record) {
            // Another one has started since.
            (Some((pid, before)), Some(record)) if record != *before => return Ok(StopEnd::Process(*pid)),
            (Some((pid, _)), _) if started.elapsed() >= END_WITHIN => {
                let reason = format!("it has been asked to {} s ago", END_WITHIN.as_secs());
                return Err(BackgroundError::Stuck { pid: Some(*pid), reason });
            }
            (None, Some(record)) => match record.state() {
                InstanceState::Ready { pid } | InstanceState::Unprotected { pid, .. } => {
                    signal(pid)?;
                    asked = Some((pid, record));
                }
                InstanceState::Absent(reason) if started.elapsed() >= ANSWER_WITHIN => {
                    return Err(BackgroundError::Stuck { pid: Some(record.pid), reason });
                }
                InstanceState::Absent(_) => {}
            },
            (None, None) if started.elapsed() >= ANSWER_WITHIN => {
                let reason = "it has not started to listen".to_owned();
                return Err(BackgroundError::Stuck { pid: None, reason });
            }
            _ => {}
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn signal(pid: u32) -> Result<(), BackgroundError> {
    let stuck = |reason: String| BackgroundError::Stuck { pid: Some(pid), reason };
    let process =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| stuck("it has no process id".into()))?;
    kill_process(process, Signal::TERM).map_err(|errno| stuck(std::io::Error::from(errno).to_string()))
}
