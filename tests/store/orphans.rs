//! Orphaned files of the SDK: whose they are.

use crate::not_run::not_run;
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use opik_offline::sdk::orphan::{SDK_STORE_NAME, find};

#[test]
fn files_of_another_user_are_not_orphans_of_this_one() {
    if !rustix::process::geteuid().is_root() {
        return not_run("only root can give files away");
    }
    const OTHER: u32 = 61_002;
    let temp = tempfile::tempdir().expect("a folder");
    for (name, folder_of, file_of) in
        [("tmpmine", 0, 0), ("tmptheirs", OTHER, OTHER), ("tmpfile", 0, OTHER), ("tmpfolder", OTHER, 0)]
    {
        let folder = temp.path().join(name);
        let path = folder.join(SDK_STORE_NAME);
        fs::create_dir(&folder).expect("a folder");
        fs::write(&path, b"x").expect("a file");
        chown(&path, Some(file_of), None).expect("it is root");
        chown(&folder, Some(folder_of), None).expect("it is root");
    }
    let found: Vec<PathBuf> = find(temp.path()).into_iter().map(|orphan| orphan.path).collect();
    assert_eq!(found, [temp.path().join("tmpmine").join(SDK_STORE_NAME)]);
}
