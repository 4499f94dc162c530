//! The threads that serve connections: each has a runtime of its own, and a connection stays with one of them.
//!
//! A request then wakes no other thread on its way: reading, preparing, forwarding over this thread's own connections to
//! the server and answering all happen where its connection is. Threads that take each other's work, as tokio's usual
//! runtime has them, were woken five times for every stored write; measured in the commit that brought this.
//!
//! The other side of that: a task that blocks holds up the connections of its thread. Intake's tasks don't: large bodies
//! and whatever may wait for the disk go to threads for such work ([`BLOCKING_THREADS_MAX`]), commits to the committer.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Workers at least, so that one which a slow disk holds up is not all of them.
const WORKERS_MIN: usize = 2;
/// Workers at most: past that the disk and the server are what takes the time.
const WORKERS_MAX: usize = 16;
/// Threads of one worker for large bodies: preparing one may take a tenth of a second of pure work.
const BLOCKING_THREADS_MAX: usize = 2;
/// How long tasks that were cut off may take to end.
const STOPPING_MAX: Duration = Duration::from_millis(100);

/// Something to do on a worker's thread, within its runtime.
type Job = Box<dyn FnOnce() + Send>;

/// The workers of an agent. They end when it is dropped, at once and with all that they have in hand.
pub struct Workers {
    workers: Vec<Worker>,
    ended: mpsc::Receiver<()>,
}

struct Worker {
    jobs: Option<UnboundedSender<Job>>,
    connections: Arc<AtomicUsize>,
}

/// One more connection of a worker, until it is dropped.
pub(super) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Returns how many workers this machine should have.
    pub fn count() -> usize {
        available_parallelism().map_or(WORKERS_MIN, usize::from).clamp(WORKERS_MIN, WORKERS_MAX)
    }

    /// Starts so many workers.
    ///
    /// # Errors
    ///
    /// The system's, when it allows no more threads.
    pub fn start(count: usize) -> io::Result<Self> {
        let (ends, ended) = mpsc::channel::<()>();
        let mut workers = Vec::with_capacity(count);
        for _ in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .thread_name("intake-bodies")
                .max_blocking_threads(BLOCKING_THREADS_MAX)
                .build()?;
            let (jobs, mut waiting) = unbounded_channel::<Job>();
            let ends = ends.clone();
            std::thread::Builder::new().name("intake".into()).spawn(move || {
                // Dropped with the thread, which is all that is ever told.
                let _ends: mpsc::Sender<()> = ends;
                runtime.block_on(async {
                    while let Some(job) = waiting.recv().await {
                        job();
                    }
                });
                runtime.shutdown_timeout(STOPPING_MAX);
            })?;
            workers.push(Worker { jobs: Some(jobs), connections: Arc::default() });
        }
        Ok(Self { workers, ended })
    }

    /// Does something on the worker with the fewest connections, which has one more as long as the load is kept.
    ///
    /// The job gets the worker's number. It must not block.
    pub(super) fn give_connection(&self, job: impl FnOnce(usize, Load) + Send + 'static) {
        let least =
            self.workers.iter().enumerate().min_by_key(|(_, worker)| worker.connections.load(Ordering::Relaxed));
        let Some((number, worker)) = least else { return };
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let load = Load(worker.connections.clone());
        worker.give(Box::new(move || job(number, load)));
    }

    /// Calls back once every worker has taken up what was given to it before.
    pub(super) fn when_all_are_through(&self, then: impl Fn() + Send + Sync + 'static) {
        let then = Arc::new(then);
        let left = Arc::new(AtomicUsize::new(self.workers.len()));
        for worker in &self.workers {
            let (then, left) = (then.clone(), left.clone());
            worker.give(Box::new(move || {
                if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    then();
                }
            }));
        }
    }
}

impl Worker {
    fn give(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A worker that has ended drops it, and with it the connection that it is about.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.jobs = None;
        }
        // One that a disk holds up is left behind; the process ends without it.
        let until = Instant::now() + STOPPING_MAX * 2;
        while self.ended.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}
