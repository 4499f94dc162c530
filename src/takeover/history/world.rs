//! The scheduler: which thread of which host continues, and when.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::gate::{HostDepot, Killed, Report, enter};
use super::hosts::{AgentHost, PersonHost, ReplayerHost};
use super::script::{AGENTS, Course, HOSTS, HistoryStep, Order, PERSON, REPLAYERS, SharedWorld};
use crate::depot::model::ModelDepot;
use crate::depot::{Depot, Name};
use crate::fleet::names::ObjectName;
use crate::store::faked;

/// When a thread that does not report waits for a lock that another one of its process holds.
const BLOCKED_AFTER: Duration = Duration::from_millis(300);
/// When it hangs.
const HANGS_AFTER: u32 = 200;
/// Rounds of the end, ten seconds each: a released stream is not taken again for 900 s.
const ROUNDS: usize = 250;

/// A thread of a host.
struct HostThread {
    orders: Sender<Order>,
    courses: Sender<Course>,
    reports: Receiver<Report>,
    thread: JoinHandle<()>,
    is_suspended: bool,
}

/// A host, and the threads of its process if that runs.
struct HostPlace {
    folder: PathBuf,
    threads: Vec<HostThread>,
    /// Which agent its disk is of.
    agent: usize,
    /// The agent that runs there, if one does.
    running: Option<Arc<AgentHost>>,
}

pub(super) struct World {
    pub(super) shared: Arc<SharedWorld>,
    hosts: Vec<HostPlace>,
    agents: usize,
    has_lagged: bool,
    _folder: tempfile::TempDir,
}

impl World {
    pub(super) fn new(pods_only_write: bool) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a temporary folder");
        let clock = Arc::new(AtomicU64::new(10_000_000));
        faked::set(clock.clone());
        let shared = Arc::new(SharedWorld {
            depot: Arc::new(ModelDepot::new()),
            oracle: Default::default(),
            clock,
            is_server_up: AtomicBool::new(true),
            is_cut: Default::default(),
            pods_only_write,
        });
        let host = |number: usize| HostPlace {
            folder: folder.path().join(format!("host-{number}")),
            threads: Vec::new(),
            agent: number,
            running: None,
        };
        Self { shared, hosts: (0..HOSTS).map(host).collect(), agents: AGENTS, has_lagged: false, _folder: folder }
    }

    pub(super) fn take(&mut self, step: &HistoryStep) {
        match step {
            HistoryStep::Do { host, order, at, course } => self.order(*host, *order, Some((*at, *course))),
            HistoryStep::Wait(seconds) => self.pass_time(*seconds),
            HistoryStep::Silence => {
                for _ in 0..4 {
                    self.pass_time(23);
                    (AGENTS..PERSON).for_each(|host| self.order_if_idle(host, Order::Keep));
                    (AGENTS..PERSON).for_each(|host| self.order_if_idle(host, Order::Feed));
                }
            }
            HistoryStep::Kill(host) => self.kill(*host),
            HistoryStep::Stop(host) => self.stop(*host),
            HistoryStep::LoseDisk(host) => self.lose_disk(*host),
            HistoryStep::Server(is_up) => self.shared.is_server_up.store(*is_up, Ordering::SeqCst),
            HistoryStep::Cut { host, is_cut } => self.shared.is_cut[*host].store(*is_cut, Ordering::SeqCst),
            HistoryStep::ListingLags(by) => {
                self.has_lagged = true;
                self.shared.depot.set(|faults| faults.listing_lags_by = *by);
            }
        }
    }

    fn pass_time(&self, seconds: u64) {
        self.shared.clock.fetch_add(seconds * 1000, Ordering::SeqCst);
    }

    /// Fails with the whole story if anything was wrong.
    pub(super) fn check(&self) {
        let oracle = self.shared.oracle();
        if let Some(wrong) = oracle.wrong.first() {
            let (wrong, story) = (wrong.clone(), oracle.story.join("\n"));
            drop(oracle);
            let left = self.left();
            panic!("{wrong}\n{story}\nleft: {left:?}");
        }
    }

    /// All faults end: everything is delivered, after retries, and nothing is left behind.
    pub(super) fn conclude(&mut self, returns: [bool; AGENTS]) {
        self.shared.depot.set(|faults| *faults = Default::default());
        self.shared.is_cut.iter().for_each(|is_cut| is_cut.store(false, Ordering::SeqCst));
        self.shared.is_server_up.store(true, Ordering::SeqCst);
        self.kill(PERSON);
        let is_purge = |name: &Name| matches!(ObjectName::parse(name.as_str()), Some(ObjectName::Purge(_)));
        let purges: Vec<Name> = self.shared.depot.names().into_iter().filter(is_purge).collect();
        self.shared.depot.delete(&purges).expect("it answers");
        (0..HOSTS).for_each(|host| self.resume_all(host));
        self.check();
        for (host, returns) in returns.into_iter().enumerate() {
            if returns { self.start(host) } else { self.lose_disk(host) }
        }
        for round in 0..ROUNDS {
            for host in (0..AGENTS).filter(|host| returns[*host]) {
                self.order(host, Order::Turn, None);
                self.order(host, Order::Deliver { most: 20 }, None);
            }
            for host in AGENTS..PERSON {
                self.order(host, Order::Keep, None);
                self.order(host, Order::Feed, None);
                self.order(host, Order::Deliver { most: 20 }, None);
            }
            self.pass_time(10);
            self.check();
            if round > 3 && self.left().is_empty() {
                break;
            }
        }
        let left = self.left();
        let mut oracle = self.shared.oracle();
        oracle.conclude();
        if !left.is_empty() {
            oracle.wrong.push(format!("left behind: {left:?}"));
        }
    }

    /// Returns what is left in the depot and in stores.
    fn left(&self) -> Vec<String> {
        // Marks that a listing did not show when their stream was deleted stay; they are read no longer.
        let is_record = |name: &ObjectName| match name {
            ObjectName::Marks { .. } => self.has_lagged,
            ObjectName::Finished(_) => true,
            other => other.to_string().contains("/orders/"),
        };
        let names = self.shared.depot.names();
        let objects = names.iter().filter(|name| !ObjectName::parse(name.as_str()).as_ref().is_some_and(is_record));
        let mut left: Vec<String> = objects.map(ToString::to_string).collect();
        for host in &self.hosts {
            if let Some(agent) = &host.running
                && agent.waiting() > 0
            {
                left.push(format!("{} messages of {}", agent.waiting(), agent.name));
            }
        }
        left
    }

    fn order_if_idle(&mut self, host: usize, order: Order) {
        if self.hosts[host].threads.iter().all(|thread| !thread.is_suspended) {
            self.order(host, order, None);
        }
    }

    /// Gives an order to the thread whose work it is; one that is suspended first ends what it began.
    fn order(&mut self, host: usize, order: Order, course: Option<(usize, Course)>) {
        self.start(host);
        let thread = match order {
            Order::Write { .. } | Order::Feed | Order::Purge { .. } | Order::End => 0,
            Order::Turn | Order::Keep => 1,
            Order::Deliver { .. } => {
                if host < AGENTS {
                    0
                } else {
                    2
                }
            }
        };
        self.order_thread((host, thread), order, course);
    }

    fn order_thread(&mut self, (host, thread): (usize, usize), order: Order, course: Option<(usize, Course)>) {
        self.resume((host, thread));
        let Some(it) = self.hosts[host].threads.get(thread) else { return };
        it.orders.send(order).expect("it waits for orders");
        self.follow((host, thread), course);
    }

    /// Resumes a suspended thread until it is done.
    fn resume(&mut self, (host, thread): (usize, usize)) {
        if let Some(it) = self.hosts[host].threads.get_mut(thread).filter(|it| it.is_suspended) {
            it.is_suspended = false;
            it.courses.send(Course::Go).expect("it waits");
            self.follow((host, thread), None);
        }
    }

    fn resume_all(&mut self, host: usize) {
        (0..self.hosts[host].threads.len()).for_each(|thread| self.resume((host, thread)));
    }

    /// Follows a thread until it is done, suspended or dead.
    fn follow(&mut self, (host, thread): (usize, usize), course: Option<(usize, Course)>) {
        let mut passed = 0;
        loop {
            match self.report((host, thread)) {
                Report::Waits => {
                    let next = course.filter(|(at, _)| *at == passed).map_or(Course::Go, |(_, course)| course);
                    passed += 1;
                    match next {
                        Course::Suspend => return self.hosts[host].threads[thread].is_suspended = true,
                        Course::Die => {
                            self.hosts[host].threads[thread].is_suspended = true;
                            return self.kill(host);
                        }
                        next => self.hosts[host].threads[thread].courses.send(next).expect("it waits"),
                    }
                }
                Report::Done | Report::Died => return,
                Report::Panicked(text) => {
                    self.shared.wrong(format!("host {host} panicked: {text}"));
                    return self.hosts[host].threads.clear();
                }
            }
        }
    }

    fn report(&mut self, (host, thread): (usize, usize)) -> Report {
        for _ in 0..HANGS_AFTER {
            match self.hosts[host].threads[thread].reports.recv_timeout(BLOCKED_AFTER) {
                Ok(report) => return report,
                Err(RecvTimeoutError::Disconnected) => return Report::Died,
                Err(RecvTimeoutError::Timeout) => self.resume_all(host),
            }
        }
        panic!("host {host} hangs");
    }

    /// Kills a process: what its threads wait for never happens.
    fn kill(&mut self, host: usize) {
        let threads = std::mem::take(&mut self.hosts[host].threads);
        self.hosts[host].running = None;
        let mut ended = Vec::new();
        for HostThread { courses, thread, .. } in threads {
            // Without orders and courses, it ends wherever it is.
            drop(courses);
            ended.push(thread);
        }
        ended.into_iter().for_each(|thread| thread.join().expect("it catches its panics"));
    }

    /// Ends a process in order: what delivers ends first.
    fn stop(&mut self, host: usize) {
        if self.hosts[host].threads.is_empty() {
            return;
        }
        self.resume_all(host);
        let last = if host < AGENTS { 1 } else { 0 };
        self.order_thread((host, last), Order::End, None);
        self.kill(host);
    }

    fn lose_disk(&mut self, host: usize) {
        self.kill(host);
        let kept = self.shared.in_depot();
        self.shared.oracle().lose_disk(self.hosts[host].agent, &kept);
        let _ = std::fs::remove_dir_all(&self.hosts[host].folder);
        self.hosts[host].agent = self.agents;
        self.agents += 1;
    }

    fn start(&mut self, host: usize) {
        if !self.hosts[host].threads.is_empty() {
            return;
        }
        let (world, folder) = (&self.shared, &self.hosts[host].folder);
        std::fs::create_dir_all(folder).expect("there is a disk");
        let only_writes = host < AGENTS && world.pods_only_write;
        let depot: Arc<dyn Depot> =
            Arc::new(HostDepot { depot: world.depot.clone(), world: world.clone(), host, only_writes });
        let clock = || world.clock.clone();
        let (running, threads) = if host < AGENTS {
            let agent = Arc::new(AgentHost::start(world, self.hosts[host].agent, folder, depot));
            let (serving, shipping) = (agent.clone(), agent.clone());
            let threads = vec![
                spawn(clock(), move |next| next(&mut |order| serving.serve(order))),
                spawn(clock(), move |next| next(&mut shipping.ship())),
            ];
            (Some(agent), threads)
        } else if host < AGENTS + REPLAYERS {
            let replayer = Arc::new(ReplayerHost::start(world, format!("replayer {host}"), folder, depot));
            let (feeding, keeping, delivering) = (replayer.clone(), replayer.clone(), replayer);
            let threads = vec![
                spawn(clock(), move |next| feeding.feed(next)),
                spawn(clock(), move |next| next(&mut |order| keeping.keep(order))),
                spawn(clock(), move |next| next(&mut |order| delivering.deliver(order))),
            ];
            (None, threads)
        } else {
            let person = Arc::new(PersonHost::start(world, folder.clone(), depot));
            (None, vec![spawn(clock(), move |next| next(&mut person.purge()))])
        };
        (self.hosts[host].running, self.hosts[host].threads) = (running, threads);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        (0..HOSTS).for_each(|host| self.kill(host));
    }
}

/// The loop that passes the orders of a thread to its work.
type ThreadWork<'a> = &'a mut dyn FnMut(&mut dyn FnMut(Order));

/// Starts a thread of a host.
fn spawn(clock: Arc<AtomicU64>, work: impl FnOnce(ThreadWork<'_>) + Send + 'static) -> HostThread {
    let ((orders, ordered), (courses, taken), (reporter, reports)) = (channel(), channel(), channel());
    let thread = std::thread::spawn(move || {
        faked::set(clock);
        enter(reporter.clone(), taken);
        let done = catch_unwind(AssertUnwindSafe(|| {
            work(&mut |each| {
                while let Ok(order) = ordered.recv() {
                    each(order);
                    let _ = reporter.send(Report::Done);
                }
            });
        }));
        if let Err(panic) = done {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let report = match panic.is::<Killed>() {
                true => Report::Died,
                false => Report::Panicked(text.unwrap_or_default()),
            };
            let _ = reporter.send(report);
        }
    });
    HostThread { orders, courses, reports, thread, is_suspended: false }
}
