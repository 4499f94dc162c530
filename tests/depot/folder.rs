//! A depot in a folder: the contract, and what only files can do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use opik_offline::depot::folder::FolderDepot;
use opik_offline::depot::{Created, Depot as _, DepotAddress, DepotError, DepotSettings, open};

use crate::contract::{self, name};
use crate::support::tempdir;

fn folder_depot(path: &Path) -> FolderDepot {
    FolderDepot::open(path, Duration::from_secs(30)).unwrap()
}

#[test]
fn a_folder_keeps_the_contract() {
    let folder = tempdir();
    contract::check(&folder_depot(folder.path()), &folder_depot(folder.path()));
}

#[test]
fn a_missing_folder_is_not_made() {
    let folder = tempdir();
    let missing = folder.path().join("not-mounted");
    let error = open(&DepotSettings::plain(DepotAddress::Folder(missing.clone()))).err().expect("an error");
    assert!(matches!(error, DepotError::Missing { .. }), "copies would be on the wrong disk: {error}");
    assert!(!missing.exists());
}

#[test]
fn a_folder_that_went_away_is_no_empty_depot() {
    let folder = tempdir();
    let (here, away) = (folder.path().join("depot"), folder.path().join("away"));
    fs::create_dir(&here).unwrap();
    let depot = folder_depot(&here);
    depot.create(&name("v1/heads/one"), b"1").unwrap();
    fs::rename(&here, &away).unwrap();
    for error in [
        depot.get(&name("v1/heads/one")).map(|_| ()).unwrap_err(),
        depot.list(&name("v1/heads"), None, 10).map(|_| ()).unwrap_err(),
        depot.create(&name("v1/heads/two"), b"2").map(|_| ()).unwrap_err(),
        depot.swap(&name("v1/heads/two"), None, b"2").map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, DepotError::Missing { .. }), "a stream would count as finished: {error:?}");
    }
    assert!(!here.exists(), "a volume that is not mounted was written to its mount point");
}

#[test]
fn nothing_that_was_written_aside_is_an_object() {
    let folder = tempdir();
    let depot = folder_depot(folder.path());
    depot.create(&name("v1/heads/one"), b"1").unwrap();
    // A process was killed while it wrote.
    fs::write(folder.path().join(".depot").join("0192"), b"half").unwrap();
    fs::write(folder.path().join("v1/heads/.nfs0001"), b"of a file server").unwrap();
    fs::write(folder.path().join("v1/heads/a b"), b"of a person").unwrap();
    let listed = depot.list(&name("v1"), None, 10).unwrap();
    assert_eq!(listed.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["v1/heads/one"]);
}

#[test]
fn versions_differ_however_fast_a_head_is_renewed() {
    let folder = tempdir();
    let depot = folder_depot(folder.path());
    let head = name("v1/heads/one");
    let mut seen = vec![depot.swap(&head, None, b"x").unwrap()];
    for _ in 0..50 {
        let version = depot.swap(&head, seen.last(), b"x").unwrap();
        assert!(!seen.contains(&version), "a stale owner would replace a newer head");
        seen.push(version);
    }
}

#[test]
fn deleting_what_is_done_leaves_no_folders_behind() {
    let folder = tempdir();
    let depot = folder_depot(folder.path());
    let bundles = [name("v1/bundles/a0/stream/0"), name("v1/bundles/a0/stream/1")];
    for bundle in &bundles {
        depot.create(bundle, b"bundle").unwrap();
    }
    depot.delete(&bundles).unwrap();
    assert!(!folder.path().join("v1").exists(), "a folder stays for every stream there ever was");
    assert_eq!(depot.create(&bundles[0], b"again").unwrap(), Created::New);
}

#[test]
fn a_folder_without_write_permission_refuses() {
    if rustix::process::geteuid().is_root() {
        // Root may write everywhere: a file in place of the folder refuses root as well.
        let folder = tempdir();
        let depot = folder_depot(folder.path());
        fs::write(folder.path().join(".depot"), b"a file").unwrap();
        assert!(depot.create(&name("v1/heads/one"), b"1").is_err());
        return;
    }
    let folder = tempdir();
    let depot = folder_depot(folder.path());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let error = depot.create(&name("v1/heads/one"), b"1").unwrap_err();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(error, DepotError::NotAuthorised { .. }), "{error}");
}
