//! The layers from end to end: real files in a temporary folder, an environment that the test makes up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use tempfile::TempDir;

use super::*;

/// A user's home folder and variables, made up by a test.
struct FakeEnvironment {
    home: TempDir,
    variables: BTreeMap<&'static str, OsString>,
    has_data_dir: bool,
}

impl FakeEnvironment {
    fn new() -> FakeEnvironment {
        let home = tempfile::tempdir().expect("a temporary folder");
        FakeEnvironment { home, variables: BTreeMap::new(), has_data_dir: true }
    }

    fn with(mut self, name: &'static str, value: impl Into<OsString>) -> FakeEnvironment {
        self.variables.insert(name, value.into());
        self
    }

    fn with_opik_config(self, keys: &str) -> FakeEnvironment {
        self.with_file(".opik.config", format!("[opik]\n{keys}\n"))
    }

    fn with_config_yaml(self, text: &str) -> FakeEnvironment {
        self.with_file(".config/opik-offline/config.yaml", text)
    }

    fn with_file(self, path: &str, text: impl AsRef<[u8]>) -> FakeEnvironment {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
        fs::write(path, text).expect("a new file");
        self
    }

    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    fn resolve(&self, flags: &Flags) -> Result<Config, ConfigError> {
        Config::resolve(flags, self)
    }

    fn config(&self) -> Config {
        self.resolve(&Flags::default()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns the message and hint of the error that the configuration must cause.
    fn error(&self, flags: &Flags) -> (String, String) {
        let usable = self.resolve(flags).and_then(|config| config.check_network());
        let error = usable.expect_err("an error");
        (error.to_string(), error.hint().unwrap_or_default())
    }
}

impl Environment for FakeEnvironment {
    fn variable(&self, name: &str) -> Option<OsString> {
        self.variables.get(name).cloned()
    }

    fn home_dir(&self) -> Option<PathBuf> {
        Some(self.home.path().to_owned())
    }

    fn config_dir(&self) -> Option<PathBuf> {
        Some(self.path(".config"))
    }

    fn data_dir(&self) -> Option<PathBuf> {
        self.has_data_dir.then(|| self.path(".local/share"))
    }
}

fn source(config: &Config, key: &str) -> String {
    let lines = config.settings();
    lines.iter().find(|line| line.key == key).unwrap_or_else(|| panic!("no {key}")).source.to_string()
}

#[test]
fn the_table_is_sorted_without_duplicates() {
    assert!(SETTINGS.is_sorted_by(|a, b| a.key < b.key));
    let mut names: Vec<_> =
        SETTINGS.iter().flat_map(|setting| setting.flag.into_iter().chain([setting.environment])).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn variables_are_named_after_their_keys() {
    for Setting { key, environment, file, .. } in SETTINGS {
        let upper = key.to_uppercase();
        match file {
            Keeps::OpikConfig => assert_eq!(*environment, format!("OPIK_{upper}")),
            Keeps::ConfigYaml => assert_eq!(*environment, format!("OPIK_OFFLINE_{upper}")),
            // A key has no place in a configuration file; a file of its own does.
            Keeps::Nowhere if key.ends_with("_key") => assert_eq!(*environment, format!("OPIK_OFFLINE_{upper}")),
            Keeps::Nowhere => {
                let foreign = ["_OPIK_HTTP_PROXY", "SSL_CERT_DIR", "SSL_CERT_FILE"];
                let is_own = *environment == format!("OPIK_OFFLINE_{upper}");
                // Values that are secret have no place there, either.
                assert!(
                    foreign.contains(environment) || is_own && (key.ends_with("_headers") || key.ends_with("_token")),
                    "{environment}"
                );
            }
        }
    }
}

#[test]
fn encryption_keys_are_configured_once_and_never_shown() {
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let environment = FakeEnvironment::new()
        .with("OPIK_OFFLINE_ENCRYPTION_KEY", KEY)
        .with_config_yaml("encryption_key_file: ~/key\n");
    let config = environment.config();
    assert_eq!(config.encryption_key_file.value, Some(environment.path("key")));
    let shown = format!("{:?} {:?}", config.settings(), config);
    assert!(!shown.contains(&KEY[..5]), "{shown}");
    let (message, hint) = environment.with("OPIK_OFFLINE_ENCRYPTION_KEY_FILE", "/run/key").error(&Flags::default());
    assert!(message.contains("encryption_key_file") && message.contains("OPIK_OFFLINE_ENCRYPTION_KEY"), "{message}");
    assert!(!message.contains(&KEY[..5]) && hint.contains("unset one"), "{message} {hint}");
}

#[test]
fn unset_settings_have_their_documented_default() {
    let environment = FakeEnvironment::new();
    let config = environment.config();
    for line in config.settings() {
        assert_eq!(line.source, Source::Default, "{}", line.key);
        if line.key != "db" {
            let documented = SETTINGS.iter().find(|setting| setting.key == line.key).map(|setting| setting.default);
            assert_eq!(Some(line.value.as_str()), documented, "{}", line.key);
        }
    }
    assert_eq!(config.db.value, environment.path(".local/share/opik-offline/opik_messages.db"));
    assert_eq!(config.replay_tick_interval.value, Duration::from_millis(300));
    assert_eq!(config.max_size.value, ByteSize::new(10 << 30));
    assert!(config.files.iter().all(|file| !file.is_present));
    assert!(!config.replay_batch_size.is_set());
}

#[test]
fn layers_take_precedence_in_order() {
    let environment = FakeEnvironment::new()
        .with_opik_config("workspace = from-file\nreplay_batch_size = 7\nreplay_tick_interval = 2")
        .with_config_yaml("max_attempts: 3\nlisten: :7000\nretry_interval: 20s\n")
        .with("OPIK_WORKSPACE", "from-environment")
        .with("OPIK_REPLAY_BATCH_SIZE", "8")
        .with("OPIK_OFFLINE_LISTEN", "localhost:7001");
    let flags =
        Flags { replay_batch_size: Some("9".into()), listen: Some("127.0.0.1:7002".into()), ..Flags::default() };
    let config = environment.resolve(&flags).expect("valid");

    assert_eq!(config.replay_batch_size.value, 9);
    assert_eq!(source(&config, "replay_batch_size"), "flag --batch-size");
    assert_eq!(config.listen.value.to_string(), "127.0.0.1:7002");
    assert_eq!(config.workspace.value, "from-environment");
    assert_eq!(source(&config, "workspace"), "environment OPIK_WORKSPACE");
    assert_eq!(config.replay_tick_interval.value, Duration::from_secs(2));
    assert_eq!(source(&config, "replay_tick_interval"), "~/.opik.config");
    assert_eq!(config.max_attempts.value, 3);
    assert_eq!(source(&config, "max_attempts"), "~/.config/opik-offline/config.yaml");
    assert_eq!(config.retry_interval.value, Duration::from_secs(20));
    assert_eq!(source(&config, "when_full"), "default");
    assert!(config.files.iter().all(|file| file.is_present));
}

#[test]
fn a_value_equal_to_its_default_still_counts_as_set() {
    let config = FakeEnvironment::new().with("OPIK_REPLAY_BATCH_SIZE", "50").config();
    assert!(config.replay_batch_size.is_set());
}

#[test]
fn sources_are_ordered_by_precedence() {
    let path = || PathBuf::from("f");
    let rising = [
        Source::Default,
        Source::ApiKey(Box::new(Source::Flag { name: "--x" })),
        Source::ConfigYaml { path: path() },
        Source::OpikConfig { path: path() },
        Source::Environment { name: "X" },
        Source::Flag { name: "--x" },
    ];
    assert!(rising.is_sorted());
}

#[test]
fn the_server_is_resolved_from_seven_sources() {
    let key = format!("k*{}", base64::engine::general_purpose::STANDARD.encode(r#"{"baseUrl":"http://from-key"}"#));
    let mut environment = FakeEnvironment::new();
    let expect = |environment: &FakeEnvironment, flags: &Flags, url: &str, from: &str| {
        let config = environment.resolve(flags).expect("valid");
        assert_eq!((config.upstream.value.to_string(), source(&config, "upstream")), (url.to_owned(), from.to_owned()));
    };
    let none = Flags::default();
    expect(&environment, &none, "https://www.comet.com/opik/api", "default");
    environment = environment.with("OPIK_API_KEY", &key);
    expect(&environment, &none, "http://from-key/opik/api", "api_key from environment OPIK_API_KEY");
    environment = environment.with_config_yaml("upstream: http://from-yaml/api/\n");
    expect(&environment, &none, "http://from-yaml/api", "~/.config/opik-offline/config.yaml");
    environment = environment.with_opik_config("url_override = http://from-file/api/");
    expect(&environment, &none, "http://from-file/api", "~/.opik.config");
    environment = environment.with("OPIK_URL_OVERRIDE", "http://from-sdk/api");
    expect(&environment, &none, "http://from-sdk/api", "environment OPIK_URL_OVERRIDE");
    environment = environment.with("OPIK_OFFLINE_UPSTREAM", "http://from-ours/api");
    expect(&environment, &none, "http://from-ours/api", "environment OPIK_OFFLINE_UPSTREAM");
    let flags = Flags { upstream: Some("http://from-flag/api".into()), ..Flags::default() };
    expect(&environment, &flags, "http://from-flag/api", "flag --upstream");
}

#[test]
fn invalid_values_are_rejected_with_key_value_and_source() {
    let environment = FakeEnvironment::new().with("OPIK_REPLAY_BATCH_SIZE", "ten");
    let (message, hint) = environment.error(&Flags::default());
    let expected = "replay_batch_size: cannot use \"ten\" from environment OPIK_REPLAY_BATCH_SIZE: not a whole number";
    assert_eq!(message, expected);
    assert_eq!(hint, "replay_batch_size means: messages per replay batch; adaptive unless set; the default is 50");

    let environment = FakeEnvironment::new().with_opik_config("check_tls_certificate = maybe");
    let (message, _) = environment.error(&Flags::default());
    assert_eq!(message, "check_tls_certificate: cannot use \"maybe\" from ~/.opik.config: neither true nor false");

    let environment = FakeEnvironment::new().with_config_yaml("max_size: lots\n");
    let (message, _) = environment.error(&Flags::default());
    assert!(
        message.starts_with("max_size: cannot use \"lots\" from ~/.config/opik-offline/config.yaml: not a size"),
        "{message}"
    );

    let flags = Flags { listen: Some("nowhere".into()), ..Flags::default() };
    let (message, _) = FakeEnvironment::new().error(&flags);
    assert!(message.starts_with("listen: cannot use \"nowhere\" from flag --listen: not an IP address"), "{message}");
}

#[test]
fn values_beyond_their_limits_are_rejected() {
    let cases = [
        ("OPIK_REPLAY_BATCH_SIZE", "0", "not between 1 and 100000"),
        ("OPIK_REPLAY_BATCH_SIZE", "100001", "not between 1 and 100000"),
        ("OPIK_REPLAY_TICK_INTERVAL", "0", "not between 1ms and 1d"),
        ("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "-1", "negative"),
        ("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "nan", "not a duration"),
        ("OPIK_OFFLINE_MAX_BODY_SIZE", "2GiB", "not between 1KiB and"),
        ("OPIK_OFFLINE_MAX_SIZE", "1", "less than 1MiB"),
        ("OPIK_OFFLINE_MAX_ATTEMPTS", "0", "not between 1 and"),
    ];
    for (name, value, reason) in cases {
        let (message, _) = FakeEnvironment::new().with(name, value).error(&Flags::default());
        assert!(message.contains(reason), "{name}={value}: {message}");
    }
    let config = FakeEnvironment::new().with("OPIK_REPLAY_BATCH_REPLAY_DELAY", "0").config();
    assert_eq!(config.replay_batch_replay_delay.value, Duration::ZERO);
}

#[test]
fn blank_values_fall_through_to_the_next_layer() {
    let environment = FakeEnvironment::new()
        .with_opik_config("workspace = from-file\napi_key =")
        .with("OPIK_WORKSPACE", " ")
        .with("OPIK_API_KEY", "")
        .with("OPIK_CONFIG_PATH", "  ");
    let config = environment.config();
    assert_eq!(config.workspace.value, "from-file");
    assert_eq!(config.api_key.value, None);
}

#[test]
fn blank_flags_are_rejected() {
    let flags = Flags { upstream: Some("".into()), ..Flags::default() };
    let (message, _) = FakeEnvironment::new().error(&flags);
    assert!(message.starts_with("upstream: cannot use \"\" from flag --upstream"), "{message}");
}

#[test]
fn a_named_file_replaces_the_default_one() {
    let environment = FakeEnvironment::new()
        .with_opik_config("workspace = usual")
        .with_file("other.ini", "[opik]\nworkspace: chosen\n")
        .with("OPIK_CONFIG_PATH", " ~/other.ini ");
    let config = environment.config();
    assert_eq!(config.workspace.value, "chosen");
    assert_eq!(source(&config, "workspace"), "~/other.ini");

    let (message, hint) = FakeEnvironment::new().with("OPIK_CONFIG_PATH", "/nowhere/at.all").error(&Flags::default());
    assert_eq!(message, "cannot read /nowhere/at.all, named by environment OPIK_CONFIG_PATH: no such file");
    assert!(hint.contains("~/.opik.config"));
}

#[test]
fn parse_errors_name_file_and_line() {
    let cases = [
        (".opik.config", "[opik]\nworkspace\n", "cannot read ~/.opik.config, line 2: expected `key = value`"),
        (".opik.config", "workspace = x\n", "cannot read ~/.opik.config, line 1: expected a section"),
        (
            ".opik.config",
            "[opik]\na=1\na=2\n",
            "cannot read ~/.opik.config, line 3: key a is a duplicate in section [opik]",
        ),
        (
            ".config/opik-offline/config.yaml",
            "retry_interval: 7s\nlisten: [\n",
            "cannot read ~/.config/opik-offline/config.yaml, line ",
        ),
        (
            ".config/opik-offline/config.yaml",
            "db: [a]\n",
            "cannot read ~/.config/opik-offline/config.yaml: db: expected a single value",
        ),
    ];
    for (path, text, expected) in cases {
        let (message, hint) = FakeEnvironment::new().with_file(path, text).error(&Flags::default());
        assert!(message.starts_with(expected), "{message}");
        assert!(!hint.is_empty(), "{message}");
    }
    let (message, _) = FakeEnvironment::new().with_file(".opik.config", b"[opik]\na = \xff\n").error(&Flags::default());
    assert_eq!(message, "cannot read ~/.opik.config: not valid UTF-8");
    let (message, _) = FakeEnvironment::new().with_file(".opik.config/x", "").error(&Flags::default());
    assert!(message.starts_with("cannot read ~/.opik.config: "), "{message}");
    let (message, _) = FakeEnvironment::new().with_file(".opik.config", vec![b'#'; 2 << 20]).error(&Flags::default());
    assert_eq!(message, "cannot read ~/.opik.config: larger than 1MiB");
}

#[test]
fn unknown_keys_are_errors_only_in_our_own_file() {
    let (message, hint) = FakeEnvironment::new().with_config_yaml("max_sise: 1GiB\n").error(&Flags::default());
    assert_eq!(message, "cannot read ~/.config/opik-offline/config.yaml: unknown key max_sise");
    assert_eq!(hint, "did you mean max_size?");
    let (_, hint) = FakeEnvironment::new().with_config_yaml("shutdown-timeout: 1s\n").error(&Flags::default());
    assert_eq!(hint, "did you mean shutdown_timeout?");
    let (_, hint) = FakeEnvironment::new().with_config_yaml("zzz: 1\n").error(&Flags::default());
    assert!(
        hint.starts_with(
            "the known keys are acknowledge, adopt_orphans, all_otlp_traces, allowed_hosts, client_cert_file, client_key_file, "
        ),
        "{hint}"
    );
    let (_, hint) = FakeEnvironment::new().with_config_yaml("workspace: x\n").error(&Flags::default());
    assert!(hint.contains("~/.opik.config"), "{hint}");

    FakeEnvironment::new().with_opik_config("project_name = x\nanything = y").config();
}

#[test]
fn no_secret_is_printed_anywhere() {
    let api_key = "sk-live-0123456789abcdef";
    let token = "token-0123456789abcdef";
    let environment = FakeEnvironment::new()
        .with("HTTPS_PROXY", "http://me:hunter3@proxy:3128")
        .with("OPIK_OFFLINE_UPSTREAM_HEADERS", "X-Gateway: hunter4")
        .with("OPIK_API_KEY", api_key)
        .with("_OPIK_HTTP_PROXY", "http://me:hunter2@proxy:3128")
        .with_config_yaml(&format!("intake_token: {token}\n"));
    let config = environment.config();
    let printed = format!("{config:?} {:?}", config.settings());
    for secret in [api_key, token, "hunter2", "hunter3", "hunter4"] {
        assert!(!printed.contains(secret), "{secret} is shown");
    }
    assert!(printed.contains("sk-l...(24 chars)"));
    assert_eq!(config.api_key.value.expect("set").expose(), api_key);

    let broken = FakeEnvironment::new().with("OPIK_OFFLINE_INTAKE_TOKEN", "token-\n-with-a-break-inside");
    let (message, _) = broken.error(&Flags::default());
    assert!(message.starts_with("intake_token: cannot use \"toke...(27 chars)\" from environment"), "{message}");

    let flags = Flags { upstream: Some("http://me:hunter2@opik/".into()), ..Flags::default() };
    let (message, _) = FakeEnvironment::new().error(&flags);
    assert!(message.contains("user name or password"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn invalid_embedded_addresses_fail_only_when_needed() {
    let environment = FakeEnvironment::new().with("OPIK_API_KEY", "0123456789abcdef*???");
    let (message, _) = environment.error(&Flags::default());
    assert_eq!(
        message,
        "api_key: cannot use \"0123...(20 chars)\" from environment OPIK_API_KEY: what follows the * is not base64 of JSON"
    );
    environment.with("OPIK_URL_OVERRIDE", "http://opik/api").config();
}

#[test]
fn public_listeners_need_a_token_or_an_opt_in() {
    let flags = Flags { listen: Some("0.0.0.0:6745".into()), ..Flags::default() };
    let (message, hint) = FakeEnvironment::new().error(&flags);
    assert!(
        message.starts_with("listen: cannot use \"0.0.0.0:6745\" from flag --listen: other machines can reach"),
        "{message}"
    );
    assert!(hint.contains("OPIK_OFFLINE_INTAKE_TOKEN") && hint.contains("--insecure-listen"), "{hint}");
    for (name, value) in [("OPIK_OFFLINE_INTAKE_TOKEN", "t"), ("OPIK_OFFLINE_INSECURE_LISTEN", "yes")] {
        FakeEnvironment::new().with(name, value).resolve(&flags).expect(name);
    }
}

#[test]
fn known_misconfigurations_are_detected() {
    assert_eq!(FakeEnvironment::new().config().scan(), [Misconfiguration::CloudWithoutKey]);

    let environment =
        FakeEnvironment::new().with("OPIK_URL_OVERRIDE", "http://localhost:6745/api").with("OPIK_WORKSPACE", "team");
    let config = environment.config();
    let found: Vec<_> = config.scan().iter().map(Misconfiguration::to_string).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    let error = config.check_upstream().expect_err("the agent itself");
    assert!(error.to_string().contains("this is the agent itself, which listens on 127.0.0.1:6745"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("OPIK_OFFLINE_UPSTREAM")));

    let config = environment.with("OPIK_OFFLINE_UPSTREAM", "http://127.0.0.1:5173/api").config();
    assert_eq!(config.scan(), []);
    config.check_upstream().expect("another server");
}

#[test]
fn the_sdk_proxy_takes_precedence_over_standard_variables() {
    let proxy = |environment: &FakeEnvironment| {
        let config = environment.config();
        config.http_proxy.value.as_ref().map(|proxy| (proxy.expose().to_owned(), source(&config, "http_proxy")))
    };
    let environment = FakeEnvironment::new().with("HTTPS_PROXY", "https-proxy:1").with("HTTP_PROXY", "http-proxy:1");
    assert_eq!(proxy(&environment), Some(("http://https-proxy:1".into(), "environment HTTPS_PROXY".into())));
    let environment = environment.with("OPIK_URL_OVERRIDE", "http://opik.example/api");
    assert_eq!(proxy(&environment), Some(("http://http-proxy:1".into(), "environment HTTP_PROXY".into())));
    let environment = environment.with("NO_PROXY", "other, .example");
    assert_eq!(proxy(&environment), None);
    let environment = environment.with("NO_PROXY", "").with("OPIK_URL_OVERRIDE", "http://127.0.0.1:5173/api");
    assert_eq!(proxy(&environment), None, "no proxy reaches this machine's own loopback");
    let environment = environment.with("_OPIK_HTTP_PROXY", "http://debug:8080");
    assert_eq!(proxy(&environment), Some(("http://debug:8080".into(), "environment _OPIK_HTTP_PROXY".into())));
}

#[test]
fn proxy_variable_precedence_matches_python() {
    type Row = (&'static [(&'static str, &'static str)], &'static str, Option<&'static str>);
    let rows: [Row; 12] = [
        (&[("http_proxy", "lower:1"), ("HTTP_PROXY", "upper:1")], "http://h/", Some("http://lower:1")),
        (&[("http_proxy", ""), ("HTTP_PROXY", "upper:1")], "http://h/", None),
        (&[("HTTP_PROXY", "upper:1"), ("REQUEST_METHOD", "GET")], "http://h/", None),
        (&[("http_proxy", "lower:1"), ("REQUEST_METHOD", "GET")], "http://h/", Some("http://lower:1")),
        (&[("HTTPS_PROXY", "upper:1"), ("REQUEST_METHOD", "GET")], "https://h/", Some("http://upper:1")),
        (&[("HTTP_PROXY", "upper:1")], "https://h/", None),
        (&[("ALL_PROXY", "socks5h://all:1")], "https://h/", Some("socks5h://all:1")),
        (&[("ALL_PROXY", "socks5://all:1"), ("http_proxy", "lower:1")], "http://h/", Some("http://lower:1")),
        (&[("all_proxy", "socks5://all:1"), ("no_proxy", "10.0.0.0/8")], "http://10.1.2.3/", None),
        (&[("all_proxy", "socks5://all:1"), ("no_proxy", ""), ("NO_PROXY", "h")], "http://h/", Some("socks5://all:1")),
        (&[("https_proxy", "none")], "https://h/", None),
        (&[("https_proxy", "lower:1")], "https://localhost/", None),
    ];
    for (variables, url, expected) in rows {
        let environment = variables
            .iter()
            .fold(FakeEnvironment::new().with("OPIK_URL_OVERRIDE", url), |all, (name, value)| all.with(name, value));
        let config = environment.config();
        let proxy = config.http_proxy.value.as_ref().map(ProxyUrl::expose);
        assert_eq!(proxy, expected, "{variables:?} {url}");
        let upstream = &config.upstream.value;
        let again = config.proxies.proxy_for(upstream.is_https(), upstream.host(), upstream.port());
        assert_eq!(again.expect("valid"), config.http_proxy.value, "{variables:?} {url}");
    }
}

#[test]
fn unused_proxies_are_not_parsed() {
    let broken = |url: &str| {
        let environment = FakeEnvironment::new().with("ALL_PROXY", "gopher://me:hunter2@p:1").with("NO_PROXY", "near");
        environment.with("OPIK_URL_OVERRIDE", url).config()
    };
    for url in ["http://localhost:5173/api", "http://near/api"] {
        broken(url).check_network().expect(url);
    }
    let config = broken("http://far/api");
    assert_eq!(config.http_proxy.value, None, "commands without the network go on");
    let error = config.check_network().expect_err("no proxy").to_string();
    assert!(error.starts_with("http_proxy: cannot use \"gopher://***@p:1\" from environment ALL_PROXY: not a proxy"));
    let reason = config.proxies.proxy_for(false, "far", 80).expect_err("no proxy");
    assert!(reason.contains("ALL_PROXY") && !reason.contains("hunter2"), "{reason}");
}

#[test]
fn invalid_flags_fail_at_once_and_invalid_variables_when_needed() {
    let environment = FakeEnvironment::new();
    let flags = Flags { connect_timeout: Some("soon".into()), ..Flags::default() };
    let refused = environment.resolve(&flags).expect_err("a bad flag").to_string();
    assert!(refused.contains("flag --connect-timeout"), "{refused}");
    let config = environment.with("OPIK_OFFLINE_CONNECT_TIMEOUT", "soon").config();
    assert_eq!(config.connect_timeout.value, Duration::from_secs(5));
    config.check_network().expect_err("it is needed now");
}

#[test]
fn client_keys_without_certificate_are_rejected() {
    let environment = FakeEnvironment::new().with("OPIK_OFFLINE_CLIENT_KEY_FILE", "~/agent.key");
    let (message, hint) = environment.error(&Flags::default());
    assert!(message.starts_with("client_key_file: cannot use ") && message.contains("no certificate"), "{message}");
    assert!(hint.contains("OPIK_OFFLINE_CLIENT_CERT_FILE"), "{hint}");
    environment.with("OPIK_OFFLINE_CLIENT_CERT_FILE", "~/agent.pem").config().check_network().expect("both are named");
}

#[test]
fn paths_expand_the_home_folder_and_a_missing_data_folder_is_reported() {
    let mut environment = FakeEnvironment::new().with("SSL_CERT_FILE", "~/ca.pem");
    assert_eq!(environment.config().ssl_cert_file.value, Some(environment.path("ca.pem")));
    environment.has_data_dir = false;
    let (message, hint) = environment.error(&Flags::default());
    assert_eq!((message.as_str(), hint.contains("--db")), ("db: no data folder for this user", true));
    let flags = Flags { db: Some("x.db".into()), ..Flags::default() };
    assert_eq!(environment.resolve(&flags).expect("valid").db.value, Path::new("x.db"));
}

#[cfg(unix)]
#[test]
fn paths_may_be_arbitrary_bytes_and_text_may_not() {
    use std::os::unix::ffi::OsStringExt;

    let bytes = || OsString::from_vec(b"a\xff".to_vec());
    let config = FakeEnvironment::new().with("OPIK_OFFLINE_DB", bytes()).config();
    assert_eq!(config.db.value.as_os_str(), bytes());
    let (message, _) = FakeEnvironment::new().with("OPIK_WORKSPACE", bytes()).error(&Flags::default());
    assert!(message.ends_with("environment OPIK_WORKSPACE: not valid UTF-8"), "{message}");
}

#[test]
fn unencrypted_keys_are_a_misconfiguration() {
    for (upstream, key, expected) in [
        ("http://opik.example/api", Some("k"), true),
        ("http://10.0.0.7:5173/api", Some("k"), true),
        ("http://backend:8080", Some("k"), true),
        ("http://127.0.0.1.example/api", Some("k"), true),
        ("http://opik.example/api", None, false),
        ("https://opik.example/api", Some("k"), false),
        ("http://127.0.0.1:5173/api", Some("k"), false),
        ("http://127.9.9.9/api", Some("k"), false),
        ("http://[::1]:5173/api", Some("k"), false),
        ("http://localhost:5173/api", Some("k"), false),
    ] {
        let environment = FakeEnvironment::new().with("OPIK_OFFLINE_UPSTREAM", upstream);
        let environment = key.into_iter().fold(environment, |environment, key| environment.with("OPIK_API_KEY", key));
        let found = environment.config().scan();
        let is_found = found.iter().any(|mistake| matches!(mistake, Misconfiguration::KeyInTheClear { .. }));
        assert_eq!(is_found, expected, "{upstream} {key:?}: {found:?}");
    }
}

#[test]
fn unsendable_tokens_are_rejected() {
    let with = |token: &str| {
        let environment = FakeEnvironment::new().with("OPIK_OFFLINE_INTAKE_TOKEN", token);
        environment
            .resolve(&Flags::default())
            .map(|config| config.intake_token.value.map(|token| token.expose().to_owned()))
    };
    for token in ["q8/Xk+0a==", "50%", "a%2Fb", "a?b#c&d", "~!@$^*(){}[]|\\:;\"'<>,.`", "a/../b", "..."] {
        assert_eq!(with(token).ok().flatten().as_deref(), Some(token), "{token}");
    }
    for token in ["two words", "tab\there", "caf\u{e9}-latte", "\u{1f600}", "line\nbreak", ".", "..", "a\u{a0}b"] {
        let Err(error) = with(token) else { panic!("{token:?} is taken") };
        let text = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(text.contains("intake_token"), "{text}");
        assert!(!text.contains("words") && !text.contains("latte"), "a part of the token is shown: {text}");
    }
}

#[test]
fn a_token_in_a_file_is_taken_without_its_line_end_and_never_quoted() {
    assert_eq!(token_in("  s3cret-token\n").map(|token| token.expose().to_owned()).as_deref(), Ok("s3cret-token"));
    for bad in ["", "\n", "two words-of-a-token", "caf\u{e9}-token", ".."] {
        let reason = token_in(bad).expect_err(bad);
        assert!(!reason.is_empty() && !reason.contains("words-of"), "{bad:?}: {reason}");
    }
}

#[test]
fn wrapped_commands_resolve_the_server_behind_their_agent() {
    let agent = "http://127.0.0.1:4000/-/token/t/api";
    let known = format!("{agent} https://opik.example/api");
    let server = |environment: &FakeEnvironment| {
        let upstream = environment.config().upstream;
        (upstream.value.to_string(), upstream.source.to_string())
    };
    let wrapped = |url: &str| FakeEnvironment::new().with(WRAPPED_BY, &known).with("OPIK_URL_OVERRIDE", url);
    let behind = ("https://opik.example/api".to_owned(), format!("environment {WRAPPED_BY}"));
    assert_eq!(server(&wrapped(agent)), behind);
    assert_eq!(server(&wrapped(&format!("{agent}/"))), behind);
    let other = ("http://other.example/api".to_owned(), "environment OPIK_URL_OVERRIDE".to_owned());
    assert_eq!(server(&wrapped("http://other.example/api")), other, "somebody named another server");
    let ours = wrapped(agent).with("OPIK_OFFLINE_UPSTREAM", "http://ours.example/api");
    assert_eq!(server(&ours).0, "http://ours.example/api");
    let none = FakeEnvironment::new().with(WRAPPED_BY, &known);
    assert_eq!(server(&none).1, "default", "nothing leads to the agent any more");
    for broken in ["", "x", agent, &format!("{agent} junk junk")] {
        let environment = FakeEnvironment::new().with(WRAPPED_BY, broken).with("OPIK_URL_OVERRIDE", agent);
        assert_eq!(server(&environment).1, "environment OPIK_URL_OVERRIDE", "{broken:?}");
    }

    // The proxy removed from the command's environment still applies to that server, and to no other.
    let proxy = |environment: FakeEnvironment| {
        let rules = environment.with(WRAPPED_PROXY, "http://proxy:3128").config().proxies;
        rules.proxy_for(true, "opik.example", 443).expect("usable").map(|proxy| proxy.to_string())
    };
    assert_eq!(proxy(wrapped(agent)).as_deref(), Some("http://proxy:3128"));
    assert_eq!(proxy(wrapped("http://other.example/api")), None);
}

#[test]
fn the_home_file_is_read_even_if_another_file_is_configured() {
    let environment = FakeEnvironment::new()
        .with_opik_config("url_override = http://home.example/api")
        .with_file("chosen", "[opik]\nurl_override = http://chosen.example/api\n");
    let chosen = environment.path("chosen");
    let environment = environment.with("OPIK_CONFIG_PATH", chosen);
    assert_eq!(environment.config().upstream.value.to_string(), "http://chosen.example/api");
    assert_eq!(url_in_home_file(&environment).as_deref(), Some("http://home.example/api"));
    assert_eq!(url_in_home_file(&FakeEnvironment::new()), None);
    let malformed = FakeEnvironment::new().with_file(".opik.config", "[opik\nurl_override = http://h/api");
    assert_eq!(url_in_home_file(&malformed), None);
}
