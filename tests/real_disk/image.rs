//! A disk in memory: one file in a FUSE file system, as the backing file of a loop device.
//!
//! It keeps what a disk with a write cache keeps. A flush makes all writes before it durable; of the others a power cut
//! keeps any part. Writes to chosen ranges can be made to fail with EIO, as those to bad blocks do.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};

use crate::dice::Dice;

pub(crate) const NAME: &str = "image";
const BLOCK: usize = 4096;
/// The unit that a disk writes atomically.
const SECTOR: usize = 512;
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Image(Arc<Mutex<State>>);

struct State {
    /// The contents that a read returns.
    current: Vec<u8>,
    /// The contents that a flush has made durable.
    durable: Vec<u8>,
    /// Blocks of either that are not as they were at first, all zeros.
    touched: BTreeSet<usize>,
    unflushed: Vec<(usize, Vec<u8>)>,
    failing: Vec<Range<u64>>,
    failed: u64,
}

impl Image {
    pub(crate) fn new(bytes: usize) -> Self {
        // Zeroed memory takes room when it is written to.
        let state = State {
            current: vec![0; bytes],
            durable: vec![0; bytes],
            touched: BTreeSet::new(),
            unflushed: Vec::new(),
            failing: Vec::new(),
            failed: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Mounts it here until the session is dropped.
    pub(crate) fn mount(&self, at: &Path) -> io::Result<BackgroundSession> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("opik-offline-test".into()), MountOption::NoAtime];
        fuser::spawn_mount(self.clone(), at, &config)
    }

    /// Fails each write that touches one of these ranges of bytes, until it is called again.
    pub(crate) fn fail(&self, ranges: Vec<Range<u64>>) {
        self.state().failing = ranges;
    }

    /// Returns how many writes have failed.
    pub(crate) fn failed(&self) -> u64 {
        self.state().failed
    }

    /// Writes the disk as a power cut at this moment leaves it to a file. Returns how much of the unflushed it kept.
    pub(crate) fn cut(&self, dice: &mut Dice, to: &Path) -> io::Result<&'static str> {
        let state = self.state();
        let mut after = state.durable.clone();
        let (keeps, name) =
            [(0, "nothing"), (1, "some writes"), (2, "some sectors"), (3, "everything")][dice.below(4) as usize];
        for (offset, bytes) in &state.unflushed {
            let unit = if keeps == 2 { SECTOR } else { bytes.len() };
            for (number, part) in bytes.chunks(unit).enumerate() {
                if keeps == 3 || keeps > 0 && dice.below(2) == 0 {
                    let at = offset + number * unit;
                    after[at..at + part.len()].copy_from_slice(part);
                }
            }
        }
        let touched = state.touched.clone();
        drop(state);
        let file = File::create(to)?;
        file.set_len(after.len() as u64)?;
        for block in touched {
            let at = block * BLOCK;
            file.write_all_at(&after[at..after.len().min(at + BLOCK)], at as u64)?;
        }
        Ok(name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no thread panicked")
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        let size = if is_file { self.state().current.len() as u64 } else { 0 };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: BLOCK as u32,
        }
    }
}

impl State {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<u32, Errno> {
        let end = offset + bytes.len() as u64;
        if self.failing.iter().any(|range| offset < range.end && range.start < end) {
            self.failed += 1;
            return Err(Errno::EIO);
        }
        let from = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let place = self.current.get_mut(from..from + bytes.len()).ok_or(Errno::ENOSPC)?;
        place.copy_from_slice(bytes);
        self.touched.extend(from / BLOCK..(from + bytes.len()).div_ceil(BLOCK));
        self.unflushed.push((from, bytes.to_vec()));
        Ok(bytes.len() as u32)
    }

    fn flush(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.unflushed) {
            self.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

impl Filesystem for Image {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Without a cache in between: a write of the loop device arrives here before it returns.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state();
        let from = (offset as usize).min(state.current.len());
        let to = (from + size as usize).min(state.current.len());
        reply.data(&state.current[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.state().write(offset, bytes);
        match written {
            Ok(count) => reply.written(count),
            Err(why) => reply.error(why),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.state().flush();
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A descriptor was closed, which makes nothing durable.
        reply.ok();
    }
}
