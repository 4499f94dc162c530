//! PostgreSQL for tests: a server, its standby and a pooler, as processes of an unprivileged user on loopback ports of
//! their own, in a temporary folder.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opik_offline::depot::postgres::PostgresDepot;
use opik_offline::depot::{DepotAddress, DepotError, DepotSettings};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::not_run::not_run;
use crate::support::{PATIENCE, reserve_port, tempdir, wait_until};

/// The password of the tests' user: in no error, name or address.
pub(crate) const PASSWORD: &str = "geheim:@/Gr\u{fc}n";
/// The same in a URL.
const PASSWORD_IN_URL: &str = "geheim%3A%40%2FGr%C3%BCn";
pub(crate) const USER: &str = "tester";

/// The programs, and who runs them.
pub(crate) struct Installation {
    programs: PathBuf,
    /// Numbers of a user that is not root; `None`: ours.
    owner: Option<(u32, u32)>,
}

impl Installation {
    /// Finds PostgreSQL on this machine; otherwise the running test is reported as not run.
    pub(crate) fn find() -> Option<Self> {
        let Some(programs) = programs() else {
            not_run("PostgreSQL is not installed: apt install postgresql");
            return None;
        };
        if !rustix::process::geteuid().is_root() {
            return Some(Self { programs, owner: None });
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let number_of = |user: &str| {
            let fields: Vec<&str> =
                passwd.lines().find(|line| line.starts_with(&format!("{user}:")))?.split(':').collect();
            Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
        };
        let Some(owner) = number_of("postgres").or_else(|| number_of("nobody")) else {
            not_run("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`");
            return None;
        };
        Some(Self { programs, owner: Some(owner) })
    }

    fn program(&self, name: &str) -> Command {
        self.as_owner(Command::new(self.programs.join(name)))
    }

    fn as_owner(&self, mut command: Command) -> Command {
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command.env("PGPASSWORD", PASSWORD).env("LC_ALL", "C").env_remove("PGHOST").env_remove("PGOPTIONS");
        command.stdin(Stdio::null());
        command
    }

    fn own(&self, path: &Path) {
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

/// Returns the folder of the newest installation.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| folder.join("initdb").exists())
        .collect();
    found.sort();
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
    };
    found.pop().map(|(_, folder)| folder).or_else(in_path)
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?} failed: {said}");
}

/// One server and its files.
pub(crate) struct Server {
    data: PathBuf,
    sockets: PathBuf,
    pub(crate) port: u16,
    /// Keeps the port while nothing listens.
    _port: tokio::net::TcpSocket,
    child: Mutex<Option<Child>>,
}

/// A server, and its standby once there is one.
pub(crate) struct Servers {
    installation: Installation,
    pub(crate) primary: Server,
    pub(crate) standby: Server,
    /// Removed last.
    folder: tempfile::TempDir,
}

impl Servers {
    /// Starts one server; `None` where there is no PostgreSQL.
    pub(crate) fn start_one() -> Option<Self> {
        let installation = Installation::find()?;
        let folder = tempdir();
        installation.own(folder.path());
        let server = |name: &str| {
            let reserved = reserve_port(0).unwrap();
            Server {
                data: folder.path().join(name),
                sockets: folder.path().to_owned(),
                port: reserved.local_addr().unwrap().port(),
                _port: reserved,
                child: Mutex::default(),
            }
        };
        let (primary, standby) = (server("primary"), server("standby"));
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
        let mut initdb = installation.program("initdb");
        initdb.args(["-N", "-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--pwfile"]).arg(password);
        succeed(initdb.arg("-D").arg(&primary.data));
        primary.start(&installation);
        Some(Self { installation, primary, standby, folder })
    }

    /// Starts a server and a standby that every commit waits for.
    pub(crate) fn start_pair() -> Option<Self> {
        let servers = Self::start_one()?;
        servers.add_standby();
        servers.set_synchronous(true);
        Some(servers)
    }

    fn add_standby(&self) {
        let source = format!("host=127.0.0.1 port={} user={USER} application_name=standby1", self.primary.port);
        let source = format!("{source} password='{PASSWORD}'");
        let mut backup = self.installation.program("pg_basebackup");
        succeed(backup.args(["-R", "-X", "stream", "-c", "fast", "-d", &source, "-D"]).arg(&self.standby.data));
        self.start_standby();
    }

    pub(crate) fn start_standby(&self) {
        self.standby.start(&self.installation);
        wait_until("the standby follows", PATIENCE, || {
            self.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
        });
    }

    /// Sets whether commits wait for the standby.
    pub(crate) fn set_synchronous(&self, on: bool) {
        let names = if on { "standby1" } else { "" };
        self.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"));
        self.sql("SELECT pg_reload_conf()");
        let in_force = || self.sql("SHOW synchronous_standby_names") == names;
        wait_until("the setting is in force", PATIENCE, in_force);
        if on {
            let waits = || self.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1";
            wait_until("the standby is synchronous", PATIENCE, waits);
        }
    }

    /// Runs statements on the primary; its answer without blanks at the ends.
    pub(crate) fn sql(&self, statements: &str) -> String {
        self.sql_on(&self.primary, statements)
    }

    /// Runs statements on a server.
    pub(crate) fn sql_on(&self, server: &Server, statements: &str) -> String {
        let mut psql = self.installation.program("psql");
        psql.args([
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            USER,
            "-d",
            "postgres",
            "-c",
            statements,
        ]);
        let output = psql.arg("-p").arg(server.port.to_string()).output().unwrap();
        assert!(output.status.success(), "{statements}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Makes the standby stop receiving; it keeps running.
    pub(crate) fn stop_receiving(&self) {
        self.sql_on(&self.standby, "ALTER SYSTEM SET primary_conninfo = ''");
        self.sql_on(&self.standby, "SELECT pg_reload_conf()");
        wait_until("the standby stopped receiving", PATIENCE, || {
            self.sql_on(&self.standby, "SELECT count(*) FROM pg_stat_wal_receiver") == "0"
                && self.sql("SELECT count(*) FROM pg_stat_replication") == "0"
        });
    }

    /// Makes the standby the primary.
    pub(crate) fn promote(&self) {
        assert_eq!(self.sql_on(&self.standby, "SELECT pg_promote(true, 120)"), "t", "the standby was not promoted");
    }

    /// Returns how many of a client's statements wait for the standby.
    pub(crate) fn waiting_for_standby(&self) -> usize {
        let count = self.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        count.parse().unwrap()
    }

    /// Returns the URL of both servers, the primary first.
    pub(crate) fn url(&self) -> String {
        let (primary, standby) = (self.primary.port, self.standby.port);
        url(&format!("127.0.0.1:{primary},127.0.0.1:{standby}"), "?target_session_attrs=read-write&fleet=test")
    }

    /// Returns the folder of the Unix sockets, escaped for a URL.
    pub(crate) fn folder_in_url(&self) -> String {
        self.folder.path().to_str().unwrap().replace('/', "%2F")
    }

    /// Opens a depot in the two servers.
    pub(crate) fn depot(&self, timeout: Duration) -> PostgresDepot {
        open(&self.url(), timeout).unwrap()
    }

    /// Starts a pooler in transaction mode in front of the primary; `None` where there is none.
    pub(crate) fn start_pooler(&self) -> Option<Pooler> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists());
        let Some(program) = program else {
            not_run("pgbouncer is not installed: apt install pgbouncer");
            return None;
        };
        let reserved = reserve_port(0).unwrap();
        let port = reserved.local_addr().unwrap().port();
        let (users, settings) = (self.folder.path().join("users.txt"), self.folder.path().join("pgbouncer.ini"));
        fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n")).unwrap();
        let lines = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 3\nmax_client_conn = 200\n",
            self.primary.port,
            users.display()
        );
        fs::write(&settings, lines).unwrap();
        [&users, &settings].into_iter().for_each(|file| self.installation.own(file));
        let log = fs::File::create(self.folder.path().join("pgbouncer.log")).unwrap();
        let mut command = self.installation.as_owner(Command::new(program));
        let child = command.arg(&settings).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        wait_until("the pooler listens", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Pooler { child, port, _port: reserved })
    }

    /// Gives the primary a certificate and switches TLS on.
    pub(crate) fn use_tls(&self, certificate: &str, key: &str) {
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.primary.data.join(name);
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(pem.as_bytes()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            self.installation.own(&path);
        }
        self.sql("ALTER SYSTEM SET ssl = on");
        self.sql("SELECT pg_reload_conf()");
        wait_until("TLS is on", PATIENCE, || self.sql("SHOW ssl") == "on");
    }
}

/// Returns the URL of the tests' user and database on these hosts.
pub(crate) fn url(hosts: &str, query: &str) -> String {
    format!("postgres://{USER}:{PASSWORD_IN_URL}@{hosts}/postgres{query}")
}

/// Opens a depot.
pub(crate) fn open(url: &str, timeout: Duration) -> Result<PostgresDepot, DepotError> {
    let settings = DepotSettings::plain(DepotAddress::Postgres(url.to_owned()));
    PostgresDepot::open(url, &DepotSettings { timeout, ..settings })
}

impl Server {
    fn start(&self, installation: &Installation) {
        let log = fs::File::create(self.data.with_extension("log")).unwrap();
        let mut command = installation.program("postgres");
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets).arg("-p").arg(self.port.to_string());
        for setting in [
            "listen_addresses=127.0.0.1",
            "max_connections=60",
            "shared_buffers=16MB",
            "hot_standby=on",
            "wal_receiver_status_interval=1s",
            "wal_retrieve_retry_interval=200ms",
        ] {
            command.args(["-c", setting]);
        }
        let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let (port, log) = (self.port.to_string(), self.data.with_extension("log"));
        wait_until("the server answers", PATIENCE, || {
            let ended = child.try_wait().unwrap().is_some();
            assert!(!ended, "the server ended: {}", fs::read_to_string(&log).unwrap_or_default());
            let mut ready = installation.program("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
        });
        *self.child.lock().unwrap() = Some(child);
    }

    /// Kills every process of the server at once.
    pub(crate) fn kill(&self) {
        let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let parent = Pid::from_child(&child);
        // Stopped first, so that it starts none while we look.
        let _ = kill_process(parent, Signal::STOP);
        let children = format!("/proc/{0}/task/{0}/children", parent.as_raw_nonzero());
        let children = fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        for pid in children.chain([parent]) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = child.wait();
        // A server that was killed leaves this behind, and may find another process under that number.
        let _ = fs::remove_file(self.data.join("postmaster.pid"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running pooler.
pub(crate) struct Pooler {
    child: Child,
    pub(crate) port: u16,
    _port: tokio::net::TcpSocket,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
