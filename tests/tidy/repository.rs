//! No build product is committed.

use std::path::Path;
use std::process::Command;

use crate::not_run::not_run;

/// Compiled files contain the paths of the machine that built them.
#[test]
fn no_build_product_is_committed() {
    const EXTENSIONS: &[&str] = &["a", "class", "o", "pyc", "rlib", "so"];
    let Some(files) = committed() else { return not_run("this is not a git repository") };
    let is_product = |name: &&String| {
        let path = Path::new(name.as_str());
        path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|compiled| extension == *compiled))
            || path.starts_with("target")
            || path.starts_with("dist")
            || path.components().any(|part| part.as_os_str() == "__pycache__" || part.as_os_str() == "node_modules")
    };
    let products: Vec<&String> = files.iter().filter(is_product).collect();
    assert!(products.is_empty(), "remove these from the repository: {products:?}");
}

/// Returns every committed file, or `None` outside a git repository.
pub(crate) fn committed() -> Option<Vec<String>> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let names = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    listed.status.success().then(|| names.split_terminator('\0').map(str::to_owned).collect())
}
