//! The components of a running agent: one list, from which the start order, the stop order and the liveness checks
//! follow.
//!
//! # Invariants
//!
//! - Components start in the order of the list. The service manager comes last: what it reports has started.
//! - Components stop by [`StopStage`], within a stage in the order of the list. Each has stopped, or has used up its
//!   time, before the next one is asked to: a later stage still works for the earlier ones.
//! - Liveness is checked in stop order, so that of several stalled components the one closest to the clients is named.
//! - A component that panics is restarted ([`Loop`]): without its replay or its monitor an agent would store messages
//!   and never deliver them.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc;
use std::time::Duration;

use tracing::error;

use crate::liveness::{Liveness, LivenessCheck};
use crate::shutdown::Shutdown;

/// When a component stops. The stages stop in the order in which they are declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StopStage {
    /// Accepts requests. Once it has stopped, no new work comes in.
    Intake,
    /// Maintains or samples the store in the background; the next agent continues its work.
    Background,
    /// Commits what intake handed over.
    Commit,
    /// Delivers what is stored. A flush, which depends on it, has ended before.
    Delivery,
    /// Ships to the depot what was not delivered.
    Ship,
    /// Monitors the connection on which delivery depends.
    Monitor,
    /// Reports to the service manager until everything else has stopped.
    Report,
}

/// Stops a component that was started.
pub(super) type Stop = Box<dyn FnOnce()>;

/// A component that is not started yet.
pub(super) struct Component {
    name: &'static str,
    stage: StopStage,
    check: Option<LivenessCheck>,
    start: Box<dyn FnOnce() -> io::Result<Stop>>,
}

impl Component {
    /// Returns a component that `start` starts and what it returns stops.
    pub(super) fn new(
        name: &'static str,
        stage: StopStage,
        start: impl FnOnce() -> io::Result<Stop> + 'static,
    ) -> Self {
        Self { name, stage, check: None, start: Box::new(start) }
    }

    /// Adds a liveness check: the component has stalled once `silent_for` returns more than `silence_max`.
    pub(super) fn checked(
        self,
        silence_max: Duration,
        silent_for: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        let check = LivenessCheck { name: self.name, silence_max, silent_for: Box::new(silent_for) };
        Self { check: Some(check), ..self }
    }
}

/// A component with a thread of its own, which works until its [`Shutdown`] is requested.
pub(super) struct Loop<W> {
    name: &'static str,
    work: W,
    shutdown: Shutdown,
    wake: Option<Box<dyn FnOnce()>>,
    deadline: Option<(Duration, Stop)>,
}

impl<W: Fn(&Shutdown) + Send + 'static> Loop<W> {
    /// How long a component that panicked rests before it is restarted.
    const RESTART_PAUSE: Duration = Duration::from_secs(1);

    /// Returns a loop that is not waited for when it stops.
    pub(super) fn new(name: &'static str, work: W) -> Self {
        Self { name, work, shutdown: Shutdown::new(), wake: None, deadline: None }
    }

    /// Wakes the thread after the request to stop, in case it waits for something else than its [`Shutdown`].
    pub(super) fn woken_by(self, wake: impl FnOnce() + 'static) -> Self {
        Self { wake: Some(Box::new(wake)), ..self }
    }

    /// Waits this long for the thread when it stops, and calls `late` if it has not ended by then.
    pub(super) fn ends_within(self, timeout: Duration, late: impl FnOnce() + 'static) -> Self {
        Self { deadline: Some((timeout, Box::new(late))), ..self }
    }

    /// Returns a handle on the request to stop, which also has the heartbeats.
    pub(super) fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Returns the loop as a component of this stage.
    pub(super) fn component(self, stage: StopStage) -> Component {
        Component::new(self.name, stage, move || self.start())
    }

    fn start(self) -> io::Result<Stop> {
        let Self { name, work, shutdown, wake, deadline } = self;
        let (ends, ended) = mpsc::channel();
        let requested = shutdown.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Nothing is ever sent: that it is dropped with the thread is the message.
            let _ends: mpsc::Sender<()> = ends;
            while std::panic::catch_unwind(AssertUnwindSafe(|| work(&shutdown))).is_err() {
                error!("internal error: the {name} panicked and is restarted; nothing is lost");
                std::thread::sleep(Self::RESTART_PAUSE);
            }
        })?;
        Ok(Box::new(move || {
            requested.request();
            if let Some(wake) = wake {
                wake();
            }
            if let Some((timeout, late)) = deadline
                && ended.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout)
            {
                late();
            }
        }))
    }
}

/// The components that run, in stop order.
pub(super) struct Supervisor {
    running: Vec<(StopStage, Stop)>,
}

impl Supervisor {
    /// Starts the components in the order of the list.
    ///
    /// # Errors
    ///
    /// The first that can't be started. Those before it run on: the process is about to end, and has acknowledged
    /// nothing.
    pub(super) fn start(components: Vec<Component>) -> io::Result<Self> {
        let mut running = Vec::with_capacity(components.len());
        for component in components {
            running.push((component.stage, (component.start)()?));
        }
        running.sort_by_key(|(stage, _)| *stage);
        Ok(Self { running })
    }

    /// Stops every component up to and including this stage, one after the other.
    pub(super) fn stop_through(&mut self, last: StopStage) {
        let later = self.running.partition_point(|(stage, _)| *stage <= last);
        for (_, stop) in self.running.drain(..later) {
            stop();
        }
    }
}

/// Takes the liveness checks out of the components, in stop order.
pub(super) fn liveness(components: &mut [Component]) -> Liveness {
    let mut in_stop_order: Vec<&mut Component> = components.iter_mut().collect();
    in_stop_order.sort_by_key(|component| component.stage);
    Liveness::of(in_stop_order.into_iter().filter_map(|component| component.check.take()).collect())
}

/// Returns the names of the components in start order, for tests.
#[cfg(test)]
pub(super) fn start_order(components: &[Component]) -> Vec<&'static str> {
    components.iter().map(|component| component.name).collect()
}

/// Returns the names of the components in stop order, for tests.
#[cfg(test)]
pub(super) fn stop_order(components: &[Component]) -> Vec<&'static str> {
    let mut sorted: Vec<&Component> = components.iter().collect();
    sorted.sort_by_key(|component| component.stage);
    sorted.iter().map(|component| component.name).collect()
}

/// Returns the names of the components that have a liveness check, in stop order, for tests.
#[cfg(test)]
pub(super) fn checked(components: &[Component]) -> Vec<&'static str> {
    let has_check =
        |name: &&str| components.iter().any(|component| component.name == *name && component.check.is_some());
    stop_order(components).into_iter().filter(has_check).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type Log = Rc<RefCell<Vec<String>>>;

    fn component(name: &'static str, stage: StopStage, log: &Log) -> Component {
        let log = log.clone();
        Component::new(name, stage, move || {
            log.borrow_mut().push(format!("start {name}"));
            Ok(Box::new(move || log.borrow_mut().push(format!("stop {name}"))))
        })
    }

    #[test]
    fn components_start_in_list_order_and_stop_by_stage_once() {
        let log = Log::default();
        let list = vec![
            component("committer", StopStage::Commit, &log),
            component("history", StopStage::Background, &log),
            component("upkeep", StopStage::Background, &log),
            component("intake", StopStage::Intake, &log),
        ];
        let mut supervisor = Supervisor::start(list).expect("all start");
        let started = ["start committer", "start history", "start upkeep", "start intake"];
        assert_eq!(log.take(), started);
        supervisor.stop_through(StopStage::Background);
        assert_eq!(log.take(), ["stop intake", "stop history", "stop upkeep"], "a commit may still come");
        supervisor.stop_through(StopStage::Report);
        supervisor.stop_through(StopStage::Report);
        assert_eq!(log.take(), ["stop committer"]);
    }

    #[test]
    fn a_component_that_cannot_start_ends_the_start() {
        let log = Log::default();
        let failing = Component::new("upkeep", StopStage::Background, || Err(io::Error::other("no thread")));
        let list = vec![
            component("committer", StopStage::Commit, &log),
            failing,
            component("intake", StopStage::Intake, &log),
        ];
        assert!(Supervisor::start(list).is_err());
        assert_eq!(log.take(), ["start committer"], "requests were taken without an upkeep");
    }

    #[test]
    fn liveness_is_checked_in_stop_order() {
        let log = Log::default();
        let stalled = |name, stage| component(name, stage, &log).checked(Duration::ZERO, || Duration::MAX);
        let mut list = vec![stalled("committer", StopStage::Commit), stalled("intake", StopStage::Intake)];
        assert_eq!(liveness(&mut list).check().expect_err("both have stalled").name, "intake");
    }

    #[test]
    fn a_loop_that_panics_is_restarted_and_ends_when_asked() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let (done, finished) = mpsc::channel();
        let looping = Loop::new("replay-manager", move |shutdown: &Shutdown| {
            assert!(counted.fetch_add(1, Ordering::SeqCst) > 0, "the first turn fails");
            let _ = done.send(());
            while !shutdown.sleep(Duration::from_secs(60)) {}
        });
        let looping = looping.ends_within(Duration::from_secs(60), || panic!("it ends when it is asked to"));
        let mut supervisor = Supervisor::start(vec![looping.component(StopStage::Delivery)]).expect("a thread");
        finished.recv().expect("it is restarted");
        supervisor.stop_through(StopStage::Delivery);
        assert_eq!(turns.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_loop_that_is_late_is_not_waited_for_any_longer() {
        let late = Rc::new(RefCell::new(false));
        let (release, released) = mpsc::channel::<()>();
        let released = std::sync::Mutex::new(released);
        let looping = Loop::new("upkeep", move |_: &Shutdown| {
            let _ = released.lock().expect("no panic").recv();
        });
        let was_late = late.clone();
        let looping = looping.ends_within(Duration::from_millis(1), move || *was_late.borrow_mut() = true);
        let mut supervisor = Supervisor::start(vec![looping.component(StopStage::Background)]).expect("a thread");
        supervisor.stop_through(StopStage::Report);
        assert!(*late.borrow(), "the agent would never stop");
        drop(release);
    }
}
