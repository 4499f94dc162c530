//! The depot in PostgreSQL, on real servers: what a lost server, a lost standby, a cancelled commit or a pooler must not
//! cost.

pub(crate) mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use opik_offline::depot::{Created, Depot, DepotError, prove};

use self::servers::{PASSWORD, Servers, open, url};
use crate::contract::{self, name};
use crate::support::networks::Authority;
use crate::support::{PATIENCE, wait_until};

/// Longer than any of these servers takes, on a busy machine as well.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// For calls that have to run into their time-out.
const SHORT: Duration = Duration::from_secs(8);

fn is_unknown<T>(answer: &Result<T, DepotError>) -> bool {
    matches!(answer, Err(DepotError::UnknownOutcome { .. }))
}

fn is_unreachable<T>(answer: &Result<T, DepotError>) -> bool {
    matches!(answer, Err(DepotError::Unreachable { .. }))
}

/// A bundle and a head, there and back.
fn assert_works(depot: &dyn Depot) {
    let (bundle, head) = (name("v1/bundles/works/0"), name("v1/heads/works"));
    assert_eq!(depot.create(&bundle, b"bundle").unwrap(), Created::New);
    assert_eq!(depot.create(&bundle, b"bundle").unwrap(), Created::AlreadyThere);
    assert_eq!(depot.get(&bundle).unwrap().unwrap().0, b"bundle");
    let one = depot.swap(&head, None, b"one").unwrap();
    let two = depot.swap(&head, Some(&one), b"two").unwrap();
    assert!(matches!(depot.swap(&head, Some(&one), b"x"), Err(DepotError::Lost { .. })), "two own one stream");
    depot.delete(&[head.clone(), bundle.clone()]).unwrap();
    let again = depot.swap(&head, None, b"two").unwrap();
    assert_ne!(again, two, "an object that was deleted and made anew looks unchanged");
    assert!(matches!(depot.swap(&head, Some(&two), b"x"), Err(DepotError::Lost { .. })));
    depot.delete(&[head]).unwrap();
    assert_eq!(depot.list(&name("v1/bundles/works"), None, 10).unwrap(), []);
}

#[test]
fn a_server_and_its_standby_keep_the_contract() {
    let Some(servers) = Servers::start_pair() else { return };
    let depot = servers.depot(LONG);
    contract::check(&depot, &servers.depot(LONG));
    assert_works(&depot);
    assert_eq!(depot.weaknesses().unwrap(), [] as [String; 0], "a sound pair of servers is warned about");
    // Fleets in one database don't meet.
    depot.create(&name("v2/fleet.json"), b"{}").unwrap();
    let port = servers.primary.port;
    let other = open(&url(&format!("localhost:{port}"), "?fleet=other"), LONG).unwrap();
    assert_eq!(other.list(&name("v2"), None, 10).unwrap(), []);
    assert_eq!(other.create(&name("v2/fleet.json"), b"{}").unwrap(), Created::New);
    let socket = format!("?host={}:{port}&fleet=test", servers.folder_in_url());
    let socket = open(&url("", &socket), LONG).unwrap();
    assert_eq!(socket.list(&name("v2"), None, 10).unwrap().len(), 1, "a Unix socket leads elsewhere");
}

#[test]
fn the_rows_of_another_program_hide_no_object_behind_them() {
    let Some(servers) = Servers::start_one() else { return };
    let depot = servers.depot(LONG);
    for object in ["v1/b/1", "v1/b/3"] {
        depot.create(&name(object), b"x").unwrap();
    }
    servers.sql(
        "INSERT INTO depot_object (fleet, name, version, bytes) \
         SELECT fleet, 'v1/b/2 and ' || n, version, bytes FROM depot_object, generate_series(1, 5) n WHERE name = 'v1/b/1'",
    );
    let listed = depot.list(&name("v1/b"), None, 3).unwrap();
    let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["v1/b/1", "v1/b/3"], "a short page is the end: what is behind it would not be delivered");
}

#[test]
fn a_pooler_in_transaction_mode_changes_nothing() {
    let Some(servers) = Servers::start_pair() else { return };
    let Some(pooler) = servers.start_pooler() else { return };
    let at = url(&format!("127.0.0.1:{}", pooler.port), "?fleet=test");
    contract::check(&open(&at, LONG).unwrap(), &open(&at, LONG).unwrap());
    let created = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let depot = open(&at, LONG).unwrap();
                for nr in 0..20 {
                    if depot.create(&name(&format!("v1/raced/{nr}")), b"x").unwrap() == Created::New {
                        created.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(created.into_inner(), 20, "a name was created twice, or never");
}

#[test]
fn many_pods_that_come_first_make_the_tables_once() {
    let Some(servers) = Servers::start_one() else { return };
    let at = url(&format!("127.0.0.1:{}", servers.primary.port), "");
    thread::scope(|scope| {
        for pod in 0..12 {
            let at = &at;
            scope.spawn(move || {
                let made = open(at, LONG).unwrap().create(&name(&format!("v1/pods/{pod}")), b"x");
                assert_eq!(made.unwrap(), Created::New, "a pod could not ship");
            });
        }
    });
    assert_eq!(servers.sql("SELECT version, reader FROM depot_schema"), "1|1");
    let weaknesses = open(&at, LONG).unwrap().weaknesses().unwrap();
    assert!(weaknesses[0].starts_with("one server: what it has is lost with it"), "{weaknesses:?}");
}

#[test]
fn the_tables_of_a_newer_release_are_used_or_refused_as_they_say() {
    let Some(servers) = Servers::start_one() else { return };
    let at = url(&format!("127.0.0.1:{}", servers.primary.port), "");
    open(&at, LONG).unwrap().create(&name("v1/a"), b"x").unwrap();
    servers.sql("INSERT INTO depot_schema VALUES (2, 1); ALTER TABLE depot_object ADD summary bytea");
    assert_eq!(open(&at, LONG).unwrap().create(&name("v1/b"), b"x").unwrap(), Created::New);
    servers.sql("INSERT INTO depot_schema VALUES (3, 3)");
    let refused = open(&at, LONG).unwrap().create(&name("v1/c"), b"x");
    assert!(matches!(&refused, Err(DepotError::Unusable { reason, .. }) if reason.contains("update")), "{refused:?}");
    assert_eq!(servers.sql("SELECT count(*) FROM depot_object"), "2", "a newer table was written to");
}

#[test]
fn a_standby_that_is_gone_makes_no_write_count_and_leaves_one_waiting() {
    let Some(servers) = Servers::start_pair() else { return };
    let depot = servers.depot(LONG);
    depot.create(&name("v1/before"), b"x").unwrap();
    let hasty = servers.depot(SHORT);
    servers.standby.kill();
    let bundle = name("v1/bundle");
    let first = hasty.create(&bundle, b"x");
    assert!(is_unknown(&first), "a bundle that only one server has counts as shipped: {first:?}");
    for _ in 0..3 {
        let repeated = hasty.create(&bundle, b"x");
        assert!(is_unreachable(&repeated), "{repeated:?}");
        let error = repeated.unwrap_err().to_string();
        assert!(error.contains("synchronous standby"), "the error names no next step: {error}");
    }
    assert_eq!(servers.waiting_for_standby(), 1, "each retry leaves a process that waits, until there are too many");
    assert_eq!(hasty.get(&name("v1/before")).unwrap().map(|(bytes, _)| bytes), Some(b"x".to_vec()));
    let warned = depot.weaknesses().unwrap();
    assert!(warned[0].contains("no synchronous standby is connected"), "{warned:?}");
    servers.start_standby();
    wait_until("the bundle is shipped", PATIENCE, || {
        matches!(hasty.create(&bundle, b"x"), Ok(Created::AlreadyThere | Created::New))
    });
    wait_until("the standby has it", PATIENCE, || {
        servers.sql_on(&servers.standby, "SELECT count(*) FROM depot_object") == "2"
    });
}

/// Runs a call that waits for the standby, and does something to its process on the server meanwhile.
fn interrupted<T: Send>(servers: &Servers, end: &str, call: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let call = scope.spawn(call);
        wait_until("a commit waits for the standby", PATIENCE, || servers.waiting_for_standby() == 1);
        servers.sql(&format!("SELECT {end}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"));
        let answer = call.join().unwrap();
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'opik-%' AND state <> 'idle'";
        wait_until("the process on the server is done", PATIENCE, || servers.sql(busy) == "0");
        answer
    })
}

/// A cancelled commit answers like any other, and the row is there to see.
#[test]
fn a_cancelled_commit_and_its_repeat_count_as_unknown() {
    let Some(servers) = Servers::start_pair() else { return };
    let depot = servers.depot(LONG);
    let head = depot.swap(&name("v1/head"), None, b"one").unwrap();
    servers.standby.kill();
    for end in ["pg_cancel_backend", "pg_terminate_backend"] {
        let bundle = name(&format!("v1/{end}"));
        let created = interrupted(&servers, end, || depot.create(&bundle, b"x"));
        assert!(is_unknown(&created), "{end}: a bundle that only one server has counts as shipped: {created:?}");
        assert_eq!(servers.sql(&format!("SELECT count(*) FROM depot_object WHERE name = '{bundle}'")), "1");
        // The row exists, and a repeat must not report it before the standby has it.
        let repeated = interrupted(&servers, end, || depot.create(&bundle, b"x"));
        assert!(is_unknown(&repeated), "{end}: the repeat counts as shipped: {repeated:?}");
        let stranger = servers.depot(LONG);
        let repeated = interrupted(&servers, end, || stranger.create(&bundle, b"x"));
        assert!(is_unknown(&repeated), "{end}: another's repeat counts as shipped: {repeated:?}");
        let read = interrupted(&servers, end, || depot.get(&bundle));
        assert!(is_unreachable(&read), "{end}: it is read as if it were safe: {read:?}");
    }
    let swapped = interrupted(&servers, "pg_cancel_backend", || depot.swap(&name("v1/head"), Some(&head), b"two"));
    assert!(is_unknown(&swapped), "a head that only one server has is owned: {swapped:?}");
    let read = interrupted(&servers, "pg_cancel_backend", || depot.get(&name("v1/head")));
    assert!(is_unreachable(&read), "a head that only one server has is read as if it were safe: {read:?}");
    servers.start_standby();
    assert_eq!(depot.create(&name("v1/pg_cancel_backend"), b"x").unwrap(), Created::AlreadyThere);
    let (bytes, version) = depot.get(&name("v1/head")).unwrap().unwrap();
    assert_eq!(bytes, b"two");
    depot.swap(&name("v1/head"), Some(&version), b"three").unwrap();
}

#[test]
fn settings_of_a_role_change_nothing_of_what_a_commit_promises() {
    let Some(servers) = Servers::start_pair() else { return };
    for setting in
        ["synchronous_commit = off", "client_min_messages = error", "default_transaction_isolation = serializable"]
    {
        servers.sql(&format!("ALTER ROLE tester SET {setting}"));
    }
    let depot = servers.depot(LONG);
    assert_works(&depot);
    assert!(prove(&depot).unwrap().are_conditions_kept());
    servers.standby.kill();
    let created = interrupted(&servers, "pg_cancel_backend", || depot.create(&name("v1/a"), b"x"));
    assert!(is_unknown(&created), "a bundle that only one server has counts as shipped: {created:?}");
}

#[test]
fn an_unused_connection_is_closed_and_a_broken_one_is_replaced() {
    let Some(servers) = Servers::start_one() else { return };
    let depot = Arc::new(open(&url(&format!("127.0.0.1:{}", servers.primary.port), ""), LONG).unwrap());
    let connections = || servers.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'opik-%'");
    thread::scope(|scope| {
        for caller in 0..8 {
            let depot = depot.clone();
            scope.spawn(move || depot.create(&name(&format!("v1/{caller}")), b"x").unwrap());
        }
    });
    assert!(["0", "1"].contains(&connections().as_str()), "each thread has a connection of its own");
    servers.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'opik-%'");
    wait_until("it is gone", PATIENCE, || connections() == "0");
    assert_eq!(depot.create(&name("v1/after"), b"x").unwrap(), Created::New, "a server's restart costs a bundle");
    wait_until("the idle connection is closed", PATIENCE, || connections() == "0");
    wait_until("a connection is opened again", PATIENCE, || {
        depot.get(&name("v1/after")).unwrap().unwrap();
        connections() == "1"
    });
    drop(depot);
    wait_until("the connection of a depot that is not used any more is closed", PATIENCE, || connections() == "0");
}

#[test]
fn refusals_name_a_next_step_and_no_password() {
    let Some(servers) = Servers::start_one() else { return };
    let host = format!("127.0.0.1:{}", servers.primary.port);
    let bundle = name("v1/a");
    let refusal = |at: &str| {
        let error = open(at, LONG).unwrap().create(&bundle, b"x").unwrap_err();
        let said = format!("{error} {} {error:?}", error.hint());
        assert!(!said.contains(PASSWORD) && !said.contains("secret"), "a password is shown: {said}");
        (error, said)
    };
    let (error, _) = refusal(&format!("postgres://tester:secret@{host}/postgres"));
    assert!(matches!(error, DepotError::NotAuthorised { .. }), "{error:?}");
    let (error, said) = refusal(&format!("postgres://tester@{host}/postgres"));
    assert!(matches!(error, DepotError::NotAuthorised { .. }) && said.contains("password"), "{said}");
    let (error, _) = refusal(&url(&host, "?dbname=nowhere"));
    assert!(matches!(error, DepotError::Missing { .. }), "{error:?}");
    let (error, said) = refusal(&url(&host, "?sslmode=verify-full"));
    assert!(matches!(error, DepotError::Unreachable { .. }) && said.contains("no TLS"), "{said}");

    // A role that may not make tables, then one that may only add.
    servers.sql("CREATE ROLE pod LOGIN PASSWORD 'secret'");
    let pod = format!("postgres://pod:secret@{host}/postgres");
    let (error, said) = refusal(&pod);
    assert!(matches!(error, DepotError::NotAuthorised { .. }) && said.contains("GRANT"), "{said}");
    open(&url(&host, ""), LONG).unwrap().create(&name("v1/mine"), b"x").unwrap();
    servers.sql("GRANT SELECT ON depot_schema TO pod");
    servers.sql("GRANT INSERT, SELECT (fleet, name, version), UPDATE (version) ON depot_object TO pod");
    let depot = open(&pod, LONG).unwrap();
    assert_eq!(depot.create(&bundle, b"x").unwrap(), Created::New, "a pod that may only add can't ship");
    assert_eq!(depot.create(&name("v1/mine"), b"y").unwrap(), Created::AlreadyThere);
    assert!(matches!(depot.get(&bundle), Err(DepotError::NotAuthorised { .. })), "a pod reads others' bundles");
    assert!(matches!(depot.delete(&[name("v1/mine")]), Err(DepotError::NotAuthorised { .. })));
}

#[test]
fn a_full_disk_and_a_lost_table_are_distinguished_from_a_lost_server() {
    let Some(servers) = Servers::start_one() else { return };
    let depot = open(&url(&format!("127.0.0.1:{}", servers.primary.port), ""), LONG).unwrap();
    depot.create(&name("v1/a"), b"x").unwrap();
    servers.sql(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RAISE EXCEPTION ''could not extend file'' USING ERRCODE = ''53100''; END'; \
         CREATE TRIGGER full_disk BEFORE INSERT ON depot_object FOR EACH ROW EXECUTE FUNCTION full_disk()",
    );
    let full = depot.create(&name("v1/b"), b"x");
    assert!(matches!(full, Err(DepotError::Full { .. })), "{full:?}");
    servers.sql("DROP TABLE depot_object");
    let gone = depot.get(&name("v1/a"));
    assert!(matches!(gone, Err(DepotError::Missing { .. })), "{gone:?}");
}

#[test]
fn only_the_server_that_the_certificate_names_gets_a_bundle() {
    let Some(servers) = Servers::start_one() else { return };
    let authority = Authority::new();
    let (certificate, key) = authority.server_files("localhost");
    servers.use_tls(&certificate, &key);
    let port = servers.primary.port;
    let ca_file = &authority.file;
    let query = format!("?sslmode=verify-full&sslrootcert={}", ca_file.display());
    let trusting = open(&url(&format!("localhost:{port}"), &query), LONG).unwrap();
    assert_works(&trusting);
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name LIKE 'opik-%'";
    wait_until("the connection is encrypted", PATIENCE, || {
        trusting.get(&name("v1/a")).unwrap();
        servers.sql(encrypted) == "t"
    });
    for (host, query) in [("localhost", "?sslmode=verify-full"), ("127.0.0.1", query.as_str())] {
        let answer = open(&url(&format!("{host}:{port}"), query), LONG).unwrap().create(&name("v1/a"), b"x");
        assert!(is_unreachable(&answer), "a stranger's certificate is accepted for {host}: {answer:?}");
    }
}
