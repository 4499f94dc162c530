use proptest::prelude::*;

use super::*;

const KIND: ObjectKind = ObjectKind { magic: *b"OPIKTEST", format: 3, name: "a test" };
const LIMIT: ReadLimit = ReadLimit { piece: 1 << 20, total: 8 << 20 };

fn records(count: usize) -> Vec<Vec<u8>> {
    let record =
        |n: usize| format!(r#"{{"id":"01a20440-760f-72f8-b5dd-{n:012x}","name":"llm","n":{n}}}"#).repeat(1 + n % 4);
    (0..count).map(|n| record(n).into_bytes()).collect()
}

/// Returns the readable records of an object and how often damage was reported.
fn read(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, usize), BadObject> {
    let mut reader = ContainerReader::open(KIND, bytes, LIMIT)?;
    let (mut whole, mut bad) = (Vec::new(), 0);
    while let Some(piece) = reader.next() {
        match piece {
            ContainerRecord::Whole(record) => whole.push(record),
            ContainerRecord::Bad(_) => bad += 1,
        }
    }
    Ok((whole, bad))
}

#[test]
fn records_come_back_byte_for_byte_in_order() {
    for count in [0, 1, 15, 16, 200] {
        let records = records(count);
        let bytes = write(KIND, b"{}", &records);
        assert_eq!(read(&bytes), Ok((records, 0)), "{count} records");
        assert_eq!(ContainerReader::open(KIND, &bytes, LIMIT).expect("it is whole").manifest(), b"{}");
    }
}

#[test]
fn a_shared_dictionary_makes_similar_records_small() {
    let records = records(1000);
    let raw: usize = records.iter().map(Vec::len).sum();
    let bytes = write(KIND, b"{}", &records);
    assert!(bytes.len() * 2 < raw, "{} bytes for {raw}: shipping costs more than it has to", bytes.len());
}

#[test]
fn a_flipped_bit_anywhere_costs_one_record_at_most_and_is_reported() {
    let records = records(40);
    let whole = write(KIND, b"{\"a\":1}", &records);
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let (readable, bad) = read(&damaged).unwrap_or_else(|error| panic!("byte {at}: all records are lost: {error}"));
        assert!(readable.len() + 1 >= records.len(), "byte {at}: {} of 40 records are left", readable.len());
        assert!(readable.iter().all(|record| records.contains(record)), "byte {at}: a record was altered");
        assert!(readable.len() == records.len() || bad == 1, "byte {at}: the loss was reported {bad} times");
    }
}

#[test]
fn a_truncated_object_gives_what_is_left_and_reports_the_rest() {
    let records = records(40);
    let whole = write(KIND, b"{}", &records);
    for end in (START_BYTES..whole.len()).step_by(7) {
        let Ok((readable, bad)) = read(&whole[..end]) else { continue };
        assert_eq!(readable, records[..readable.len()], "cut at {end}");
        assert!(readable.len() == records.len() || bad > 0, "cut at {end}: nobody learns of the missing records");
    }
}

#[test]
fn a_newer_format_is_refused_with_the_version_that_wrote_it() {
    let newer = ObjectKind { format: 4, ..KIND };
    let mut bytes = write(newer, b"{}", &records(3));
    let start = start_of(newer, "9.1.0\x1b[31m");
    bytes[..START_BYTES].copy_from_slice(&start);
    let error = read(&bytes).expect_err("it is too new");
    assert_eq!(error, BadObject::TooNew { format: 4, program: "9.1.031m".to_owned(), known: 3 });
    assert!(error.to_string().contains("9.1.0"), "{error}");
    let other = ObjectKind { magic: *b"OPIKELSE", ..KIND };
    assert_eq!(read(&write(other, b"{}", &[])), Err(BadObject::NotOurs { expected: "a test" }));
    assert_eq!(read(b""), Err(BadObject::NotOurs { expected: "a test" }));
}

/// Returns an object with one piece of these stored bytes, which claims to decode to `raw_bytes`.
fn with_piece(raw_bytes: u32, stored: &[u8], times: usize) -> Vec<u8> {
    let mut bytes = write(KIND, b"{}", &[]);
    bytes.truncate(bytes.len() - START_BYTES - HEAD_BYTES - 20);
    for _ in 0..times {
        let mut head = SYNC.to_vec();
        head.push(PieceKind::Record as u8);
        head.extend_from_slice(&raw_bytes.to_le_bytes());
        head.extend_from_slice(&(stored.len() as u32).to_le_bytes());
        head.extend_from_slice(&crc32(&head).to_le_bytes());
        head.extend_from_slice(&crc32(stored).to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(stored);
    }
    bytes
}

#[test]
fn lying_lengths_and_decompression_bombs_stay_within_the_limits() {
    let bomb =
        Compressor::with_dictionary(LEVEL, DICTIONARY).expect("memory").compress(&vec![0; 1 << 20]).expect("it fits");
    for claimed in [0, 5, (1 << 20) - 1, (1 << 20) + 1, u32::MAX] {
        let (whole, bad) = read(&with_piece(claimed, &bomb, 1)).expect("its manifest is readable");
        assert!(whole.is_empty() && bad > 0, "a piece of 1 MiB that claims {claimed} bytes was accepted");
    }
    let (whole, _) = read(&with_piece(1 << 20, &bomb, 100)).expect("its manifest is readable");
    assert!(whole.len() <= 8, "{} MiB were decoded from one object of {} bytes", whole.len(), bomb.len() * 100);
}

#[test]
fn a_search_behind_damage_ends_soon_whatever_the_bytes_are() {
    let mut bytes = write(KIND, b"{}", &[]);
    let mut head = SYNC.to_vec();
    head.push(PieceKind::Record as u8);
    head.extend_from_slice(&1_u32.to_le_bytes());
    head.extend_from_slice(&1_000_000_u32.to_le_bytes());
    head.extend_from_slice(&crc32(&head).to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    let end = bytes.len() - START_BYTES;
    bytes.truncate(end);
    let start = bytes.len();
    bytes.extend(head.repeat(100_000));
    let mut reader = ContainerReader::open(KIND, &bytes, LIMIT).expect("its manifest is readable");
    reader.at = start;
    assert!(matches!(reader.next(), Some(ContainerRecord::Bad(_))));
    assert!(reader.checkable < bytes.len() * CHECKED_FACTOR, "nothing was counted");
}

#[test]
fn a_frame_that_was_made_without_memory_is_readable() {
    for length in [0, 5, 128 * 1024, 300_000] {
        let raw: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let frame = uncompressed_frame(&raw);
        let back = Decompressor::with_dictionary(DICTIONARY).expect("memory").decompress(&frame, raw.len());
        assert_eq!(back.expect("it is a frame"), raw);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic_or_invent_records(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let records = records(30);
        let mut bytes = write(KIND, b"{}", &records);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut.index(40));
        if let Ok((whole, _)) = read(&bytes) {
            prop_assert!(whole.iter().all(|record| records.contains(record)));
        }
    }
}
