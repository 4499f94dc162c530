//! A disk that forgets: what was written and not synced is there after a power cut, or not, or in part.
//!
//! - A file's writes and truncations are *pending* until the file is synced; names (made, removed, renamed) are pending
//!   until their folder is synced. Durable data stays.
//! - A cut keeps anything of the pending data: all, nothing, any subset, and of each write any of its 512-byte sectors.
//!   A later change may be there and an earlier one not, which is what reordering looks like. Where a lost sector is
//!   beyond the durable end and a later one was kept, there are zeros, or bytes that nobody wrote.
//! - After a failed sync or writeback the pages that were dirty are clean. Some of them are *lost*: they read as
//!   written, are not on the disk, and no later sync writes them, as in Linux. A lost page is written after all when a
//!   later write touches it, with all that it shows then. Lost new space reads as zeros after a cut (an unwritten
//!   extent), or the file ends before it.
//! - A sector is whole or not there, and a write damages no byte outside of its range: SQLite relies on the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::dice::Dice;
use crate::journal::What;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Clone, Default)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<Change>,
    cache: Option<Cache>,
}

/// The page cache of a file that has lost pages.
#[derive(Clone)]
struct Cache {
    /// The contents that a read returns.
    bytes: Vec<u8>,
    /// The pages that are clean and not on the disk.
    lost: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Naming {
    File(PathBuf, usize),
    Folder(PathBuf),
    Gone(PathBuf),
    Renamed(PathBuf, PathBuf),
}

impl Naming {
    fn folder(&self) -> &Path {
        let (Self::File(path, _) | Self::Folder(path) | Self::Gone(path) | Self::Renamed(_, path)) = self;
        path.parent().expect("it lies below the watched folder")
    }

    fn apply(&self, files: &mut BTreeMap<PathBuf, usize>, folders: &mut BTreeSet<PathBuf>) {
        match self {
            Self::File(path, content) => {
                files.insert(path.clone(), *content);
            }
            Self::Folder(path) => {
                folders.insert(path.clone());
            }
            Self::Gone(path) => {
                files.remove(path);
                folders.remove(path);
            }
            Self::Renamed(from, to) => {
                if let Some(content) = files.remove(from) {
                    files.insert(to.clone(), content);
                }
            }
        }
    }
}

/// The part of the pending data that a cut keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    Everything,
    Nothing,
    /// Each change or not.
    Some,
    /// Each sector or not; names as they are.
    Sectors,
    /// Names or not, and each sector or not.
    Both,
}

impl Keeps {
    pub(crate) fn any(dice: &mut Dice) -> Self {
        [Self::Everything, Self::Nothing, Self::Some, Self::Sectors, Self::Both][dice.below(5) as usize]
    }
}

#[derive(Clone)]
pub(crate) struct Disk {
    root: PathBuf,
    contents: Vec<Content>,
    /// Which content an inode has now; a removed file's number may be given to another one.
    by_inode: BTreeMap<u64, usize>,
    files: BTreeMap<PathBuf, usize>,
    folders: BTreeSet<PathBuf>,
    naming: Vec<Naming>,
}

impl Disk {
    /// Takes a folder as it is now as the durable state.
    pub(crate) fn new(root: &Path) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            contents: Vec::new(),
            by_inode: BTreeMap::new(),
            files: BTreeMap::new(),
            folders: BTreeSet::new(),
            naming: Vec::new(),
        };
        disk.add(root);
        disk
    }

    fn add(&mut self, folder: &Path) {
        self.folders.insert(folder.to_owned());
        for entry in fs::read_dir(folder).expect("a folder of ours") {
            let path = entry.expect("a folder of ours").path();
            if path.is_dir() {
                self.add(&path);
                continue;
            }
            let inode = fs::metadata(&path).expect("a file of ours").ino();
            self.by_inode.insert(inode, self.contents.len());
            self.files.insert(path.clone(), self.contents.len());
            self.contents.push(Content { durable: fs::read(&path).expect("a file of ours"), ..Content::default() });
        }
    }

    /// Does what the run did.
    pub(crate) fn apply(&mut self, what: &What) {
        match what {
            What::Create { path, inode } => {
                self.by_inode.insert(*inode, self.contents.len());
                self.naming.push(Naming::File(path.clone(), self.contents.len()));
                self.contents.push(Content::default());
            }
            What::Write { inode, offset, bytes } => {
                let offset = usize::try_from(*offset).expect("files of ours are small");
                self.content(*inode).change(Change::Write { offset, bytes: bytes.clone() });
            }
            What::Truncate { inode, bytes } => {
                let bytes = usize::try_from(*bytes).expect("files of ours are small");
                self.content(*inode).change(Change::Truncate(bytes));
            }
            What::Sync { inode } => {
                let content = self.content(*inode);
                for change in std::mem::take(&mut content.pending) {
                    change.apply(&mut content.durable);
                }
            }
            What::Lost { inode, fall } => self.content(*inode).lose(&mut Dice::new(*fall)),
            What::SyncFolder { path } => {
                for naming in std::mem::take(&mut self.naming) {
                    if naming.folder() == path {
                        naming.apply(&mut self.files, &mut self.folders);
                    } else {
                        self.naming.push(naming);
                    }
                }
            }
            What::Unlink { path } | What::RemoveFolder { path } => self.naming.push(Naming::Gone(path.clone())),
            What::Rename { from, to } => self.naming.push(Naming::Renamed(from.clone(), to.clone())),
            What::MakeFolder { path } => self.naming.push(Naming::Folder(path.clone())),
        }
    }

    fn content(&mut self, inode: u64) -> &mut Content {
        let at = *self.by_inode.get(&inode).expect("a file that was there or was made");
        &mut self.contents[at]
    }

    /// Writes the disk as a power cut now may leave it to another folder.
    pub(crate) fn cut(&self, keeps: Keeps, dice: &mut Dice, to: &Path) {
        let (mut files, mut folders) = (self.files.clone(), self.folders.clone());
        for naming in &self.naming {
            let kept = match keeps {
                Keeps::Everything | Keeps::Sectors => true,
                Keeps::Nothing => false,
                Keeps::Some | Keeps::Both => dice.below(2) == 0,
            };
            if kept {
                naming.apply(&mut files, &mut folders);
            }
        }
        let place = |path: &Path| to.join(path.strip_prefix(&self.root).expect("below the watched folder"));
        // The contents of a folder whose name was lost are lost with it. Sorted, so a folder comes before what is in
        // it.
        fs::create_dir_all(to).expect("a folder can be made");
        let is_reached = |path: &Path| place(path).parent().is_some_and(Path::is_dir);
        for folder in folders.iter().filter(|folder| **folder != self.root && is_reached(folder)) {
            fs::create_dir(place(folder)).expect("a folder can be made");
        }
        for (path, content) in files {
            // Asked for every file: what the dice say of one must not depend on another.
            let bytes = self.contents[content].after_cut(keeps, dice);
            if is_reached(&path) {
                fs::write(place(&path), bytes).expect("a file can be made");
            }
        }
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        let Some(cache) = &mut self.cache else { return self.pending.push(change) };
        change.apply(&mut cache.bytes);
        let change = match change {
            Change::Write { offset, bytes } => {
                // The kernel writes whole pages: what was lost of the first and the last one is written with them.
                let (mut from, mut to) = (offset, offset + bytes.len());
                for page in pages(from, to) {
                    if cache.lost.remove(&page) {
                        (from, to) = (from.min(page * PAGE), to.max(cache.bytes.len().min((page + 1) * PAGE)));
                    }
                }
                Change::Write { offset: from, bytes: cache.bytes[from..to].to_vec() }
            }
            Change::Truncate(bytes) => {
                cache.lost.retain(|page| page * PAGE < bytes);
                Change::Truncate(bytes)
            }
        };
        self.pending.push(change);
        self.cache.take_if(|cache| cache.lost.is_empty());
    }

    /// Pending data is clean from now on, and a part of it never reached the disk.
    fn lose(&mut self, dice: &mut Dice) {
        let mut cache = self.cache.take().unwrap_or_else(|| {
            let mut bytes = self.durable.clone();
            self.pending.iter().for_each(|change| change.apply(&mut bytes));
            Cache { bytes, lost: BTreeSet::new() }
        });
        let mut dirty = BTreeSet::new();
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Write { offset, bytes } => dirty.extend(pages(offset, offset + bytes.len())),
                // The size is the file system's own and not in the pages that fail.
                Change::Truncate(bytes) => {
                    self.durable.resize(bytes, 0);
                    dirty.retain(|page| page * PAGE < bytes);
                }
            }
        }
        if !dirty.is_empty() {
            let (loses_all, is_unwritten) = (dice.below(2) == 0, dice.below(2) == 0);
            let one = dice.below(dirty.len() as u64) as usize;
            for (number, page) in dirty.into_iter().enumerate() {
                let (from, to) = (page * PAGE, cache.bytes.len().min((page + 1) * PAGE));
                if !loses_all && number != one && dice.below(2) == 0 {
                    put(&mut self.durable, from, &cache.bytes[from..to], 0);
                    continue;
                }
                cache.lost.insert(page);
                if is_unwritten && self.durable.len() < to {
                    self.durable.resize(to, 0);
                }
            }
        }
        self.cache = (!cache.lost.is_empty()).then_some(cache);
    }

    fn after_cut(&self, keeps: Keeps, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        // Lost sectors of new space: zeros, or older data.
        let filler = if dice.below(2) == 0 { 0 } else { 0xa5 };
        for change in &self.pending {
            match (keeps, change) {
                (Keeps::Everything, _) => change.apply(&mut bytes),
                (Keeps::Nothing, _) => {}
                (Keeps::Sectors | Keeps::Both, Change::Write { offset, bytes: written }) => {
                    let mut at = 0;
                    while at < written.len() {
                        let end = (written.len()).min(((offset + at) / SECTOR + 1) * SECTOR - offset);
                        if dice.below(2) == 0 {
                            put(&mut bytes, offset + at, &written[at..end], filler);
                        }
                        at = end;
                    }
                }
                (Keeps::Some, Change::Write { offset, bytes: written }) => {
                    if dice.below(2) == 0 {
                        put(&mut bytes, *offset, written, filler);
                    }
                }
                (Keeps::Some | Keeps::Sectors | Keeps::Both, Change::Truncate(_)) => {
                    if dice.below(2) == 0 {
                        change.apply(&mut bytes);
                    }
                }
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => put(to, *offset, bytes, 0),
            Self::Truncate(bytes) => to.resize(*bytes, 0),
        }
    }
}

/// Returns the pages with these bytes.
fn pages(from: usize, to: usize) -> std::ops::Range<usize> {
    from / PAGE..to.div_ceil(PAGE)
}

fn put(to: &mut Vec<u8>, offset: usize, bytes: &[u8], filler: u8) {
    if to.len() < offset + bytes.len() {
        to.resize(to.len().max(offset), filler);
        to.resize(offset + bytes.len(), 0);
    }
    to[offset..offset + bytes.len()].copy_from_slice(bytes);
}
