//! Where the clients come from: folders with pinned packages, made once by the test that needs them first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::tools::{installed, run};

const GO_HINT: &str = "install Go: apt-get install golang-go";
const JAVA_HINT: &str = "install a JDK, 17 or newer, and Maven: apt-get install default-jdk-headless maven";
const PYTHON_HINT: &str =
    "install Python 3.11 or newer with venv and pip: apt-get install python3 python3-venv python3-pip";

/// Returns a path in this folder of the repository.
pub(crate) fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Returns the `bin` folder of a virtual environment with the packages of `requirements/NAME.txt`.
pub(crate) fn python(name: &str) -> PathBuf {
    python_by("python3".as_ref(), name)
}

/// Returns the same, with this interpreter.
pub(crate) fn python_by(interpreter: &Path, name: &str) -> PathBuf {
    let list = here(&format!("requirements/{name}.txt"));
    let folder = installed(&named(name, &list), |folder| {
        run(Command::new(interpreter).args(["-m", "venv"]).arg(folder), PYTHON_HINT);
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "-r"];
        run(Command::new(folder.join("bin/python")).args(pip).arg(&list), PYTHON_HINT);
    });
    folder.join("bin")
}

/// Returns an interpreter of this name that works: from the search path, or one that pyenv keeps beside it.
pub(crate) fn newer_python(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let kept =
        root.and_then(|root| glob::glob(&root.join(format!("versions/*/bin/{name}")).display().to_string()).ok());
    let found = [PathBuf::from(name)].into_iter().chain(kept.into_iter().flatten().flatten());
    let works = |python: &PathBuf| Command::new(python).arg("--version").output().is_ok_and(|out| out.status.success());
    found.into_iter().find(works)
}

/// Returns whether this machine has a program.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Returns the application in `go/`.
pub(crate) fn go() -> PathBuf {
    let folder = installed(&named("go", &here("go/go.sum")), |folder| {
        let mut go = Command::new("go");
        run(
            go.args(["build", "-mod=readonly", "-o"]).arg(folder.join("app")).arg(".").current_dir(here("go")),
            GO_HINT,
        );
    });
    folder.join("app")
}

/// Returns the class path of the application in `java/`, with the exporter that this profile of `pom.xml` names.
pub(crate) fn java(profile: &str) -> String {
    let folder = installed(&named(&format!("java-{profile}"), &here("java/pom.xml")), |folder| {
        let mut maven = Command::new("mvn");
        maven.args(["--quiet", "--batch-mode", "--activate-profiles", profile]);
        maven.arg("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies");
        let to = format!("-DoutputDirectory={}", folder.display());
        run(maven.arg(to).current_dir(here("java")), JAVA_HINT);
        let mut javac = Command::new("javac");
        javac.arg("-d").arg(folder).arg("-cp").arg(folder.join("*"));
        run(javac.arg(here("java/Spans.java")), JAVA_HINT);
    });
    format!("{0}:{0}/*", folder.display())
}

/// Names a folder by its list of packages, so that another list makes another folder.
fn named(name: &str, list: &Path) -> String {
    let list = fs::read(list).unwrap_or_else(|why| panic!("cannot read {}: {why}", list.display()));
    let digest = ring::digest::digest(&ring::digest::SHA256, &list);
    let digest: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("client-{name}-{digest}")
}
