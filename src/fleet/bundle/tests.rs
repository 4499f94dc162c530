use proptest::prelude::*;

use super::*;
use crate::fleet::samples::{any_record, record};
use crate::message::{Body, Encoding};

fn read(bytes: &[u8]) -> Vec<Result<FleetRecord, BadRecord>> {
    BundleReader::open(bytes).expect("it is a bundle").collect()
}

#[test]
fn a_bundle_says_what_it_contains() {
    let records: Vec<FleetRecord> = (7..57).map(record).collect();
    let bundle = encode_bundle(&records).expect("they fit").expect("it is not empty");
    let reader = BundleReader::open(&bundle.bytes).expect("it is whole");
    assert_eq!(reader.manifest(), &bundle.manifest);
    assert_eq!((bundle.manifest.first, bundle.manifest.last, bundle.manifest.messages), (7, 56, 50));
    assert_eq!((bundle.manifest.oldest_ms, bundle.manifest.newest_ms), (1_790_000_000_007, 1_790_000_000_056));
    let [group] = &bundle.manifest.groups[..] else { panic!("{:?}", bundle.manifest.groups) };
    assert_eq!((group.message_type.as_str(), group.workspace.as_str()), ("CreateSpanMessage", "research"));
    assert_eq!((group.status.as_str(), group.messages), ("failed", 50));
    assert!(
        records.iter().flat_map(|record| &record.message.touches).all(|touch| bundle.manifest.may_be_about(&touch.key))
    );
    assert_eq!(reader.collect::<Result<Vec<_>, _>>(), Ok(records));
    assert_eq!(encode_bundle(&[]), Ok(None));
}

#[test]
fn a_bundle_ends_at_a_thousand_messages_or_four_mebibytes() {
    let mut builder = BundleBuilder::new();
    for number in 0..MESSAGES_MAX as u64 {
        assert_eq!(builder.push(&record(number)), Ok(Pushed::Taken));
    }
    assert!(builder.is_full());
    assert_eq!(builder.push(&record(1000)), Ok(Pushed::Full), "a message would be in no bundle");

    let mut large = record(1);
    large.message.request.body = Body::new(vec![b' '; 3 << 20], Encoding::Identity);
    let mut builder = BundleBuilder::new();
    assert_eq!(builder.push(&large), Ok(Pushed::Taken));
    assert_eq!(builder.push(&large), Ok(Pushed::Full));
    assert_eq!(builder.push(&record(2)), Ok(Pushed::Taken));

    large.message.request.body = Body::new(vec![b' '; INLINE_BODY_BYTES_MAX], Encoding::Identity);
    let alone = encode_bundle(std::slice::from_ref(&large)).expect("a large message is alone").expect("one record");
    assert_eq!(read(&alone.bytes), [Ok(large.clone())]);
    large.message.request.body = Body::new(vec![b' '; INLINE_BODY_BYTES_MAX + 1], Encoding::Identity);
    assert!(encode_bundle(&[large]).is_err(), "a body that no depot takes must be shipped as a file");
}

#[test]
fn a_record_of_a_newer_version_costs_only_itself() {
    let text = |record: &FleetRecord| encode(record);
    let change = |from: &str, to: &str| {
        let bytes = text(&record(2));
        let (header, body) = (4 + bytes[0] as usize + bytes[1] as usize * 256, bytes.len());
        let changed = String::from_utf8(bytes[4..header].to_vec()).expect("JSON").replacen(from, to, 1);
        [&(changed.len() as u32).to_le_bytes()[..], changed.as_bytes(), &bytes[header..body]].concat()
    };
    let later = change("{", "{\"later\":{\"a\":[1]},");
    assert_eq!(decode(&later), Ok(record(2)), "a field that is not known makes a message unreadable");
    let unknown = change("CreateSpanMessage", "CreateGalaxyMessage");
    let records = [text(&record(1)), unknown, text(&record(3))];
    let manifest = br#"{"messages":3,"bytes":1,"first":1,"last":3,"oldest_ms":1,"newest_ms":1,"later":true}"#;
    let read = read(&write(KIND, manifest, &records));
    assert_eq!((&read[0], &read[2]), (&Ok(record(1)), &Ok(record(3))));
    let bad = read[1].as_ref().expect_err("its type is not known");
    assert_eq!((bad.position, bad.message), (1, Some(2)), "nobody can find the message that was left");
}

#[test]
fn no_secret_is_shown_by_an_error_or_in_debug_output() {
    let bundle = encode_bundle(&[record(1)]).expect("it fits").expect("one record");
    assert!(!format!("{bundle:?}").contains("secret"));
    assert!(!format!("{:?}", record(1)).contains("secret-key"));
    let cut = &encode(&record(1))[..40];
    let (_, reason) = decode(cut).expect_err("it is cut short");
    assert!(!reason.contains("secret"));
}

#[test]
fn a_bundle_of_the_first_format_stays_readable() {
    let kept = include_bytes!("../../../tests/fixtures/fleet/bundle-format-1.bin");
    let expected: Vec<_> = (1..=20).map(|number| Ok(record(number))).collect();
    assert_eq!(read(kept), expected, "messages that an earlier release shipped are lost");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_record_comes_back_as_it_was(records in prop::collection::vec(any_record(), 1..24)) {
        let bundle = encode_bundle(&records).expect("they fit").expect("there are some");
        prop_assert_eq!(read(&bundle.bytes), records.into_iter().map(Ok).collect::<Vec<_>>());
    }
}
