//! The record of a run, as `disk.c` wrote it.

use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// The operation's number, from 1. One that changes nothing leaves no record; one with a later loss in the
    /// background leaves two.
    pub operation: u64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Create {
        path: PathBuf,
        inode: u64,
    },
    Write {
        inode: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    Truncate {
        inode: u64,
        bytes: u64,
    },
    Sync {
        inode: u64,
    },
    /// A sync or a writeback in the background failed: the file's dirty pages are clean now. `fall` decides which of
    /// them are on the disk.
    Lost {
        inode: u64,
        fall: u64,
    },
    SyncFolder {
        path: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    MakeFolder {
        path: PathBuf,
    },
    RemoveFolder {
        path: PathBuf,
    },
}

const HEADER_BYTES: usize = 40;

/// Reads a journal. A record that a kill cut off is the last, and its operation may have been done: it is left out, as
/// if power had failed right before it.
pub(crate) fn read(path: &Path) -> Vec<Record> {
    let all = std::fs::read(path).expect("the journal can be read");
    let mut rest = &all[..];
    let mut records = Vec::new();
    while rest.len() >= HEADER_BYTES {
        let long = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().expect("eight bytes"));
        let short = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four bytes"));
        let (operation, inode, offset, kind) = (long(0), long(8), long(16), short(24));
        let sizes = [short(28), short(32), short(36)].map(|size| size as usize);
        if rest.len() < HEADER_BYTES + sizes.iter().sum::<usize>() {
            break;
        }
        rest = &rest[HEADER_BYTES..];
        let mut take = |bytes: usize| {
            let (taken, left) = rest.split_at(bytes);
            rest = left;
            taken.to_vec()
        };
        let [path, other, bytes] = sizes.map(&mut take);
        let as_path = |bytes: Vec<u8>| PathBuf::from(String::from_utf8(bytes).expect("paths of ours are text"));
        let path = as_path(path);
        let what = match kind {
            1 => What::Create { path, inode },
            2 => What::Write { inode, offset, bytes },
            3 => What::Truncate { inode, bytes: offset },
            4 => What::Sync { inode },
            5 => What::SyncFolder { path },
            6 => What::Unlink { path },
            7 => What::Rename { from: path, to: as_path(other) },
            8 => What::MakeFolder { path },
            9 => What::RemoveFolder { path },
            10 => What::Lost { inode, fall: offset },
            other => panic!("a record of kind {other}"),
        };
        records.push(Record { operation, what });
    }
    records
}
