//! The n-th write, sync, open and truncation fails, for n = 1, 2, ... until all pass; once and for good. Acknowledged
//! messages must be there afterwards, and after a power cut: a failed sync leaves pages that only read as written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::dice::Dice;
use crate::disk::{Disk, Keeps};
use crate::journal::{self, What};
use crate::layer::{Counter, DB};
use crate::promises::opens_unrepaired;
use crate::scene::Scene;
use crate::support::tempdir;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// Runs of one sweep at the same time; mostly they wait for the agent's next try.
const AT_ONCE: usize = 6;

/// Power cuts of each run in which a sync failed.
const CUTS: u64 = 8;

/// Cuts power at the end of a run and after the sync that failed, half of the times soon.
fn cut(scene: &Scene, start: Disk, dice: &mut Dice) -> Result<(), String> {
    let records = journal::read(&scene.layer.journal());
    let last = scene.layer.now();
    let lost = records.iter().find(|record| matches!(record.what, What::Lost { .. }));
    let Some(from) = lost.map(|record| record.operation) else { return Ok(()) };
    let spans = [last.saturating_sub(from) + 1, 30];
    let moment = |number: u64| last.min(from + dice.below(spans[(number % 2) as usize]));
    let mut moments: Vec<u64> = (1..CUTS).map(moment).chain([last]).collect();
    moments.sort_unstable();
    let (mut disk, mut left) = (start, &records[..]);
    for moment in moments {
        let done = left.iter().take_while(|record| record.operation <= moment).count();
        left[..done].iter().for_each(|record| disk.apply(&record.what));
        left = &left[done..];
        let folder = tempdir();
        let keeps = Keeps::any(dice);
        disk.cut(keeps, dice, folder.path());
        let checked = scene.promises.check(&folder.path().join(DB), moment);
        checked.map_err(|why| format!("power was cut after {moment} of {last} operations, kept {keeps:?}: {why}"))?;
    }
    Ok(())
}

/// Lets the n-th operation fail, and returns whether there was one.
fn fail(kind: &str, n: u64, is_for_good: bool) -> bool {
    // Each error at every second operation, and at the others when it lasts.
    let error = if (n + u64::from(is_for_good)).is_multiple_of(2) { EIO } else { ENOSPC };
    let setting = format!("{kind}:{n}:{error}:{}", u8::from(is_for_good));
    let mut scene = Scene::new();
    let start = Disk::new(&scene.layer.root());
    let journal = scene.layer.journal().to_str().expect("a path of ours").to_owned();
    let end = scene.play(&[("OPIK_DISK_FAIL", setting.clone()), ("OPIK_DISK_JOURNAL", journal)]);
    let failed = scene.layer.count(Counter::Failed);
    let what = format!("OPIK_DISK_FAIL={setting}, {failed} errors");
    // One that can't even say how it stopped may fail; a crash never.
    assert!(matches!(end.status.code(), Some(0 | 1)), "{what}: the agent ended with {}:\n{}", end.status, end.stderr);
    assert!(!end.stderr.contains("panicked"), "{what}: the agent panicked:\n{}", end.stderr);
    let cut = cut(&scene, start, &mut Dice::new(n));
    cut.unwrap_or_else(|why| panic!("{what}: {why}\n{}", end.stderr));
    let db = scene.layer.db();
    let checked = scene.promises.check(&db, scene.layer.now()).and_then(|()| opens_unrepaired(&db));
    checked.unwrap_or_else(|why| panic!("{what}: {why}\n{}", end.stderr));
    let (unproven, back) = (end.stderr.find("the disk failed under"), end.stderr.rfind("can be used again"));
    if failed <= 1 && back > unproven && unproven.is_some() {
        let proven = end.stderr.contains("can be used again, after it was rewritten and synced");
        assert!(proven, "{what}: the store is used again without a proof:\n{}", end.stderr);
    }
    let flag = format!("{}-unproven", db.display());
    assert!(!std::path::Path::new(&flag).exists(), "{what}: the next start left {flag}");
    if failed <= 1 {
        assert_eq!(end.missing, 0, "{what}: the store did not come back:\n{}", end.stderr);
    }
    failed > 0
}

fn sweep(kind: &str) {
    std::thread::scope(|scope| {
        for is_for_good in [false, true] {
            let (all_pass, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)));
            for _ in 0..AT_ONCE {
                let (all_pass, next) = (Arc::clone(&all_pass), Arc::clone(&next));
                scope.spawn(move || {
                    while !all_pass.load(Ordering::SeqCst) {
                        let n = next.fetch_add(1, Ordering::SeqCst);
                        if !fail(kind, n, is_for_good) {
                            assert!(n > 1, "nothing ever failed: the layer does not see {kind}");
                            if !all_pass.swap(true, Ordering::SeqCst) {
                                eprintln!("{kind}, for good {is_for_good}: all pass from {n} on");
                            }
                        }
                    }
                });
            }
        }
    });
}

#[test]
fn no_failing_write_loses_what_was_acknowledged_or_stops_the_agent() {
    sweep("write");
}

#[test]
fn no_failing_sync_loses_what_was_acknowledged_or_stops_the_agent() {
    sweep("sync");
}

#[test]
fn no_failing_open_loses_what_was_acknowledged_or_stops_the_agent() {
    sweep("open");
}

#[test]
fn no_failing_truncation_loses_what_was_acknowledged_or_stops_the_agent() {
    sweep("truncate");
}
