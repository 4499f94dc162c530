//! A gzipped tar file of a few small files, in the `ustar` format of POSIX.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

const BLOCK: usize = 512;

/// Files that are being packed.
pub(super) struct Archive {
    folder: &'static str,
    seconds: u64,
    tar: Vec<u8>,
}

impl Archive {
    /// Returns an archive whose files are in this folder and have this time.
    pub(super) fn new(folder: &'static str, at_ms: i64) -> Self {
        Self { folder, seconds: u64::try_from(at_ms / 1000).unwrap_or(0), tar: Vec::new() }
    }

    /// Adds a file. Its name is short.
    pub(super) fn add(&mut self, name: &str, contents: &[u8]) {
        let mut head = [0; BLOCK];
        let mut put = |at: usize, text: &str| {
            for (byte, value) in head[at..].iter_mut().zip(text.bytes()) {
                *byte = value;
            }
        };
        put(0, &format!("{}/{name}", self.folder));
        put(100, "0000600\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", contents.len()));
        put(136, &format!("{:011o}\0", self.seconds));
        // The checksum counts its own field as spaces.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        for (byte, value) in head[148..].iter_mut().zip(format!("{sum:06o}\0 ").bytes()) {
            *byte = value;
        }
        self.tar.extend_from_slice(&head);
        self.tar.extend_from_slice(contents);
        self.tar.resize(self.tar.len().next_multiple_of(BLOCK), 0);
    }

    /// Returns the bytes of the file.
    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.tar.resize(self.tar.len() + 2 * BLOCK, 0);
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(&self.tar)?;
        packed.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_the_archive() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = Archive::new("bundle", 1_700_000_000_000);
        archive.add("empty.txt", b"");
        archive.add("text.txt", &vec![b'x'; 513]);
        let file = folder.path().join("a.tar.gz");
        std::fs::write(&file, archive.finish().expect("memory")).expect("a file");
        let mut tar = std::process::Command::new("tar");
        let output = tar.arg("-xzf").arg(&file).current_dir(folder.path()).output().expect("tar runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read(folder.path().join("bundle/text.txt")).expect("unpacked"), vec![b'x'; 513]);
        assert_eq!(std::fs::read(folder.path().join("bundle/empty.txt")).expect("unpacked"), b"");
    }
}
