//! SIGKILL in place of the n-th operation on the disk: the start, the making of the store, commit, claim, settling, a
//! division, the stop. Between two operations nothing happens that a restart could see, so this stands for every
//! instant.

use std::os::unix::process::ExitStatusExt;

use crate::dice::Dice;
use crate::promises::opens_unrepaired;
use crate::scene::Scene;
use crate::seed_and_count;

#[test]
fn a_kill_before_any_operation_on_the_disk_loses_nothing_acknowledged() {
    let mut unharmed = Scene::new();
    let end = unharmed.play(&[]);
    assert!(end.status.success() && end.missing == 0, "{}:\n{}", end.status, end.stderr);
    let last = unharmed.layer.now();
    let (seed, count) = seed_and_count();
    let kills = count.div_ceil(10);
    let mut dice = Dice::new(seed);
    let mut killed = 0;
    // Spread over the whole life; the seed moves them.
    for kill in 0..kills {
        let at = 1 + (kill * last / kills + dice.below(last.div_ceil(kills))) % last;
        let mut scene = Scene::new();
        let end = scene.play(&[("OPIK_DISK_KILL", at.to_string())]);
        killed += u64::from(end.status.signal() == Some(9));
        let db = scene.layer.db();
        let checked = scene.promises.check(&db, scene.layer.now()).and_then(|()| opens_unrepaired(&db));
        checked.unwrap_or_else(|why| {
            panic!(
                "killed before operation {at} of about {last} (OPIK_OFFLINE_POWER={seed}:{count}): {why}\n{}",
                end.stderr
            )
        });
    }
    // A life that ended with fewer operations was not killed.
    assert!(killed * 2 > kills, "{killed} of {kills} agents were killed");
    eprintln!("{killed} kills in {last} operations");
}
