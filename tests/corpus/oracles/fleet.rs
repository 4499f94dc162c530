//! The contents of a depot: bundles, marks, heads, names and `fleet.json`, which a stranger may have written.
//!
//! The first byte chooses what the rest is. For bundles and marks, an input is a series of changes to a sound object,
//! of five bytes each, or the object itself.

use std::sync::OnceLock;

use opik_offline::fleet::bundle::{BundleReader, encode_bundle};
use opik_offline::fleet::fleet_file::FleetFile;
use opik_offline::fleet::head::Head;
use opik_offline::fleet::import::{ImportPlan, SettledMessages};
use opik_offline::fleet::marks::{Fate, Mark, MarksReader, encode_marks};
use opik_offline::fleet::names::ObjectName;
use opik_offline::fleet::record::{FleetRecord, MessageRef};
use opik_offline::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request};
use opik_offline::store::Part;

const RECORDS: u64 = 20;

fn request(number: u64) -> Request {
    Request {
        method: "POST".to_owned(),
        path: "v1/private/traces".to_owned(),
        headers: HeaderSet::new(vec![("Content-Type".to_owned(), b"application/json".to_vec())]),
        body: Body::new(format!("{{\"name\":\"trace {number}\"}}"), Encoding::Identity),
    }
}

fn records() -> Vec<FleetRecord> {
    let message = |number| Message {
        lane: Lane::default(),
        message_type: MessageType::CreateTrace,
        request: request(number),
        touches: Vec::new(),
        items: 1,
        project: None,
        accepted_at_ms: 1_790_000_000_000,
    };
    (0..RECORDS).map(|number| FleetRecord::waiting(number, message(number))).collect()
}

fn marks() -> Vec<Mark> {
    let part = |number| Part { request: request(number), touches: Vec::new(), items: 1, rejected: None, held: None };
    let fate =
        |number| if number % 4 == 0 { Fate::Divided(vec![part(number), part(number + 1)]) } else { Fate::Delivered };
    (0..RECORDS).map(|number| Mark { reference: MessageRef::whole(number), fate: fate(number) }).collect()
}

/// Changes a sound object: place (3 bytes), what to do, value.
fn changed(whole: &[u8], steps: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for step in steps.chunks_exact(5).take(16) {
        let at = (usize::from(step[0]) << 16 | usize::from(step[1]) << 8 | usize::from(step[2])) % bytes.len().max(1);
        match step[3] % 4 {
            _ if bytes.is_empty() => {}
            0 => bytes[at] ^= step[4],
            1 => bytes.truncate(at),
            2 => bytes.insert(at, step[4]),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

/// Records that are read from a damaged bundle were in it, without duplicates, in order, and within bounds.
fn damaged_bundle(steps: &[u8]) {
    static WHOLE: OnceLock<(Vec<FleetRecord>, Vec<u8>)> = OnceLock::new();
    let (records, whole) = WHOLE.get_or_init(|| {
        let records = records();
        let bundle = encode_bundle(&records).expect("they fit").expect("there are some");
        (records, bundle.bytes)
    });
    let bytes = changed(whole, steps);
    let Ok(reader) = BundleReader::open(&bytes) else { return };
    let (mut read, mut bad) = (Vec::new(), 0);
    for record in reader {
        match record {
            Ok(record) => read.push(record),
            Err(_) => bad += 1,
        }
    }
    let ids: Vec<u64> = read.iter().map(|record| record.reference.message).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "records come twice or out of order: {ids:?}");
    assert!(read.iter().all(|record| records.contains(record)), "a damaged bundle has a message that nobody sent");
    assert!(read.len() == records.len() || bad > 0, "lost records are not reported");
}

fn any_bundle(bytes: &[u8]) {
    if let Ok(reader) = BundleReader::open(bytes) {
        let _ = reader.manifest().messages;
        let mut plan = ImportPlan::default();
        let planned = plan.next_bundle(reader.flatten().collect());
        assert!(planned.is_sorted_by_key(FleetRecord::order));
    }
}

fn any_marks(bytes: &[u8]) {
    let Ok(reader) = MarksReader::open(bytes) else { return };
    let mut settled = SettledMessages::new();
    for mark in reader.flatten() {
        let again = encode_marks(std::slice::from_ref(&mark));
        let back = MarksReader::open(&again).expect("its own marks").next().expect("one").expect("whole");
        assert!(back == mark, "a mark changes when it is written again");
        if settled.add(mark).is_err() {
            return;
        }
    }
}

/// Objects of a depot.
pub(crate) fn fleet_objects(input: &[u8]) {
    static MARKS: OnceLock<Vec<u8>> = OnceLock::new();
    let Some((kind, rest)) = input.split_first() else { return };
    match kind {
        b'b' => damaged_bundle(rest),
        b'B' => any_bundle(rest),
        b'm' => any_marks(&changed(MARKS.get_or_init(|| encode_marks(&marks())), rest)),
        b'M' => any_marks(rest),
        b'h' => {
            if let Ok(head) = Head::decode(rest) {
                let again = Head::decode(&head.encode()).expect("its own head");
                assert_eq!(Head::decode(&again.encode()), Ok(again), "a head changes when it is written again");
                assert!(!head.owner.to_string().chars().any(char::is_control), "a head controls a terminal");
            }
        }
        b'f' => {
            if let Ok(file) = FleetFile::decode(rest) {
                assert_eq!(FleetFile::decode(&file.encode()), Ok(file));
            }
        }
        _ => {
            let name = String::from_utf8_lossy(rest);
            if let Some(parsed) = ObjectName::parse(&name) {
                assert_eq!(parsed.to_string(), name, "an object has two names");
                assert!(!name.contains("..") && name.is_ascii());
            }
        }
    }
}
