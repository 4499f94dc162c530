//! The threads that serve connections: each has a runtime of its own, and a connection stays on one of them.
//!
//! So a request wakes no other thread: reading, preparing, forwarding over this thread's own connections to the server
//! and answering all happen on one thread. tokio's usual runtime, whose threads steal each other's tasks, woke threads
//! five times for every stored write; the commit that introduced this has the measurement.
//!
//! The price: a task that blocks delays all connections of its thread. Intake's tasks don't block: large bodies and
//! work that may wait for the disk go to blocking threads ([`BLOCKING_THREADS_MAX`]), commits to the committer.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Workers at least, so that a slow disk that delays one does not delay all.
const WORKERS_MIN: usize = 2;
/// Workers at most: past that the disk and the server are the bottleneck.
const WORKERS_MAX: usize = 16;
/// Blocking threads of one worker: preparing a large body may take a tenth of a second of CPU time.
const BLOCKING_THREADS_MAX: usize = 2;
/// How long cancelled tasks may take to end.
const STOPPING_MAX: Duration = Duration::from_millis(100);

/// A job on a worker's thread, within its runtime.
type Job = Box<dyn FnOnce() + Send>;

/// The workers of an agent. Dropping this ends them at once, and cancels their tasks.
pub struct Workers {
    workers: Vec<IntakeWorker>,
    ended: mpsc::Receiver<()>,
}

struct IntakeWorker {
    jobs: Option<UnboundedSender<Job>>,
    connections: Arc<AtomicUsize>,
}

/// Counts one connection of a worker, until it is dropped.
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

    /// Starts `count` workers.
    ///
    /// # Errors
    ///
    /// Fails if the operating system allows no more threads.
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
                // Dropped with the thread, which is the only signal.
                let _ends: mpsc::Sender<()> = ends;
                runtime.block_on(async {
                    while let Some(job) = waiting.recv().await {
                        job();
                    }
                });
                runtime.shutdown_timeout(STOPPING_MAX);
            })?;
            workers.push(IntakeWorker { jobs: Some(jobs), connections: Arc::default() });
        }
        Ok(Self { workers, ended })
    }

    /// Runs a job on the worker with the fewest connections. The connection is counted there until the load is dropped.
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

    /// Calls back once every worker has begun all jobs that it was given before.
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

impl IntakeWorker {
    fn give(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A worker that has ended drops the job, and its connection with it.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.jobs = None;
        }
        // A worker that is blocked on the disk is not waited for; the process ends without it.
        let until = Instant::now() + STOPPING_MAX * 2;
        while self.ended.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}
