//! The log: lines on stderr, and in a file if one is configured.
//!
//! The levels are the SDK's. Events of other crates are shown from WARN on, unless the level is DEBUG. Crates that use
//! `log` instead of `tracing` (ureq, rustls) are not shown at all: their lines could contain a key, and their failures
//! reach us as errors, which we log.
//!
//! Each line is written before the call returns, so that a crash loses none of the lines that explain it.
//!
//! Text from a client, a server or a file may contain anything. In a text line it is written as [`printable`] shows
//! it, so that it drives no terminal and begins no new line; a JSON line keeps its true value, in JSON's escapes.
//!
//! A program such as logrotate moves the file away and asks for a new one: [`LogFile::reopen`].

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use crate::printable;

/// The targets that our rooms log to. The first three names are the SDK's.
pub(crate) const CONNECTION_MONITOR: &str = "connection_monitor";
pub(crate) const REPLAY_MANAGER: &str = "replay_manager";
pub(crate) const DB_MANAGER: &str = "db_manager";
pub(crate) const INTAKE: &str = "intake";
pub(crate) const FLEET: &str = "fleet";

/// The SDK's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

impl Level {
    /// Returns the filter of our own targets.
    ///
    /// `tracing` has no level above ERROR. CRITICAL still shows errors: ours mean that data is at risk.
    fn filter(self) -> LevelFilter {
        match self {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warning => LevelFilter::WARN,
            Level::Error | Level::Critical => LevelFilter::ERROR,
        }
    }
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// `2026-11-22T18:00:00.123Z  INFO intake: message key=value`
    Text,
    /// One JSON object per line.
    Json,
}

/// The levels, format and destinations of the log.
#[derive(Clone, Debug)]
pub(crate) struct LogSettings {
    pub console_level: Level,
    /// `None`: no file.
    pub file_level: Option<Level>,
    pub file_path: PathBuf,
    pub format: LineFormat,
    /// Whether text on stderr is coloured; the file never is.
    pub color: bool,
}

/// Why the log can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot write the log file {}: {source}", path.display())]
    OpenFile { path: PathBuf, source: io::Error },
    /// An error in the caller, which a test process may well make.
    #[error("the log is set up already")]
    AlreadySetUp,
}

impl LogError {
    /// Returns what the user can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            LogError::OpenFile { .. } => {
                Some("choose another file with OPIK_LOGGING_FILE, or unset OPIK_FILE_LOGGING_LEVEL")
            }
            LogError::AlreadySetUp => None,
        }
    }
}

/// Sets up the log of this process. Call it once, before anything is logged.
///
/// # Errors
///
/// [`LogError::OpenFile`] if the file can't be opened for appending; nothing was set up then.
pub(crate) fn init(settings: &LogSettings) -> Result<LogFile, LogError> {
    let file = LogFile::open(settings)?;
    let subscriber = subscriber(settings, &file, io::stderr);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::AlreadySetUp)?;
    Ok(file)
}

fn subscriber<W>(settings: &LogSettings, file: &LogFile, console: W) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The file comes first, so that its fields are formatted without colour before the console formats them in colour.
    let file = settings.file_level.zip(file.0.clone());
    let file = file.map(|(level, file)| layer(file, settings.format, false).with_filter(targets(level)));
    let console = layer(console, settings.format, settings.color).with_filter(targets(settings.console_level));
    tracing_subscriber::registry().with(file).with(console)
}

/// The log file of this process, if there is one. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct LogFile(Option<Arc<OpenFile>>);

struct OpenFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    fn open(settings: &LogSettings) -> Result<Self, LogError> {
        let Some(_) = settings.file_level else { return Ok(Self(None)) };
        let (path, file) = (settings.file_path.clone(), Mutex::new(open(&settings.file_path)?));
        Ok(Self(Some(Arc::new(OpenFile { path, file }))))
    }

    /// Opens the file again by its name, and creates it if it was moved away: the next line is written there. Returns
    /// whether the log has a file at all.
    ///
    /// # Errors
    ///
    /// [`LogError::OpenFile`]; the log then continues in the file that was open.
    pub(crate) fn reopen(&self) -> Result<bool, LogError> {
        let Some(log) = &self.0 else { return Ok(false) };
        let file = open(&log.path)?;
        *log.lock() = file;
        Ok(true)
    }
}

impl OpenFile {
    /// Replacing the file is one assignment, so it is whole even after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &OpenFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    /// One lock for one line: neither a concurrent line nor a new file can split it.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.lock().write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}

fn layer<S, W>(writer: W, format: LineFormat, color: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_timer(Milliseconds).with_ansi(color);
    match format {
        LineFormat::Text => Box::new(layer.fmt_fields(HarmlessFields).with_writer(writer)),
        LineFormat::Json => {
            let layer = layer.with_writer(HarmlessJson(writer)).with_ansi(false).json();
            Box::new(layer.flatten_event(true).with_current_span(false).with_span_list(false))
        }
    }
}

/// Writes the fields of a line of text: the message, then `name=value`.
struct HarmlessFields;

impl<'writer> FormatFields<'writer> for HarmlessFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = HarmlessVisitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct HarmlessVisitor<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl HarmlessVisitor<'_> {
    fn write(&mut self, field: &Field, value: &str) -> fmt::Result {
        if !std::mem::replace(&mut self.is_first, false) {
            self.writer.write_char(' ')?;
        }
        match (field.name().trim_start_matches("r#"), self.writer.has_ansi_escapes()) {
            ("message", _) => {}
            (name, true) => write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?,
            (name, false) => write!(self.writer, "{name}=")?,
        }
        self.writer.write_str(&printable::line(value))
    }
}

impl Visit for HarmlessVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_ok() {
            self.result = self.write(field, &format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }
}

/// Writes JSON lines with escapes for everything that a terminal would obey.
struct HarmlessJson<W>(W);

impl<'writer, W: MakeWriter<'writer>> MakeWriter<'writer> for HarmlessJson<W> {
    type Writer = HarmlessJson<W::Writer>;

    fn make_writer(&'writer self) -> Self::Writer {
        HarmlessJson(self.0.make_writer())
    }

    fn make_writer_for(&'writer self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        HarmlessJson(self.0.make_writer_for(meta))
    }
}

impl<W: Write> Write for HarmlessJson<W> {
    /// A line arrives in one call, so no character is split.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable::json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn targets(level: Level) -> Targets {
    let own = [CONNECTION_MONITOR, REPLAY_MANAGER, DB_MANAGER, INTAKE, FLEET, env!("CARGO_CRATE_NAME")];
    let others = if level == Level::Debug { LevelFilter::DEBUG } else { level.filter().min(LevelFilter::WARN) };
    // A client could make it log every frame, and paths, which may contain a token.
    let silent = ("h2", LevelFilter::OFF);
    Targets::new()
        .with_default(others)
        .with_targets(own.map(|target| (target, level.filter())).into_iter().chain([silent]))
}

/// Opens the file for appending. A new file is readable by this user alone, because it contains paths and workspaces.
///
/// It refuses links and files that another user may have planted in a folder that both can write. It also refuses
/// pipes, which would block the agent until somebody reads them. Devices such as `/dev/stderr` are allowed.
fn open(path: &Path) -> Result<File, LogError> {
    let failed = |source| LogError::OpenFile { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

        options.mode(0o600);
        let is_trusted = |owner: u32| owner == 0 || owner == rustix::process::geteuid().as_raw();
        let refused = |reason: &str| failed(io::Error::new(io::ErrorKind::PermissionDenied, reason.to_owned()));
        match path.symlink_metadata() {
            Ok(link) if link.is_symlink() && !is_trusted(link.uid()) => {
                return Err(refused("it is a link that another user made"));
            }
            _ => {}
        }
        if let Ok(there) = path.metadata() {
            let kind = there.file_type();
            if kind.is_fifo() || kind.is_socket() || kind.is_block_device() {
                return Err(refused("it is neither a file nor a terminal"));
            }
        }
        let file = options.open(path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?;
        if opened.is_file() && !is_trusted(opened.uid()) {
            return Err(refused("it belongs to another user"));
        }
        Ok(file)
    }
    #[cfg(not(unix))]
    options.open(path).map_err(failed)
}

/// UTC with milliseconds: `2026-11-22T18:00:00.123Z`. The crate's own clock prints six digits, of which the last three
/// are noise to a reader.
struct Milliseconds;

impl FormatTime for Milliseconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        const FRACTION_DIGITS: usize = 3;

        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        match time.split_once('.') {
            Some((seconds, fraction)) => write!(writer, "{seconds}.{:.FRACTION_DIGITS$}Z", fraction),
            None => writer.write_str(&time),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_pipe_as_log_file_is_refused_without_blocking() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("agent.log");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
        let refusal = open(&path).expect_err("nobody reads it").to_string();
        assert!(refusal.ends_with("agent.log: it is neither a file nor a terminal"), "{refusal}");
        open(Path::new("/dev/null")).expect("a device may be named");
        let link = folder.path().join("link.log");
        std::os::unix::fs::symlink(folder.path().join("elsewhere.log"), &link).expect("a link of our own");
        open(&link).expect("our own link leads where we want");
    }

    #[test]
    fn another_users_link_as_log_file_is_not_followed() {
        if !rustix::process::geteuid().is_root() {
            // Beside what the harness captures; CI counts it.
            let _ = writeln!(io::stderr(), "\nnot run: another_users_link_...: only root can make another user's link");
            return;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let link = folder.path().join("link.log");
        std::os::unix::fs::symlink(folder.path().join("elsewhere.log"), &link).expect("a link of our own");
        let stranger = Some(rustix::fs::Uid::from_raw(12_345));
        let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(rustix::fs::CWD, &link, stranger, None, no_follow).expect("root may");
        assert!(open(&link).is_err(), "another user's link was followed: they choose which of our files grows");
    }

    /// A console that a test can read.
    #[derive(Clone, Default)]
    struct Console(Arc<Mutex<Vec<u8>>>);

    impl Write for Console {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while writing").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Console {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic while writing").clone()).expect("text")
        }
    }

    fn settings() -> LogSettings {
        LogSettings {
            console_level: Level::Info,
            file_level: None,
            file_path: PathBuf::from("unused"),
            format: LineFormat::Text,
            color: false,
        }
    }

    /// Returns what `log` leaves on the console.
    fn console(settings: &LogSettings, log: impl FnOnce()) -> String {
        let console = Console::default();
        let writer = console.clone();
        let file = LogFile::open(settings).expect("a log");
        let subscriber = subscriber(settings, &file, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        console.text()
    }

    fn log_on_every_level() {
        tracing::debug!(target: "intake", "ours-debug");
        tracing::info!(target: "intake", "ours-info");
        tracing::warn!(target: "intake", "ours-warn");
        tracing::error!(target: "intake", "ours-error");
        tracing::debug!(target: "hyper::proto", "theirs-debug");
        tracing::info!(target: "hyper::proto", "theirs-info");
        tracing::warn!(target: "hyper::proto", "theirs-warn");
        tracing::error!(target: "hyper::proto", "theirs-error");
        tracing::debug!(target: "h2::codec::framed_read", "of-a-client-debug");
        tracing::warn!(target: "h2::proto::streams::recv", "of-a-client-warn");
    }

    #[test]
    fn a_text_line_is_time_level_target_and_message() {
        let text = console(&settings(), || tracing::info!(target: INTAKE, port = 6745, "listening"));
        let (time, rest) = text.split_once(' ').expect("a line");
        assert_eq!(time.len(), "2026-11-22T18:00:00.123Z".len(), "{text}");
        assert!(time.ends_with('Z') && time.as_bytes()[19] == b'.', "{text}");
        assert_eq!(rest, " INFO intake: listening port=6745\n");
    }

    #[test]
    fn a_json_line_is_one_object() {
        let settings = LogSettings { format: LineFormat::Json, color: true, ..settings() };
        let text = console(&settings, || tracing::warn!(target: INTAKE, port = 6745, "listening"));
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&line["level"], &line["target"]), (&"WARN".into(), &"intake".into()));
        assert_eq!((&line["message"], &line["port"]), (&"listening".into(), &6745.into()));
    }

    const HOSTILE: &str = "a\n2026-11-22T18:00:00.123Z  INFO intake: forged\u{1b}[8m\u{9b}\u{202e}\u{2028}\u{7f}";

    #[test]
    fn a_hostile_text_stays_in_its_line() {
        for color in [false, true] {
            let text = console(&LogSettings { color, ..settings() }, || {
                tracing::warn!(target: INTAKE, reason = HOSTILE, shown = %HOSTILE, debugged = ?HOSTILE, "{HOSTILE}");
                tracing::warn!(target: INTAKE, HOSTILE);
            });
            assert_eq!(text.lines().count(), 2, "{text}");
            let plain = ["\u{1b}[3m", "\u{1b}[2m", "\u{1b}[33m", "\u{1b}[0m"]
                .iter()
                .fold(text.replace('\n', ""), |text, ours| text.replace(ours, ""));
            assert!(!plain.contains(printable::is_hazardous), "{plain:?}");
            assert!(plain.contains("a\\n2026") && plain.contains("shown=a\\n2026"), "{plain}");
        }
    }

    #[test]
    fn a_hostile_text_keeps_its_value_in_json() {
        let settings = LogSettings { format: LineFormat::Json, ..settings() };
        let text = console(&settings, || tracing::warn!(target: INTAKE, reason = HOSTILE, "{HOSTILE}"));
        assert!(!text.trim_end().contains(printable::is_hazardous), "{text:?}");
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&line["message"], &line["reason"]), (&HOSTILE.into(), &HOSTILE.into()));
    }

    #[test]
    fn each_level_shows_our_events_from_itself_on_and_others_from_warn_on() {
        let cases: [(Level, &[&str]); 5] = [
            (
                Level::Debug,
                &[
                    "ours-debug",
                    "ours-info",
                    "ours-warn",
                    "ours-error",
                    "theirs-debug",
                    "theirs-info",
                    "theirs-warn",
                    "theirs-error",
                ],
            ),
            (Level::Info, &["ours-info", "ours-warn", "ours-error", "theirs-warn", "theirs-error"]),
            (Level::Warning, &["ours-warn", "ours-error", "theirs-warn", "theirs-error"]),
            (Level::Error, &["ours-error", "theirs-error"]),
            (Level::Critical, &["ours-error", "theirs-error"]),
        ];
        for (level, expected) in cases {
            let text = console(&LogSettings { console_level: level, ..settings() }, log_on_every_level);
            let shown: Vec<_> = text.lines().filter_map(|line| line.split(' ').next_back()).collect();
            assert_eq!(shown, expected, "{level:?}");
        }
    }

    #[test]
    fn the_file_has_its_own_level_no_colour_and_is_appended_to() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file_path = folder.path().join("opik.log");
        std::fs::write(&file_path, "before\n").expect("a file");
        let settings = LogSettings {
            console_level: Level::Error,
            file_level: Some(Level::Info),
            file_path: file_path.clone(),
            color: true,
            ..settings()
        };
        let text = console(&settings, || {
            tracing::info!(target: INTAKE, key = 1, "to the file");
            tracing::error!(target: INTAKE, key = 2, "to both");
        });
        assert!(text.contains("to both") && text.contains('\u{1b}') && !text.contains("to the file"), "{text}");
        let file = std::fs::read_to_string(&file_path).expect("the log");
        assert!(file.starts_with("before\n"), "{file}");
        assert!(
            file.contains(" INFO intake: to the file key=1\n") && file.contains("ERROR intake: to both key=2\n"),
            "{file}"
        );
    }

    #[test]
    fn reopening_a_moved_file_continues_in_a_new_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, moved) = (folder.path().join("opik.log"), folder.path().join("opik.log.1"));
        let settings = LogSettings { file_level: Some(Level::Info), file_path: path.clone(), ..settings() };
        let file = LogFile::open(&settings).expect("a log");
        let subscriber = subscriber(&settings, &file, io::sink);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: INTAKE, "first");
            std::fs::rename(&path, &moved).expect("it is there");
            tracing::info!(target: INTAKE, "second");
            assert!(file.reopen().expect("a new file"));
            tracing::info!(target: INTAKE, "third");
            // A folder in its place: the log continues in the open file.
            let aside = folder.path().join("aside");
            std::fs::rename(&path, &aside).expect("it is there");
            std::fs::create_dir(&path).expect("a folder");
            assert!(matches!(file.reopen(), Err(LogError::OpenFile { .. })));
            tracing::info!(target: INTAKE, "fourth");
            let words = |path| {
                let text: String = std::fs::read_to_string(path).expect("a log");
                text.lines().filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect::<Vec<_>>()
            };
            assert_eq!(
                (words(&moved), words(&aside)),
                (vec!["first".into(), "second".into()], vec!["third".into(), "fourth".into()])
            );
        });
        assert!(!LogFile::default().reopen().expect("nothing to open"));
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_private_to_its_owner() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("opik.log");
        open(&path).expect("a new file");
        let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let settings =
            LogSettings { file_level: Some(Level::Info), file_path: PathBuf::from("/nowhere/opik.log"), ..settings() };
        let error = init(&settings).err().expect("no such folder");
        assert!(error.to_string().starts_with("cannot write the log file /nowhere/opik.log: "), "{error}");
        assert!(error.hint().is_some());
    }
}
