//! Recorded runs, cut off at hundreds of moments.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opik_offline::sdk::file::SdkFile;
use opik_offline::sdk::trust::FileOwner;
use opik_offline::shutdown::Shutdown;
use opik_offline::store::attachment::PIECE_BYTES;
use opik_offline::store::{self, OpenMode};
use serde_json::json;

use crate::dice::Dice;
use crate::disk::{Disk, Keeps};
use crate::journal::{self, Record, What};
use crate::layer::{DB, Layer};
use crate::promises::{LIMITS, Promises, messages, opens_unrepaired, sound};
use crate::seed_and_count;
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::attachments::sha256;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, noise, tempdir, uuid7, wait_until};
use crate::writes::{create_batch, trace, update};

/// The runs share the cuts that were asked for.
const RUNS: u64 = 6;
/// The smallest write-ahead log, so that it is written back in the middle of a run.
const SMALL: [&str; 2] = ["--max-size", "6MiB"];

/// A folder as it was, and all that was done to it.
struct Recorded {
    name: &'static str,
    layer: Arc<Layer>,
    start: Disk,
}

impl Recorded {
    /// Takes the current contents of the watched folder as its initial state.
    fn begin(name: &'static str, layer: &Arc<Layer>) -> Self {
        Self { name, layer: Arc::clone(layer), start: Disk::new(&layer.root()) }
    }

    /// Cuts power at moments that the seed decides; `check` gets the folder and the last operation before the cut. The
    /// next agent takes what is left as it is.
    fn cut(self, check: impl Fn(&Path, u64) -> Result<(), String>) {
        self.cut_damaged(|folder, cut| check(folder, cut).and_then(|()| opens_unrepaired(&in_cut(folder))));
    }

    /// The same, of a run that began with a damaged store.
    fn cut_damaged(self, check: impl Fn(&Path, u64) -> Result<(), String>) {
        let (seed, count) = seed_and_count();
        let records = journal::read(&self.layer.journal());
        let last = self.layer.now();
        assert!(records.len() > 10, "{}: only {} operations were recorded", self.name, records.len());
        let mut dice = Dice::new(seed);
        // Half of them anywhere, half where most is at stake: right before a sync, and right after a name has changed.
        let at_stake: Vec<u64> = records
            .iter()
            .filter_map(|record| match record.what {
                What::Sync { .. } | What::SyncFolder { .. } => Some(record.operation - 1),
                What::Unlink { .. } | What::Rename { .. } | What::RemoveFolder { .. } => Some(record.operation),
                What::Create { .. } | What::MakeFolder { .. } => Some(record.operation),
                What::Write { .. } | What::Truncate { .. } | What::Lost { .. } => None,
            })
            .collect();
        let mut moment = |number: u64| match number % 2 {
            0 => (dice.below(last + 1), dice.below(1 << 30)),
            _ => (at_stake[dice.below(at_stake.len() as u64) as usize], dice.below(1 << 30)),
        };
        let mut cuts: Vec<(u64, u64)> = (0..count.div_ceil(RUNS)).map(&mut moment).collect();
        cuts.sort_unstable();
        let mut disk = self.start.clone();
        let mut left = &records[..];
        for (cut, fall) in &cuts {
            let done = left.iter().take_while(|record| record.operation <= *cut).count();
            left[..done].iter().for_each(|record| disk.apply(&record.what));
            left = &left[done..];
            let folder = tempdir();
            let keeps = build(&disk, *fall, folder.path());
            if let Err(why) = check(folder.path(), *cut) {
                let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("power-{}", self.name));
                let _ = fs::remove_dir_all(&kept);
                build(&disk, *fall, &kept);
                panic!(
                    "{}: power was cut after operation {cut} of {last}, the disk kept {keeps:?} of what was not synced: {why}\n\
                     The disk as it was is in {}; OPIK_OFFLINE_POWER={seed}:{count} cuts a new recording as this one.\n\
                     The operations before:\n{}",
                    self.name,
                    kept.display(),
                    story(&records, *cut)
                );
            }
        }
        eprintln!("{}: {} cuts of {} operations, {} of them changes", self.name, cuts.len(), last, records.len());
    }
}

fn build(disk: &Disk, fall: u64, to: &Path) -> Keeps {
    let mut dice = Dice::new(fall);
    let keeps = Keeps::any(&mut dice);
    disk.cut(keeps, &mut dice, to);
    keeps
}

fn story(records: &[Record], cut: u64) -> String {
    let before: Vec<_> = records.iter().filter(|record| record.operation <= cut).collect();
    let shown = before.iter().skip(before.len().saturating_sub(20));
    shown.map(|record| format!("{:>6} {:.160}\n", record.operation, format!("{:?}", record.what))).collect()
}

/// Starts an agent whose store is in the watched folder.
fn agent(layer: &Layer, server: &FakeOpik) -> Agent {
    let db = layer.db();
    let builder = Agent::builder(&server.url()).impatient().without_db().arg("--db").arg(db.to_str().expect("text"));
    let builder = SMALL.iter().fold(builder, |builder, arg| builder.arg(arg));
    layer.recording().iter().fold(builder, |builder, (name, value)| builder.env(name, value)).start()
}

/// Runs a command on the store in the watched folder, and returns its exit code.
fn command(layer: &Layer, upstream: &str, args: &[&str]) -> Option<i32> {
    let home = Home::new();
    let mut command = home.command(env!("CARGO_BIN_EXE_opik-offline"));
    command.args(args).arg("--db").arg(layer.db()).args(["--upstream", upstream]).envs(layer.recording());
    let output = command.output().expect("it can be started");
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.code()
}

fn in_cut(folder: &Path) -> PathBuf {
    folder.join(DB)
}

fn large_create(bytes: usize) -> Request {
    Request::new("POST", "/v1/private/traces").json(&trace(&uuid7(), &noise(bytes)))
}

#[test]
fn a_power_cut_loses_nothing_acknowledged_while_messages_are_stored_sent_divided_and_settled() {
    let (layer, server) = (Arc::new(Layer::new()), FakeOpik::new_stopped());
    let recorded = Recorded::begin("delivery", &layer);
    let promises = Promises::default();
    let mut agent = agent(&layer, &server);
    let url = agent.url();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (layer, promises, url) = (&layer, &promises, &url);
            scope.spawn(move || {
                let mut client = Client::new(url);
                for round in 0..12 {
                    promises.send(layer, &mut client, &large_create(500 + 2000 * (round % 3)));
                    let ids: Vec<String> = (0..=n * 2).map(|_| uuid7()).collect();
                    promises.send(layer, &mut client, &create_batch(&ids));
                    promises.send(layer, &mut client, &update(&ids[0], round as u64));
                }
            });
        }
    });
    agent.kill9();
    agent.restart_on_same_port();
    let mut client = Client::new(&agent.url());
    let ids: Vec<String> = (0..30).map(|_| uuid7()).collect();
    let refused = BTreeSet::from([ids[7].clone(), ids[21].clone()]);
    promises.send(&layer, &mut client, &create_batch(&ids));
    server.script(When::ids(refused.iter()), Then::Answer(Answer::error(422, "must not be negative")));
    promises.watch(&layer, &server, &refused);
    server.start();
    wait_until("the server has all that it takes", PATIENCE, || promises.missing(&refused) == 0);
    assert!(agent.terminate().success());
    let stored = messages(&layer.db()).expect("it is sound");
    assert_eq!(stored.len(), 2, "each refused item is kept alone");
    recorded.cut(|folder, cut| promises.check(&in_cut(folder), cut));
}

#[test]
fn a_power_cut_during_a_purge_takes_nothing_else_and_brings_nothing_back() {
    let (layer, server) = (Arc::new(Layer::new()), FakeOpik::new_stopped());
    let recorded = Recorded::begin("purge", &layer);
    let promises = Promises::default();
    let mut agent = agent(&layer, &server);
    let mut client = Client::new(&agent.url());
    for _ in 0..50 {
        promises.send(&layer, &mut client, &large_create(9000));
        promises.send(&layer, &mut client, &create_batch(&[uuid7(), uuid7()]));
    }
    let began = layer.now();
    assert_eq!(command(&layer, &server.url(), &["purge", "--yes", "--type", "CreateTrace"]), Some(0));
    promises.purged("/v1/private/traces", began, layer.now());
    for _ in 0..10 {
        promises.send(&layer, &mut client, &create_batch(&[uuid7()]));
    }
    assert!(agent.terminate().success());
    recorded.cut(|folder, cut| promises.check(&in_cut(folder), cut));
}

#[test]
fn a_power_cut_during_a_migration_loses_no_message() {
    let (layer, server) = (Arc::new(Layer::new()), FakeOpik::new_stopped());
    fs::create_dir_all(layer.db().parent().expect("a folder")).expect("folders can be made");
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores/version-1.db");
    fs::copy(old, layer.db()).expect("a copy");
    let recorded = Recorded::begin("migration", &layer);
    assert!(agent(&layer, &server).terminate().success());
    let expected = messages(&layer.db()).expect("it is sound");
    assert_eq!(expected.len(), 5);
    recorded.cut(|folder, _| {
        let found = messages(&in_cut(folder))?;
        let is_same = found.iter().map(|message| &message.request).eq(expected.iter().map(|message| &message.request));
        if is_same { Ok(()) } else { Err(format!("{} of 5 messages are there as they were", found.len())) }
    });
}

#[test]
fn a_power_cut_during_and_after_an_upload_loses_no_byte_of_it() {
    let (layer, server) = (Arc::new(Layer::new()), FakeOpik::new_stopped());
    let recorded = Recorded::begin("attachment", &layer);
    let mut agent = agent(&layer, &server);
    let mut client = Client::new(&agent.url());
    let (entity, bytes) = (uuid7(), noise(PIECE_BYTES * 2 + 1000).into_bytes());
    assert_eq!(client.post("/v1/private/traces", &trace(&entity, "t")).status, 201);
    let start = json!({
        "file_name": "report.pdf", "num_of_file_parts": 1, "mime_type": "application/pdf", "project_name": "demo",
        "entity_type": "trace", "entity_id": entity, "path": STANDARD.encode(format!("{}/", agent.url())),
    });
    let answer = client.expect(&Request::new("POST", "/v1/private/attachment/upload-start").json(&start));
    let to = answer.json()["pre_sign_urls"][0].as_str().expect("a URL").to_owned();
    let to = to.strip_prefix(&agent.url()).expect("it leads through the agent").to_owned();
    let put = client.send(&Request::new("PUT", &to).bytes(bytes.clone()).chunked(60_000)).expect("an answer");
    assert_eq!(put.status, 204, "{}", put.text());
    let acknowledged = layer.now();
    let arrived = Arc::new(std::sync::Mutex::new(u64::MAX));
    let (watched, seen) = (Arc::clone(&layer), Arc::clone(&arrived));
    let sees = When::any().and(move |request| {
        if request.path.contains("attachment") {
            *seen.lock().expect("no thread panicked") = watched.now();
        }
        false
    });
    server.script(sees, Then::status(500));
    server.start();
    wait_until("the server has the file", PATIENCE, || !server.files().is_empty());
    assert!(agent.terminate().success());
    assert_eq!(server.files().values().next().map(|file| file.sha256.clone()), Some(sha256(&bytes)));
    let arrived = *arrived.lock().expect("no thread panicked");
    recorded.cut(|folder, cut| {
        let db = in_cut(folder);
        let found = messages(&db)?.into_iter().find(|message| message.listed.attachment.is_some());
        let Some(found) = found else {
            let is_due = (acknowledged..arrived).contains(&cut);
            return if is_due { Err("the acknowledged file is lost".into()) } else { Ok(()) };
        };
        let store = sound(&db)?.ok_or("the store is gone")?;
        let mut stored = Vec::new();
        for number in 0.. {
            let Some(piece) = store.piece(found.listed.id, number).map_err(|why| why.to_string())? else { break };
            stored.extend(piece);
        }
        if stored == bytes {
            Ok(())
        } else {
            Err(format!("{} of {} bytes are stored as sent", stored.len(), bytes.len()))
        }
    });
}

#[test]
fn a_power_cut_during_a_salvage_leaves_each_row_in_the_source_or_in_the_store() {
    let layer = Arc::new(Layer::new());
    let source = layer.root().join("tmpa1b2c3/opik_messages.db");
    fs::create_dir(source.parent().expect("a folder")).expect("a folder can be made");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sdk-store/killed-mid-flight.db");
    fs::copy(fixture, &source).expect("a copy");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
    let rows = |source: &Path| -> Option<usize> {
        let scratch = tempdir();
        let mut file = SdkFile::open(source, scratch.path(), FileOwner::this_user(), &Shutdown::new()).ok()?;
        let mut rows = 0;
        while file.next_row().ok()?.is_some() {
            rows += 1;
        }
        (!file.is_damaged()).then_some(rows)
    };
    let all = rows(&source).expect("it is whole");
    let recorded = Recorded::begin("salvage", &layer);
    let from = source.to_str().expect("text");
    let code = command(&layer, "http://127.0.0.1:9/api", &["replay", "--from", from, "--remove-source"]);
    assert!(!source.exists(), "exit code {code:?}, and the source is there");
    let done = layer.now();
    let stored = |db: &Path| -> Result<BTreeSet<(String, Vec<u8>)>, String> {
        let requests = messages(db)?.into_iter().map(|message| message.request);
        Ok(requests.map(|request| (request.path, request.body.bytes.to_vec())).collect())
    };
    let expected = stored(&layer.db()).expect("it is sound");
    assert!(all > 10 && expected.len() >= all, "{} of {all} rows", expected.len());
    recorded.cut(|folder, cut| {
        let found = stored(&in_cut(folder))?;
        if !found.is_subset(&expected) {
            return Err("a row was stored that is not in the source".into());
        }
        let source = folder.join("tmpa1b2c3/opik_messages.db");
        let is_whole = cut < done && source.exists() && rows(&source) == Some(all);
        match is_whole || found == expected {
            true => Ok(()),
            false => Err(format!("{} of {} rows are stored, and the source is gone", found.len(), expected.len())),
        }
    });
}

/// A finding of the sweep above: a torn first page was called another program's file, and the agent stored nothing
/// until a person removed it.
#[test]
fn a_power_cut_that_tears_the_first_page_of_a_new_store_does_not_keep_the_next_agent_from_it() {
    let folder = tempdir();
    let db = in_cut(folder.path());
    fs::create_dir_all(db.parent().expect("a folder")).expect("folders can be made");
    fs::write(&db, [0xa5; 3072]).expect("a file can be made");
    let mut journal = [0; 512];
    // As SQLite leaves it when it begins with an empty file: magic, no page, a nonce, no page before, sector, page
    // size.
    journal[..8].copy_from_slice(&[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]);
    journal[12..28].copy_from_slice(&[0x72, 0xef, 0x89, 0x99, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x10, 0]);
    fs::write(db.with_extension("db-journal"), journal).expect("a file can be made");
    opens_unrepaired(&db).expect("an empty store can be made");
}

#[test]
fn a_power_cut_during_a_recovery_loses_nothing_that_could_be_recovered() {
    let (layer, server) = (Arc::new(Layer::new()), FakeOpik::new_stopped());
    let db = layer.db();
    let mut first = Agent::builder(&server.url()).without_db().arg("--db").arg(db.to_str().expect("text")).start();
    let mut client = Client::new(&first.url());
    let mut whole = BTreeSet::new();
    for round in 0..40 {
        let request = large_create(400 * (round % 7));
        assert_eq!(client.expect(&request).status, 201);
        whole.insert(request.body);
    }
    // Killed, so that the log is part of what has to be recovered.
    first.kill9();
    let file = fs::OpenOptions::new().write(true).open(&db).expect("it is there");
    file.write_all_at(&[0xff; 100], 0).expect("it can be written");
    drop(file);

    let recorded = Recorded::begin("recovery", &layer);
    let promises = Promises::default();
    let mut agent = agent(&layer, &server);
    let mut client = Client::new(&agent.url());
    let mut told = Vec::new();
    for _ in 0..10 {
        let request = large_create(300);
        promises.send(&layer, &mut client, &request);
        told.push((request.body, layer.now()));
    }
    assert!(agent.terminate().success());
    let beside = fs::read_dir(db.parent().expect("a folder")).expect("a folder of ours");
    let is_aside = beside.flatten().any(|entry| entry.file_name().to_string_lossy().contains(".damaged-"));
    assert!(is_aside, "the store was not damaged, and nothing had to be recovered");
    let recovered = bodies(&db).expect("it is sound");
    assert!(whole.is_subset(&recovered), "{} of 50 messages are there without any power cut", recovered.len());
    recorded.cut_damaged(|folder, cut| {
        let db = in_cut(folder);
        store::open(&db, OpenMode::CreateIfMissing, LIMITS).map_err(|why| format!("no agent can start: {why}"))?;
        let found = bodies(&db)?;
        let due = told.iter().filter(|(_, at)| *at <= cut).map(|(body, _)| body);
        let lost = whole.iter().chain(due).filter(|body| !found.contains(*body)).count();
        match (lost, found.is_subset(&recovered)) {
            (0, true) => Ok(()),
            (0, false) => Err("a message was recovered that nobody sent".into()),
            (lost, _) => Err(format!("{lost} messages are lost")),
        }
    });
}

fn bodies(db: &Path) -> Result<BTreeSet<Vec<u8>>, String> {
    Ok(messages(db)?.into_iter().map(|message| message.request.body.bytes.to_vec()).collect())
}
