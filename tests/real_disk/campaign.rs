//! One campaign: an agent on one file system, blocks of one file that fail, and cuts.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fuser::BackgroundSession;
use opik_offline::store::{self, Filter, Limits, OpenMode, Page, WhenFull};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tempfile::TempDir;

use crate::dice::Dice;
use crate::image::{Image, NAME};
use crate::steps::{Mounted, attach, detach, extents, step, text};
use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::{noise, tempdir, uuid7};
use crate::writes::trace;

const MIB: usize = 1 << 20;
const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };
const DB: &str = "opik_messages.db";
/// How long the agent may take to acknowledge the next write. It tries an unusable store every three seconds.
const BACK: Duration = Duration::from_secs(20);
/// Power cuts before any block has failed, which show that the test itself loses nothing.
const CUTS_BEFORE: u64 = 2;
const CUTS_AFTERWARDS: u64 = 8;

pub(crate) struct Campaign {
    file_system: &'static str,
    pub make: &'static str,
    pub package: &'static str,
    make_args: &'static [&'static str],
    /// To mount a copy beside the original.
    copy_options: &'static str,
    disk_bytes: usize,
    /// The file whose blocks fail.
    file: &'static str,
}

pub(crate) const EXT4: Campaign = Campaign {
    file_system: "ext4",
    make: "mkfs.ext4",
    package: "e2fsprogs",
    make_args: &["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    copy_options: "loop",
    disk_bytes: 64 * MIB,
    file: DB,
};

pub(crate) const XFS: Campaign = Campaign {
    file_system: "xfs",
    make: "mkfs.xfs",
    package: "xfsprogs",
    make_args: &["-q", "-f", "-K"],
    copy_options: "loop,nouuid",
    // As small as it may be.
    disk_bytes: 320 * MIB,
    file: DB,
};

/// How a campaign ended.
pub(crate) enum Verdict {
    Passed,
    Failed,
    /// The machine does not let it set up its first disk.
    NotRun,
}

/// Begins each line for the process outside.
pub(crate) const FIGURES: &str = "real_disk: ";

fn seed_and_rounds() -> (u64, u64) {
    let setting = std::env::var("OPIK_OFFLINE_REAL_DISK").unwrap_or_else(|_| "1:1".into());
    let numbers = setting.split_once(':').and_then(|(seed, rounds)| Some((seed.parse().ok()?, rounds.parse().ok()?)));
    numbers.expect("OPIK_OFFLINE_REAL_DISK is SEED:ROUNDS")
}

/// Returns how long a campaign may take.
pub(crate) fn time_limit() -> Duration {
    Duration::from_secs(120 + 60 * seed_and_rounds().1)
}

/// Items that were acknowledged, in this order.
type Acknowledged = Mutex<Vec<String>>;

/// A disk and the file system on it. Unmounted in this order.
struct Disk {
    _mounted: Mounted,
    image: Image,
    _session: BackgroundSession,
}

/// A copy of the disk as power was cut.
struct Cut {
    /// The messages acknowledged by then.
    due: Vec<String>,
    copy: PathBuf,
    how: String,
}

#[derive(Default)]
struct Round {
    acknowledged: usize,
    lost: usize,
    failed: u64,
    why: Vec<String>,
}

impl Campaign {
    /// Returns the campaign in which the blocks of this file fail.
    pub(crate) const fn failing(self, file: &'static str) -> Self {
        Self { file, ..self }
    }

    /// Plays its rounds.
    pub(crate) fn run(&self) -> Verdict {
        let (first, rounds) = seed_and_rounds();
        if let Err(why) = self.set_up(&tempdir()) {
            println!("\n{FIGURES}{why}");
            return Verdict::NotRun;
        }
        let played: Vec<Round> = (first..first + rounds)
            .map(|seed| {
                let round = self.round(seed);
                round.unwrap_or_else(|why| Round { why: vec![format!("seed {seed}: {why}")], ..Round::default() })
            })
            .collect();
        let sum = |of: fn(&Round) -> usize| played.iter().map(of).sum::<usize>();
        // On a line of its own: the harness has begun one with the name of the test.
        println!(
            "\n{FIGURES}{} failing on {}: {rounds} rounds from seed {first}, {} writes failed in {} of them; {} acknowledged, \
             {} lost in {} rounds",
            self.file,
            self.file_system,
            played.iter().map(|round| round.failed).sum::<u64>(),
            sum(|round| usize::from(round.failed > 0)),
            sum(|round| round.acknowledged),
            sum(|round| round.lost),
            sum(|round| usize::from(round.lost > 0)),
        );
        played.iter().flat_map(|round| &round.why).for_each(|why| println!("{why}"));
        if !played.iter().any(|round| round.failed > 0) {
            println!("no write failed: nothing was tested");
            return Verdict::Failed;
        }
        if played.iter().all(|round| round.why.is_empty()) { Verdict::Passed } else { Verdict::Failed }
    }

    /// Makes a disk with this file system in a folder, and mounts it.
    fn set_up(&self, folder: &TempDir) -> Result<Disk, String> {
        let place = |name: &str| folder.path().join(name);
        let image = Image::new(self.disk_bytes);
        fs::create_dir(place("fuse")).map_err(|why| why.to_string())?;
        let session = image.mount(&place("fuse")).map_err(|why| format!("FUSE can't be mounted: {why}"))?;
        let device = attach(&place("fuse").join(NAME))?;
        let made = step(self.make, &[self.make_args, &[text(&device)]].concat());
        let mounted = made.and_then(|_| Mounted::new(self.file_system, "noatime", &device, &place("disk")));
        detach(&device);
        Ok(Disk { _mounted: mounted?, image, _session: session })
    }

    fn round(&self, seed: u64) -> Result<Round, String> {
        let mut dice = Dice::new(seed);
        let folder = tempdir();
        let place = |name: &str| folder.path().join(name);
        let disk = self.set_up(&folder)?;
        let image = disk.image.clone();
        let db = place("disk").join("store").join(DB);
        let server = FakeOpik::new_stopped();
        let builder = Agent::builder(&server.url()).impatient().without_db().arg("--db").arg(text(&db));
        // A small write-ahead log, so that it is checkpointed many times; or a middling one, in which a hole stays
        // longer.
        let size_max = if self.file == DB { "12MiB" } else { ["12MiB", "48MiB"][dice.below(2) as usize] };
        let mut agent = builder.arg("--max-size").arg(size_max).arg("--free-disk-reserve").arg("0").start();
        let (acknowledged, stop) = (Acknowledged::default(), AtomicBool::new(false));
        let mut cuts = Vec::new();
        std::thread::scope(|scope| -> Result<(), String> {
            for client in 0..2 {
                let (url, acknowledged, stop, dice) = (agent.url(), &acknowledged, &stop, Dice::new(seed * 2 + client));
                scope.spawn(move || store_writes(&url, dice, acknowledged, stop));
            }
            let (db, stop_reader, dice_reader) = (&db, &stop, Dice::new(seed + 1000));
            scope.spawn(move || hold_snapshots(db, dice_reader, stop_reader));
            let mut cut = |dice: &mut Dice, when: String| -> Result<(), String> {
                let due = acknowledged.lock().expect("no thread panicked").clone();
                let copy = place(&format!("cut-{}", cuts.len()));
                let kept = image.cut(dice, &copy).map_err(|why| format!("the copy: {why}"))?;
                cuts.push(Cut { due, copy, how: format!("power was cut {when}, kept {kept}") });
                Ok(())
            };
            let count = || acknowledged.lock().expect("no thread panicked").len() as u64;
            let result = (|| {
                for _ in 0..CUTS_BEFORE {
                    sleep(Duration::from_millis(300 + dice.below(500)));
                    cut(&mut dice, "before any block had failed".into())?;
                }
                self.disturb(&image, db, &mut dice)?;
                if dice.below(3) == 0 {
                    // The page cache outlives it.
                    agent.kill9();
                    agent.restart_on_same_port();
                }
                let before = count();
                // Half of them soon, before the log has started anew.
                let moment = |number: u64| 1 + dice.below([50, 600][(number % 2) as usize]);
                let mut moments: Vec<u64> = (0..CUTS_AFTERWARDS).map(moment).collect();
                moments.sort_unstable();
                for moment in moments {
                    let (mut after, mut since) = (0, Instant::now());
                    while after < moment {
                        sleep(Duration::from_millis(2));
                        let now = count() - before;
                        if now > after {
                            (after, since) = (now, Instant::now());
                        } else if since.elapsed() > BACK {
                            let what = "writes were acknowledged after the blocks had failed";
                            return Err(format!(
                                "{after} {what}, and none for {BACK:?}; the agent wrote:\n{}",
                                agent.stderr()
                            ));
                        }
                    }
                    cut(&mut dice, format!("when {moment} more writes were acknowledged"))?;
                }
                Ok(())
            })();
            stop.store(true, Ordering::SeqCst);
            result
        })?;
        agent.kill9();
        drop(disk);
        let acknowledged = acknowledged.into_inner().expect("no thread panicked");
        let mut round = Round { acknowledged: acknowledged.len(), failed: image.failed(), ..Round::default() };
        for Cut { due, copy, how } in cuts {
            let found = self.stored(&copy, &place("copy"));
            let _ = fs::remove_file(&copy);
            let why = match found {
                Ok(found) => {
                    let lost = due.iter().filter(|id| !found.contains(*id)).count();
                    round.lost = round.lost.max(lost);
                    (lost > 0).then(|| format!("{lost} of {} are lost", due.len()))
                }
                Err(why) => Some(why),
            };
            round.why.extend(
                why.map(|why| format!("seed {seed}: {} failed on {}, {how}: {why}", self.file, self.file_system)),
            );
        }
        if !round.why.is_empty() {
            round.why.push(format!("the agent of seed {seed} wrote:\n{:.4000}", agent.stderr()));
        }
        Ok(round)
    }

    /// Makes the blocks of the file fail for a while.
    fn disturb(&self, image: &Image, db: &Path, dice: &mut Dice) -> Result<(), String> {
        let file = db.with_file_name(self.file);
        let began = Instant::now();
        let lasting = Duration::from_millis(300 + dice.below(300));
        let mut failing: Vec<Range<u64>> = Vec::new();
        // A machine that is slow today may write nothing for that long.
        while began.elapsed() < lasting || (image.failed() == 0 && began.elapsed() < 10 * lasting) {
            // The file may be missing for a moment: a failed request stays failed.
            if let Ok(found) = extents(&file, false) {
                failing.extend(found);
            }
            image.fail(failing.clone());
            if dice.below(2) == 0 {
                let _ = extents(&file, true);
            }
            sleep(Duration::from_millis(20));
        }
        image.fail(Vec::new());
        Ok(())
    }

    /// Returns what a copy of the disk has, after it was mounted and the store was opened as by the next agent.
    fn stored(&self, copy: &Path, at: &Path) -> Result<BTreeSet<String>, String> {
        let _mounted = Mounted::new(self.file_system, self.copy_options, copy, at)?;
        let db: PathBuf = at.join("store").join(DB);
        let store = store::open(&db, OpenMode::CreateIfMissing, LIMITS)
            .map_err(|why| format!("no agent can start on the copy: {why}"))?;
        let all = Page { after: None, limit: 1_000_000, newest_first: false };
        let listed = store.list(&Filter::default(), &all).map_err(|why| why.to_string())?;
        let mut found = BTreeSet::new();
        for listed in listed {
            let message = store.get(listed.id).map_err(|why| why.to_string())?.ok_or("a listed message is gone")?;
            let body: Value = serde_json::from_slice(&message.request.body.bytes).map_err(|why| why.to_string())?;
            found.insert(body["id"].as_str().unwrap_or_default().to_owned());
        }
        Ok(found)
    }
}

/// Sends writes one after another, and notes what was acknowledged.
fn store_writes(url: &str, mut dice: Dice, acknowledged: &Acknowledged, stop: &AtomicBool) {
    let mut client = Client::new(url);
    let text = noise(4000);
    while !stop.load(Ordering::SeqCst) {
        let id = uuid7();
        let from = dice.below(1000) as usize;
        let body = trace(&id, &text[from..from + 100 + dice.below(1500) as usize]);
        match client.send(&Request::new("POST", "/v1/private/traces").json(&body)) {
            Ok(answer) if answer.status == 201 => acknowledged.lock().expect("no thread panicked").push(id),
            Ok(_) => sleep(Duration::from_millis(20)),
            Err(_) => {
                client.disconnect();
                sleep(Duration::from_millis(20));
            }
        }
        sleep(Duration::from_millis(1));
    }
}

/// Reads now and then, and takes its time: checkpoints are cut short meanwhile.
fn hold_snapshots(db: &Path, mut dice: Dice, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(20 + dice.below(150)));
        let begin = || -> rusqlite::Result<Connection> {
            let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema")?;
            Ok(connection)
        };
        let Ok(_snapshot) = begin() else { continue };
        sleep(Duration::from_millis(20 + dice.below(200)));
    }
}
