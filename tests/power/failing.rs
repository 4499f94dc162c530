//! The n-th write, sync, open and truncation fails, for n = 1, 2, ... until all pass; once and for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::layer::Counter;
use crate::promises::opens_unrepaired;
use crate::scene::Scene;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// Runs of one sweep at the same time; mostly they wait for the agent's next try.
const AT_ONCE: usize = 6;

/// Lets the n-th operation fail, and returns whether there was one.
fn fail(kind: &str, n: u64, is_for_good: bool) -> bool {
    // Each error at every second operation, and at the others when it lasts.
    let error = if (n + u64::from(is_for_good)).is_multiple_of(2) { EIO } else { ENOSPC };
    let setting = format!("{kind}:{n}:{error}:{}", u8::from(is_for_good));
    let mut scene = Scene::new();
    let end = scene.play(&[("OPIK_DISK_FAIL", setting.clone())]);
    let failed = scene.layer.count(Counter::Failed);
    let what = format!("OPIK_DISK_FAIL={setting}, {failed} errors");
    // One that can't even say how it stopped may fail; a crash never.
    assert!(matches!(end.status.code(), Some(0 | 1)), "{what}: the agent ended with {}:\n{}", end.status, end.stderr);
    assert!(!end.stderr.contains("panicked"), "{what}: the agent panicked:\n{}", end.stderr);
    let db = scene.layer.db();
    let checked = scene.promises.check(&db, scene.layer.now()).and_then(|()| opens_unrepaired(&db));
    checked.unwrap_or_else(|why| panic!("{what}: {why}\n{}", end.stderr));
    let (unproven, back) = (end.stderr.find("the disk failed under"), end.stderr.rfind("can be used again"));
    if failed <= 1 && back > unproven && unproven.is_some() {
        let proven = end.stderr.contains("can be used again, after it was written anew and synced");
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
