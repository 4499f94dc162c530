//! SQLite's files, read without SQLite (its "Database File Format").

/// Returns where the cells of a page stand; empty when the page can't be one.
pub(crate) fn cell_pointers(page: &[u8], header_bytes: usize, usable_bytes: u32) -> Vec<u16> {
    let be16 = |at: usize| page.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let count = usize::from(be16(3).unwrap_or(0));
    if header_bytes + 2 * count > usable_bytes as usize {
        return Vec::new();
    }
    (0..count).filter_map(|cell| be16(header_bytes + 2 * cell)).collect()
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes)
}

/// Reads SQLite's variable-length integer; returns it and where the next byte stands.
pub(crate) fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (read, byte) in bytes.get(at..)?.iter().take(9).enumerate() {
        if read == 8 {
            return Some((value << 8 | u64::from(*byte), at + 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + read + 1));
        }
    }
    None
}
