//! Sealed copies: what is carried to another machine can be read by its recipient only, and arrives whole or not at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use opik_offline::sealing::{Identity, Recipient, open, seal};
use opik_offline::store::{self, OpenMode};

use crate::durability::Dice;
use crate::encryption::{KEYS, configure};
use crate::moving::{NO_SERVER, aside, assert_no_scratch, cli, contents, make_store, move_in, opened, text};
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Request;
use crate::support::ledger::ClientLedger;
use crate::support::process::run;
use crate::support::tools::python_age;
use crate::support::{tempdir, uuid7};
use crate::writes::{Told, create, trace, update};

const BINARY: &str = env!("CARGO_BIN_EXE_opik-offline");
const API_KEY: &str = "ApiKeyMarker-0123456789";

/// Makes a key pair; returns its file and the public key.
fn key_pair(home: &Home, name: &str) -> (PathBuf, String) {
    let file = home.path().join(name);
    let made = home.cli(&["replay", "--make-identity", &text(&file)]);
    assert_eq!(made.code(), Some(0), "{made:?}");
    let recipient = made.stdout.trim().to_owned();
    assert!(recipient.starts_with("age1") && recipient.len() == 62, "{made:?}");
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600, "others can read the key");
    (file, recipient)
}

fn holds(bytes: &[u8], marker: &str) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker.as_bytes())
}

#[test]
fn a_backlog_is_carried_sealed_and_delivered_from_another_machine() {
    let server = FakeOpik::new_stopped();
    let ledger = ClientLedger::new();
    let target = Home::new();
    let (identity, recipient) = key_pair(&target, "identity.txt");
    // The air-gapped machine: its agent runs all the time, and its store is encrypted.
    let away = Home::new();
    configure(&away, Some(KEYS[1]), None);
    let mut agent = Agent::builder(&server.url()).home(away).start();
    let ids: Vec<String> = (0..5).map(|_| uuid7()).collect();
    let mut app = Told::new(&agent.url(), &ledger);
    for (n, id) in ids.iter().enumerate() {
        let body = trace(id, "BodyMarker0x8f3a");
        app.acknowledged(Request::new("POST", "/v1/private/traces").header("authorization", API_KEY).json(&body), 201);
        app.acknowledged(update(id, n as u64).header("authorization", API_KEY), 204);
    }
    let carried = agent.home().path().join("carried.age");
    let to = text(&carried);
    let dry = agent.cli(&["replay", "--to", &to, "--recipient", &recipient, "--dry-run"]);
    assert!(dry.code() == Some(0) && !carried.exists() && dry.stdout.contains("would seal 10 messages"), "{dry:?}");
    let sealed = agent.cli(&["replay", "--to", &to, "--recipient", &recipient, "--format", "json"]);
    assert_eq!((sealed.code(), sealed.json()["sealed"]["messages"].as_u64()), (Some(0), Some(10)), "{sealed:?}");
    assert_eq!(fs::metadata(&carried).expect("a file").permissions().mode() & 0o777, 0o600);
    let bytes = fs::read(&carried).expect("a file");
    for marker in [API_KEY, "BodyMarker0x8f3a", "v1/private", "SQLite"] {
        assert!(!holds(&bytes, marker), "{marker} can be read by anybody who finds the file");
    }
    assert_eq!(agent.backlog(), 10, "the copy changed the store");
    assert_eq!(server.requests().len(), 0);
    let again = agent.cli(&["replay", "--to", &to, "--recipient", &recipient]);
    assert!(again.code() == Some(1) && again.stderr.contains("not overwritten"), "{again:?}");
    assert_eq!(fs::read(&carried).ok(), Some(bytes.clone()), "a copy was overwritten");

    // It continues to accept writes; a later copy has everything again.
    app.acknowledged(create(&uuid7()).header("authorization", API_KEY), 201);
    let later = agent.home().path().join("later.age");
    assert_eq!(agent.cli(&["replay", "--to", &text(&later), "--recipient", &recipient]).code(), Some(0));

    configure(&target, Some(KEYS[0]), None);
    // It never sees the server again.
    agent.kill9();
    server.start();
    let moved = move_in(&target, &server.url(), &carried, &["--identity", &text(&identity)]);
    assert_eq!((moved.code(), moved.json()["delivered"].as_u64()), (Some(0), Some(10)), "{moved:?}");
    assert!(aside(&carried).is_some() && !carried.exists(), "{moved:?}");
    let moved = move_in(&target, &server.url(), &later, &["--identity", &text(&identity)]);
    let sources = &moved.json()["sources"][0];
    assert_eq!((sources["known"].as_u64(), sources["messages"].as_u64()), (Some(10), Some(1)), "{moved:?}");
    server.assert_equals(&ledger);
    server.assert_no_violations();
    assert_no_scratch(&target);
    assert_no_scratch(agent.home());
}

#[test]
fn a_copy_that_is_cut_off_changed_or_for_somebody_else_stores_nothing() {
    let home = Home::new();
    let (identity, recipient) = key_pair(&home, "identity.txt");
    let (other, other_recipient) = key_pair(&home, "other.txt");
    make_store(&home.db(), 300, 100_000);
    let whole = home.path().join("whole.age");
    let (to, key) = (text(&whole), text(&identity));
    let sealed = cli(&home, NO_SERVER, &["replay", "--to", &to, "--recipient", &recipient]);
    assert_eq!(sealed.code(), Some(0), "{sealed:?}");
    let bytes = fs::read(&whole).expect("a file");
    let target = Home::new();
    let refused = |name: &str, bytes: &[u8], more: &[&str], reason: &str| {
        let path = target.path().join(name);
        fs::write(&path, bytes).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let refused = move_in(&target, NO_SERVER, &path, more);
        assert_eq!(refused.code(), Some(1), "{name}: {refused:?}");
        assert!(refused.stderr.contains(reason) && refused.stderr.contains("hint: "), "{name}: {refused:?}");
        assert!(fs::read(&path).ok().as_deref() == Some(bytes) && aside(&path).is_none(), "{name} was changed");
        refused
    };
    let with_key = ["--identity", key.as_str()];
    for (name, end) in [("head.age", 100), ("middle.age", bytes.len() / 2), ("end.age", bytes.len() - 1)] {
        refused(name, &bytes[..end], &with_key, "cannot open the sealed copy");
    }
    // Cut off between two chunks, where everything that is there is as it was.
    let chunks = (bytes.len() - 400) / (64 * 1024 + 16);
    let head = bytes.windows(4).position(|window| window == b"\n---").expect("a header") + 1 + 4 + 43 + 1 + 16;
    refused("between.age", &bytes[..head + chunks * (64 * 1024 + 16)], &with_key, "its end is missing");
    for at in [5, 60, head - 20, head + 3, bytes.len() / 2, bytes.len() - 3] {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        let path = format!("changed-{at}.age");
        // A file that no longer says what it is may be another program's.
        let reason = if at == 5 { "error: " } else { "cannot open the sealed copy" };
        refused(&path, &changed, &with_key, reason);
    }
    let wrong = refused("wrong.age", &bytes, &["--identity", &text(&other)], &recipient);
    assert!(!wrong.stderr.contains(&other_recipient), "{wrong:?}");
    refused("none.age", &bytes, &[], &recipient);
    let foreign = seal(&[recipient.parse::<Recipient>().expect("a key")], b"something else").expect("sealed");
    refused("foreign.age", &foreign, &with_key, "not one that this opik-offline can move");
    let newer = [&b"opik-offline store 2\n"[..], &[7; 100]].concat();
    let newer = seal(&[recipient.parse().expect("a key")], &newer).expect("sealed");
    refused("newer.age", &newer, &with_key, "a newer opik-offline");
    if target.db().exists() {
        assert!(contents(&*opened(&target.db())).is_empty(), "a part of a broken copy was stored");
    }
    let moved = move_in(&target, NO_SERVER, &whole, &with_key);
    assert_eq!(moved.json()["sources"][0]["messages"], 303, "{moved:?}");
    assert_eq!(contents(&*opened(&target.db())), contents(&*opened(&home.db())), "order or files are others");
    assert_no_scratch(&target);
}

#[test]
fn mistakes_with_keys_are_explained_and_no_secret_is_shown() {
    let home = Home::new();
    let (identity, recipient) = key_pair(&home, "identity.txt");
    let secret = fs::read_to_string(&identity).expect("a file");
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).expect("a key");
    let (key, db) = (text(&identity), text(&home.db()));
    let to = text(&home.path().join("copy.age"));
    make_store(&home.db(), 2, 0);
    for (args, code, reason) in [
        (vec!["--to", &to], 2, "--make-identity"),
        (vec!["--to", &to, "--recipient", secret], 2, "secret"),
        (vec!["--to", &to, "--recipient", &recipient[..50]], 2, "misspelt"),
        (vec!["--to", &to, "--recipients-file", "/nowhere/keys"], 2, "/nowhere/keys"),
        (vec!["--to", "/nowhere/copy.age", "--recipient", &recipient], 1, "/nowhere/copy.age"),
        (vec!["--make-identity", &key], 2, "never overwritten"),
        (vec!["--from", "x.age", "--identity", &db], 2, "identity"),
        (vec!["--to", &to, "--recipient", &recipient, "--from", "x.db"], 2, "cannot be used with"),
        (vec!["--to", &to, "--recipient", &recipient, "--rejected"], 2, "cannot be used with"),
    ] {
        let refused = cli(&home, NO_SERVER, &[&["replay"], &args[..]].concat());
        assert_eq!(refused.code(), Some(code), "{args:?}: {refused:?}");
        assert!(refused.stderr.contains(reason), "{args:?}: {refused:?}");
        assert!(
            !refused.stderr.contains(&secret[20..]) && !refused.stdout.contains(&secret[20..]),
            "a secret is shown"
        );
    }
    assert!(!Path::new(&to).exists());
    // Recipients in a file, and one of them twice.
    let file = home.path().join("recipients.txt");
    let (_, other) = key_pair(&home, "other.txt");
    fs::write(&file, format!("# the team\n{recipient}\n\n{other}\n")).expect("a file");
    let sealed = cli(
        &home,
        NO_SERVER,
        &["replay", "--to", &to, "--recipients-file", &text(&file), "--recipient", &other, "--format", "json"],
    );
    assert_eq!(sealed.json()["sealed"]["recipients"].as_array().map(Vec::len), Some(2), "{sealed:?}");
    let empty = Home::new();
    let to = text(&empty.path().join("copy.age"));
    let nothing = cli(&empty, NO_SERVER, &["replay", "--to", &to, "--recipient", &recipient]);
    assert!(nothing.code() == Some(1) && nothing.stderr.contains("no message store"), "{nothing:?}");
}

#[test]
fn a_killed_copy_leaves_no_file_that_looks_complete() {
    let kills: u64 = std::env::var("OPIK_OFFLINE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6);
    let home = Home::new();
    let (identity, recipient) = key_pair(&home, "identity.txt");
    make_store(&home.db(), 1_000, 700_000);
    let expected = contents(&*opened(&home.db()));
    let mut dice = Dice::new(11);
    let mut takes = Duration::from_millis(400);
    for round in 0..kills {
        let to = home.path().join(format!("copy-{round}.age"));
        let mut command = home.command(BINARY);
        command.args(["replay", "--recipient", &recipient, "--to"]).arg(&to).arg("--db").arg(home.db());
        let begun = Instant::now();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started");
        // The moment is left to chance: whatever it is, the promise holds.
        std::thread::sleep(takes.mul_f64(dice.below(1100) as f64 / 1000.0));
        let _ = child.kill();
        if child.wait().expect("a child can be waited for").success() {
            takes = begun.elapsed().min(takes);
        } else {
            takes = takes.max(Duration::from_millis(50)).mul_f64(1.1);
        }
        if to.exists() {
            let target = Home::new();
            let moved = move_in(&target, NO_SERVER, &to, &["--identity", &text(&identity)]);
            assert_eq!(moved.code(), Some(3), "a file that looks complete is not: {moved:?}");
            assert!(contents(&*opened(&target.db())) == expected, "a copy lacks messages");
        }
        assert!(contents(&*opened(&home.db())) == expected, "the copy changed the store");
    }
    let last = home.path().join("copy-last.age");
    let sealed = cli(&home, NO_SERVER, &["replay", "--to", &text(&last), "--recipient", &recipient]);
    assert_eq!(sealed.code(), Some(0), "{sealed:?}");
    assert_no_scratch(&home);
}

#[test]
fn another_program_opens_what_is_sealed_here_and_the_other_way_round() {
    let python = python_age();
    let folder = tempdir();
    let identity = Identity::generate().expect("random numbers");
    let home = Home::new();
    let (key_file, _) = key_pair(&home, "identity.txt");
    let script = "
import pyrage, sys
folder, key_file, theirs = sys.argv[1:4]
text = [line for line in open(key_file).read().split() if line.startswith('AGE-SECRET-KEY-1')][0]
mine = pyrage.x25519.Identity.from_str(text)
other = pyrage.x25519.Identity.generate()
print(mine.to_public(), other.to_public())
open(folder + '/other.txt', 'w').write('# created: today\\n# public key: x\\n' + str(other) + '\\n')
for size in (0, 1, 65535, 65536, 65537, 1048576):
    plain = bytes(n % 251 for n in range(size))
    to = [mine.to_public(), pyrage.x25519.Recipient.from_str(theirs)]
    open(f'{folder}/theirs-{size}', 'wb').write(pyrage.encrypt(plain, to))
for line in sys.stdin:
    opened = pyrage.decrypt(open(folder + '/' + line.strip(), 'rb').read(), [mine])
    open(folder + '/' + line.strip() + '.opened', 'wb').write(opened)
    print(len(opened), flush=True)
";
    let script_path = folder.path().join("age.py");
    fs::write(&script_path, script).expect("a file");
    let names = folder.path().join("names");
    let sizes = [0_usize, 1, 65_535, 65_536, 65_537, 1_048_576];
    let plain = |size: usize| -> Vec<u8> { (0..size).map(|at| (at % 251) as u8).collect() };
    let key = fs::read_to_string(&key_file).expect("a file");
    let mine: Identity = key.lines().last().expect("a key").parse().expect("its own key");
    for size in sizes {
        let sealed = seal(&[identity.recipient(), mine.recipient()], &plain(size)).expect("sealed");
        fs::write(folder.path().join(format!("ours-{size}")), sealed).expect("a file");
    }
    // A whole store, too.
    make_store(&home.db(), 30, 100_000);
    let copy = folder.path().join("ours-store");
    let sealed = cli(&home, NO_SERVER, &["replay", "--to", &text(&copy), "--recipient", &mine.recipient().to_string()]);
    assert_eq!(sealed.code(), Some(0), "{sealed:?}");
    let mut lines: String = sizes.iter().map(|size| format!("ours-{size}\n")).collect();
    lines.push_str("ours-store\n");
    fs::write(&names, lines).expect("a file");
    let mut command = std::process::Command::new(python);
    command.arg(&script_path).arg(folder.path()).arg(&key_file).arg(identity.recipient().to_string());
    let output = run(command.stdin(fs::File::open(&names).expect("a file")));
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(output.stdout.contains(&mine.recipient().to_string()), "the public key is another: {output:?}");
    for size in sizes {
        let opened = fs::read(folder.path().join(format!("ours-{size}.opened"))).expect("another program opens it");
        assert!(opened == plain(size), "{size} bytes are others than were sealed");
        let theirs = fs::read(folder.path().join(format!("theirs-{size}"))).expect("a file");
        for key in [&identity, &mine] {
            let opened = open(std::slice::from_ref(key), &theirs).expect("another program sealed it for us");
            assert!(opened == plain(size), "{size} bytes are others than were sealed");
        }
    }
    // Inside is a store that this program opens, if it has the key in front of it.
    let inside = fs::read(folder.path().join("ours-store.opened")).expect("another program opens it");
    assert!(inside.starts_with(b"opik-offline store 1\n") && inside[53..].starts_with(b"SQLite format 3"));
    let path = folder.path().join("store.db");
    fs::write(&path, &inside[53..]).expect("a file");
    let key: String = inside[21..53].iter().map(|byte| format!("{byte:02x}")).collect();
    let keys =
        store::Keys { current: Some(store::EncryptionKey::parse(&key, "the copy").expect("a key")), previous: None };
    let store = store::open_with(&path, OpenMode::Existing, crate::moving::LIMITS, &keys).expect("a store");
    assert_eq!(contents(&*store), contents(&*opened(&home.db())));
    // A key file of another program works for moving.
    let other_file = folder.path().join("other.txt");
    fs::set_permissions(&other_file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let other_key = output.stdout.split_whitespace().nth(1).expect("its public key").to_owned();
    let for_other = home.path().join("for-other.age");
    assert_eq!(
        cli(&home, NO_SERVER, &["replay", "--to", &text(&for_other), "--recipient", &other_key]).code(),
        Some(0)
    );
    let target = Home::new();
    let moved = move_in(&target, NO_SERVER, &for_other, &["--identity", &text(&other_file)]);
    assert_eq!(moved.json()["sources"][0]["messages"], 30, "{moved:?}");
}
