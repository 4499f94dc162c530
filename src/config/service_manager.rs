//! The protocol variables of a service manager: `sd_notify(3)` and
//! `sd_watchdog_enabled(3)`. They are not settings: users don't set them by hand.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use super::{BadValue, ConfigError, Environment, Source};

const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// A service manager that expects notifications from this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceManager {
    /// The datagram socket: a path, or `@` and an abstract name.
    pub socket: OsString,
    /// Watchdog timeout: the process is killed without a heartbeat this often. `None` if the watchdog is off.
    pub watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Returns the service manager in the environment of process `pid`, if any.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] if the watchdog timeout is invalid: the process would be killed for no reason.
    pub fn find(environment: &dyn Environment, pid: u32) -> Result<Option<Self>, ConfigError> {
        let Some(socket) = environment.variable(NOTIFY_SOCKET).filter(|socket| !socket.is_empty()) else {
            return Ok(None);
        };
        // The variables are inherited: they may address our parent process.
        let is_ours = environment.variable(WATCHDOG_PID).is_none_or(|named| named == OsStr::new(&pid.to_string()));
        let watchdog = environment.variable(WATCHDOG_USEC).filter(|_| is_ours);
        Ok(Some(Self { socket, watchdog: watchdog.map(|value| microseconds(&value)).transpose()? }))
    }
}

fn microseconds(value: &OsStr) -> Result<Duration, ConfigError> {
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
    number.map(Duration::from_micros).ok_or_else(|| {
        ConfigError::Value(Box::new(BadValue {
            key: "watchdog",
            value: value.to_string_lossy().into_owned(),
            origin: Source::Environment { name: WATCHDOG_USEC },
            reason: "not a number of microseconds above 0".to_owned(),
            hint: Some("leave this variable to the service manager (WatchdogSec= in the unit), or unset it".to_owned()),
        }))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn find(variables: &'static [(&'static str, &'static str)]) -> Result<Option<ServiceManager>, ConfigError> {
        ServiceManager::find(&variables.iter().copied().collect::<BTreeMap<_, _>>(), 7)
    }

    #[test]
    fn watchdog_variables_apply_only_to_the_process_they_name() {
        let manager = |watchdog| Some(ServiceManager { socket: "/run/notify".into(), watchdog });
        let minute = Some(Duration::from_secs(60));
        for (variables, expected) in [
            (&[][..], None),
            (&[(NOTIFY_SOCKET, "")], None),
            (&[(WATCHDOG_USEC, "60000000")], None),
            (&[(NOTIFY_SOCKET, "/run/notify")], manager(None)),
            (&[(NOTIFY_SOCKET, "/run/notify"), (WATCHDOG_USEC, "60000000")], manager(minute)),
            (&[(NOTIFY_SOCKET, "/run/notify"), (WATCHDOG_USEC, "60000000"), (WATCHDOG_PID, "7")], manager(minute)),
            (&[(NOTIFY_SOCKET, "/run/notify"), (WATCHDOG_USEC, "60000000"), (WATCHDOG_PID, "8")], manager(None)),
        ] {
            assert_eq!(find(variables).expect("well formed"), expected, "{variables:?}");
        }
    }

    #[test]
    fn invalid_watchdog_timeouts_are_rejected_with_their_source() {
        for variables in [
            &[(NOTIFY_SOCKET, "/run/notify"), (WATCHDOG_USEC, "soon")],
            &[(NOTIFY_SOCKET, "/run/notify"), (WATCHDOG_USEC, "0")],
        ] {
            let error = find(variables).expect_err("no time").to_string();
            assert!(error.contains("from environment WATCHDOG_USEC"), "{error}");
        }
    }
}
