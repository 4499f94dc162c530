//! The URL of a depot in PostgreSQL, a connection URI as `libpq` takes it, with the fleet's name.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use ring::digest;
use zeroize::Zeroizing;

/// The port of a server that names none.
const DEFAULT_PORT: u16 = 5432;
/// The fleet of a URL that names none.
const DEFAULT_FLEET: &str = "default";
/// The longest name of a fleet, in bytes.
const FLEET_BYTES_MAX: usize = 100;
/// The parameters of a URL that are parsed: any other one is refused.
const PARAMETERS: &str = "fleet, host, dbname, user, sslmode, sslrootcert and target_session_attrs";
/// How many servers a URL may name.
const HOSTS_MAX: usize = 16;

/// Where the servers are, who we are there, and which fleet this is. The password shows itself nowhere.
#[derive(Clone)]
pub(super) struct PostgresUrl {
    /// Tried in this order until one accepts writes.
    pub(super) hosts: Vec<PostgresHost>,
    pub(super) user: String,
    pub(super) password: Option<Zeroizing<String>>,
    pub(super) database: String,
    /// The fleet's name: one database holds many fleets.
    pub(super) fleet: String,
    /// A PEM file of trusted CA certificates, instead of the built-in ones.
    pub(super) root_certificates: Option<PathBuf>,
    /// Whether `sslmode` names TLS where it could be omitted.
    tls: Option<bool>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PostgresHost {
    /// By TCP.
    Tcp { host: String, port: u16 },
    /// By the Unix socket in this folder.
    Socket { folder: PathBuf, port: u16 },
}

impl PostgresUrl {
    /// Parses a URL. `login`: user and password where the URL has none. `insecure` allows connections in plain text
    /// beyond this machine.
    ///
    /// # Errors
    ///
    /// The rule that it breaks, without any secret.
    pub(super) fn parse(text: &str, login: [Option<&str>; 2], insecure: bool) -> Result<Self, String> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or("it does not begin with postgres://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if path.contains('#') || query.contains('#') {
            return Err("it has a fragment behind a #; a # in a name is %23".to_owned());
        }
        // A password may contain an unescaped @.
        let (named, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match named.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (named, None),
        };
        let mut url = Self {
            hosts: Vec::new(),
            user: decoded(user, "user")?,
            password: password.map(|password| decoded(password, "password")).transpose()?.map(Zeroizing::new),
            database: decoded(path, "database")?,
            fleet: DEFAULT_FLEET.to_owned(),
            root_certificates: None,
            tls: None,
        };
        let mut hosts = hosts.to_owned();
        let mut known = HashSet::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decoded(key, "parameters")?;
            if !known.insert(key.clone()) {
                return Err(format!("it has the parameter {key:?} more than once"));
            }
            match key.as_str() {
                // Taken as it is: a comma separates, and an escaped slash belongs to a folder.
                "host" => value.clone_into(&mut hosts),
                key => url.set(key, decoded(value, key)?)?,
            }
        }
        if url.user.is_empty() {
            url.user = login[0].unwrap_or_default().to_owned();
        }
        if url.password.is_none() {
            url.password = login[1].map(|password| Zeroizing::new(password.to_owned()));
        }
        url.hosts = hosts.split(',').map(host_of).collect::<Result<_, _>>()?;
        url.checked(insecure)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "user" => self.user = value,
            // Behind the `?` it would not be masked where settings are shown.
            "password" => return Err("the password belongs before the @, or into PGPASSWORD".to_owned()),
            "dbname" => self.database = value,
            "fleet" => self.fleet = value,
            "sslrootcert" => self.root_certificates = Some(value.into()),
            "sslmode" => match value.as_str() {
                "verify-full" => self.tls = Some(true),
                "disable" => self.tls = Some(false),
                _ => return Err("sslmode is verify-full or disable: others let a stranger answer".to_owned()),
            },
            "target_session_attrs" if matches!(value.as_str(), "read-write" | "primary") => {}
            "target_session_attrs" => {
                return Err("target_session_attrs is read-write: a depot is of no use where it can't write".to_owned());
            }
            // Behind a ? in a password everything looks like a parameter.
            key if key.contains(['@', '/', ':']) => {
                return Err(format!(
                    "it has an unknown parameter; known are {PARAMETERS}, and a ? in a password is %3F"
                ));
            }
            key => return Err(format!("it has the unknown parameter {key:?}; known are {PARAMETERS}")),
        }
        Ok(())
    }

    fn checked(mut self, insecure: bool) -> Result<Self, String> {
        if self.user.is_empty() {
            return Err("it names no user, and neither does PGUSER".to_owned());
        }
        if self.database.is_empty() {
            self.database.clone_from(&self.user);
        }
        if self.hosts.len() > HOSTS_MAX {
            return Err(format!("it names more than {HOSTS_MAX} servers"));
        }
        let in_order = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.fleet.is_empty() || self.fleet.len() > FLEET_BYTES_MAX || !self.fleet.chars().all(in_order) {
            return Err("the fleet's name has 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-'".to_owned());
        }
        let zero = |text: &str| text.contains('\0');
        if zero(&self.user) || zero(&self.database) || self.password.as_deref().is_some_and(|it| zero(it)) {
            return Err("it contains a zero byte".to_owned());
        }
        if self.tls == Some(false) && !insecure && !self.hosts.iter().all(PostgresHost::is_local) {
            return Err("sslmode=disable would send bundles in plain text over a network; remove it, or add \
                        --fleet-insecure where the network is trusted"
                .to_owned());
        }
        if self.tls.is_none() && insecure {
            self.tls = Some(false);
        }
        Ok(self)
    }

    /// Returns whether the connection to `host` is encrypted and its certificate verified.
    pub(super) fn uses_tls(&self, host: &PostgresHost) -> bool {
        match host {
            PostgresHost::Socket { .. } => false,
            PostgresHost::Tcp { .. } => self.tls.unwrap_or(!host.is_local()),
        }
    }

    /// Returns the id of the fleet in the table: derived from its name, so that a look-up needs no other table.
    pub(super) fn fleet_id(&self) -> String {
        if let Ok(id) = uuid::Uuid::try_parse(&self.fleet) {
            return id.to_string();
        }
        let digest = digest::digest(&digest::SHA256, format!("opik-offline fleet {}", self.fleet).as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_ref()[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
    }
}

/// The URL without the password.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@", self.user)?;
        for (nr, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if nr == 0 { "" } else { "," })?;
        }
        write!(f, "/{}?fleet={}", self.database, self.fleet)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

impl PostgresHost {
    /// Returns whether it is on this machine, by its name.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Socket { .. } => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// Returns the name or address, `None` for a Unix socket.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Socket { .. } => None,
            Self::Tcp { host, .. } => Some(host),
        }
    }
}

impl fmt::Display for PostgresHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket { folder, port } => write!(f, "{}:{port}", folder.display()),
        }
    }
}

/// Parses `name`, `name:port`, `[address]:port` or an escaped folder.
fn host_of(text: &str) -> Result<PostgresHost, String> {
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, rest))) => (host, rest.strip_prefix(':')),
        Some(None) => return Err("an address has no closing bracket".to_owned()),
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.filter(|port| !port.is_empty()).map_or(Ok(DEFAULT_PORT), str::parse);
    let port = port.map_err(|_| "a port is not a number between 0 and 65535".to_owned())?;
    let host = decoded(host, "host")?;
    match host.chars().next() {
        None => Err("it names no host".to_owned()),
        Some('/') => Ok(PostgresHost::Socket { folder: host.into(), port }),
        Some(_) => Ok(PostgresHost::Tcp { host, port }),
    }
}

fn decoded(text: &str, part: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(std::borrow::Cow::into_owned).map_err(|_| format!("its {part} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PostgresUrl {
        PostgresUrl::parse(text, [None; 2], false).unwrap()
    }

    #[test]
    fn several_servers_user_password_and_fleet_are_taken_from_one_url() {
        let url = parse(
            "postgres://ana:p%40ss@db1.example:6432,[2001:db8::1]:5433,db3/traces?target_session_attrs=read-write&fleet=prod",
        );
        let tcp = |host: &str, port| PostgresHost::Tcp { host: host.to_owned(), port };
        assert_eq!(url.hosts, [tcp("db1.example", 6432), tcp("2001:db8::1", 5433), tcp("db3", 5432)]);
        assert_eq!(url.password.as_ref().map(|password| password.as_str()), Some("p@ss"));
        assert_eq!((url.user.as_str(), url.database.as_str(), url.fleet.as_str()), ("ana", "traces", "prod"));
        let socket = parse("postgresql://ana@/traces?host=%2Fvar%2Frun%2Fpostgresql");
        assert_eq!(socket.hosts, [PostgresHost::Socket { folder: "/var/run/postgresql".into(), port: 5432 }]);
        assert!(!socket.uses_tls(&socket.hosts[0]));
        assert_eq!(parse("postgres://ana@db1").database, "ana");
        let login = [Some("eva"), Some("secret")];
        let url = PostgresUrl::parse("postgres://db1/x", login, false).unwrap();
        assert_eq!((url.user.as_str(), url.password.as_ref().map(|it| it.as_str())), ("eva", Some("secret")));
        assert!(PostgresUrl::parse("postgres://db1/x", [None; 2], false).is_err());
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let url = parse("postgres://ana:hunter2@db1/traces?fleet=prod");
        assert_eq!(url.to_string(), "postgres://ana@db1:5432/traces?fleet=prod");
        assert!(!format!("{url:?}").contains("hunter2"));
        for bad in [
            "postgres://ana:hunter2@db1:port/x",
            "postgres://ana:hunter2@/x",
            "postgres://ana:hunter2@db1/x?sslmode=hunter2",
            "postgres://ana:hunter2@db1/x?fleet=hunter2%20",
            "postgres://ana:hunter2@db1/x?nothing=hunter2",
            "postgres://ana@db1/x?password=hunter2",
            "mysql://ana:hunter2@db1/x",
        ] {
            let error = PostgresUrl::parse(bad, [None; 2], false).unwrap_err();
            assert!(!error.contains("hunter2"), "the password is in the error {error:?}");
        }
    }

    #[test]
    fn no_part_of_a_url_is_ignored() {
        for (text, reason) in [
            ("postgres://ana@db1/x?Fleet=prod", "unknown parameter \"Fleet\"; known are fleet"),
            ("postgres://ana@db1/x?fleet=prod&fleet=staging", "\"fleet\" more than once"),
            ("postgres://ana@db1/x#prod", "%23"),
            ("postgres://ana@db1/x?fleet=prod#staging", "%23"),
            ("postgres://ana:hunter?2@db1/x", "a ? in a password is %3F"),
        ] {
            let error = PostgresUrl::parse(text, [None; 2], false).unwrap_err();
            assert!(error.contains(reason) && !error.contains("2@db1"), "copies would go to another fleet: {error}");
        }
    }

    #[test]
    fn bundles_cross_a_network_in_plain_text_only_when_asked_for() {
        let url = parse("postgres://ana@db1,localhost,127.0.0.1,[::1]/x");
        let tls: Vec<bool> = url.hosts.iter().map(|host| url.uses_tls(host)).collect();
        assert_eq!(tls, [true, false, false, false]);
        assert!(PostgresUrl::parse("postgres://ana@localhost,db1/x?sslmode=disable", [None; 2], false).is_err());
        let url = PostgresUrl::parse("postgres://ana@db1/x", [None; 2], true).unwrap();
        assert!(!url.uses_tls(&url.hosts[0]));
        let url = PostgresUrl::parse("postgres://ana@db1,localhost/x?sslmode=verify-full", [None; 2], true).unwrap();
        assert!(url.hosts.iter().all(|host| url.uses_tls(host)), "verify-full was asked for");
        for weak in ["require", "prefer", "allow", "verify-ca", ""] {
            assert!(
                PostgresUrl::parse(&format!("postgres://ana@db1/x?sslmode={weak}"), [None; 2], true).is_err(),
                "{weak}"
            );
        }
    }

    #[test]
    fn fleets_with_different_names_share_no_row() {
        let id = |fleet: &str| parse(&format!("postgres://ana@db1/x?fleet={fleet}")).fleet_id();
        assert_ne!(id("prod"), id("staging"));
        assert_eq!(id("prod"), id("prod"));
        assert_eq!(id("0193AB12-0000-7000-8000-000000000001"), "0193ab12-0000-7000-8000-000000000001");
        assert!(PostgresUrl::parse("postgres://ana@db1/x?target_session_attrs=any", [None; 2], false).is_err());
    }
}
