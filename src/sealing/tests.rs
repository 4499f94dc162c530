//! The format's own test vectors, round trips, and every kind of damage.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::read::ZlibDecoder;
use ring::digest::{SHA256, digest};

use super::*;

const CHUNK: usize = 64 * 1024;

fn pair() -> (Identity, Recipient) {
    let identity = Identity::generate().expect("the system has random numbers");
    let recipient = identity.recipient();
    (identity, recipient)
}

fn contents(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8 ^ (at / CHUNK) as u8).collect()
}

/// A published test vector: what is expected, and the sealed file.
struct Vector {
    fields: BTreeMap<String, String>,
    sealed: Vec<u8>,
}

fn vector(path: &Path) -> Vector {
    let bytes = fs::read(path).expect("a readable vector");
    let end = bytes.windows(2).position(|two| two == b"\n\n").expect("an empty line behind the fields");
    let text = std::str::from_utf8(&bytes[..end]).expect("text");
    let fields = text.lines().filter_map(|line| line.split_once(": "));
    let fields: BTreeMap<_, _> = fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut sealed = bytes[end + 2..].to_vec();
    if fields.contains_key("compressed") {
        let compressed = std::mem::take(&mut sealed);
        ZlibDecoder::new(&compressed[..]).read_to_end(&mut sealed).expect("a valid vector");
    }
    Vector { fields, sealed }
}

/// Opens as far as it goes: what was returned, and how it ended.
fn opened_as_far(identities: &[Identity], sealed: &[u8]) -> (Option<Vec<u8>>, Result<(), SealError>) {
    let mut reader = match OpenReader::new(identities, sealed) {
        Ok(reader) => reader,
        Err(error) => return (None, Err(error)),
    };
    let mut plain = Vec::new();
    let read = reader.read_to_end(&mut plain).map(drop).map_err(SealError::from_io);
    (Some(plain), read)
}

#[test]
fn the_published_vectors_of_the_format_are_opened_or_refused_as_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/age");
    let mut seen = BTreeMap::<String, u32>::new();
    for entry in fs::read_dir(folder).expect("the vectors") {
        let path = entry.expect("an entry").path();
        let Vector { fields, sealed } = vector(&path);
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let identities: Vec<Identity> =
            fields.get("identity").into_iter().map(|key| key.parse().expect("a valid identity")).collect();
        let (plain, result) = opened_as_far(&identities, &sealed);
        let expected = if fields.contains_key("passphrase") && fields["expect"] == "success" {
            "no match"
        } else {
            fields["expect"].as_str()
        };
        let is_as_expected = match (expected, &result) {
            ("success", Ok(())) | ("no match", Err(SealError::NoIdentity { .. })) => true,
            ("HMAC failure", Err(SealError::HeaderChanged)) => true,
            ("payload failure", Err(SealError::Changed { .. } | SealError::Truncated)) => plain.is_some(),
            ("header failure", Err(SealError::Header { .. } | SealError::Truncated)) => plain.is_none(),
            ("header failure", Err(SealError::NotSealed | SealError::TooNew { .. })) => plain.is_none(),
            _ => false,
        };
        assert!(is_as_expected, "{name}: expected {expected}, got {result:?}");
        if let (Some(plain), Some(hash)) = (&plain, fields.get("payload")) {
            let found: String = digest(&SHA256, plain).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            // Others return a chunk before they look at what follows it: here a chunk whose end is wrong is withheld.
            let is_withheld = result.is_err() && plain.len() % CHUNK == 0;
            assert!(&found == hash || is_withheld, "{name}: other contents than were sealed");
        }
        *seen.entry(expected.to_owned()).or_default() += 1;
    }
    assert!(seen["success"] >= 13 && seen["payload failure"] >= 18 && seen["header failure"] >= 25, "{seen:?}");
    assert!(seen["no match"] >= 4 && seen["HMAC failure"] >= 1, "{seen:?}");
}

#[test]
fn sealed_contents_of_every_length_are_opened_by_each_recipient() {
    let (first, to_first) = pair();
    let (second, to_second) = pair();
    for bytes in [0, 1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 1 << 20, (1 << 20) + 7] {
        let plain = contents(bytes);
        let sealed = seal(&[to_first, to_second], &plain).expect("it can be sealed");
        let probe = &plain[..bytes.min(40)];
        let found = sealed.windows(probe.len().max(1)).any(|part| probe.len() > 16 && part == probe);
        assert!(!found, "{bytes} bytes can be read by anybody");
        for identity in [&first, &second] {
            let opened = open(std::slice::from_ref(identity), &sealed).expect("a recipient opens it");
            assert!(opened == plain, "{bytes} bytes are others than were sealed");
        }
        let room = header::bytes_for(2) + stream::sealed_bytes(bytes);
        assert!(sealed.len() <= room, "{} bytes in room for {room}: it was copied while it grew", sealed.len());
    }
    let twice = [seal(&[to_first], b"same").expect("sealed"), seal(&[to_first], b"same").expect("sealed")];
    assert_ne!(twice[0], twice[1], "equal contents can be recognised without a key");
}

#[test]
fn a_stream_is_the_same_in_pieces_of_any_size() {
    let (identity, recipient) = pair();
    let plain = contents(3 * CHUNK + 11);
    for piece in [1, 1000, CHUNK, CHUNK + 1, plain.len()] {
        let mut writer = SealWriter::new(&[recipient], Vec::new()).expect("a header");
        let step = if piece == 1 { 997 } else { piece };
        plain.chunks(step).for_each(|part| writer.write_all(part).expect("memory takes it"));
        let sealed = writer.finish().expect("memory takes it");
        let mut reader = OpenReader::new(std::slice::from_ref(&identity), &sealed[..]).expect("it opens");
        let mut opened = Vec::new();
        let mut buffer = vec![0; step];
        loop {
            match reader.read(&mut buffer).expect("nothing was changed") {
                0 => break,
                read => opened.extend_from_slice(&buffer[..read]),
            }
        }
        assert!(opened == plain, "in pieces of {piece} bytes the contents are others than were sealed");
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (identity, recipient) = pair();
    let plain = contents(CHUNK + 100);
    let sealed = seal(&[recipient], &plain).expect("sealed");
    let head = sealed.len() - stream::sealed_bytes(plain.len());
    // Every byte of the header, nonce and both ends of both chunks.
    let chunk = head + 16;
    let near = |at: usize| at.saturating_sub(20)..(at + 20).min(sealed.len());
    let places = (0..chunk + 20).chain(near(chunk + CHUNK + 16)).chain(near(sealed.len()));
    for at in places {
        let mut changed = sealed.clone();
        changed[at] ^= 1 << (at % 8);
        let (opened, result) = opened_as_far(std::slice::from_ref(&identity), &changed);
        let error = result.err().unwrap_or_else(|| panic!("a flipped bit in byte {at} passes"));
        let opened = opened.unwrap_or_default();
        assert!(plain.starts_with(&opened) && opened.len() <= CHUNK, "byte {at}: {error}: contents were changed");
        assert!(!matches!(error, SealError::Io(_)), "byte {at}: {error:?}");
    }
}

#[test]
fn truncated_contents_are_refused() {
    let (identity, recipient) = pair();
    for bytes in [0, 100, CHUNK, 2 * CHUNK] {
        let plain = contents(bytes);
        let sealed = seal(&[recipient], &plain).expect("sealed");
        let head = sealed.len() - stream::sealed_bytes(bytes);
        let ends = (0..head + 20).chain([head + 16 + CHUNK, head + 16 + CHUNK + 16, sealed.len() - 1]);
        for end in ends.filter(|end| *end < sealed.len()) {
            let refused = open(std::slice::from_ref(&identity), &sealed[..end]).expect_err("its end is missing");
            let is_said = matches!(refused, SealError::Truncated | SealError::NotSealed | SealError::Changed { .. });
            assert!(is_said || matches!(refused, SealError::TooNew { .. }), "{bytes} bytes to {end}: {refused:?}");
        }
        // Between two chunks nothing of what is there was changed: the reason must be the missing end.
        if bytes == 2 * CHUNK {
            let cut = &sealed[..head + 16 + CHUNK + 16];
            assert!(matches!(open(std::slice::from_ref(&identity), cut), Err(SealError::Truncated)));
        }
        let longer = [&sealed[..], b"x"].concat();
        assert!(open(std::slice::from_ref(&identity), &longer).is_err(), "{bytes} bytes: something was added");
    }
}

#[test]
fn chunks_cannot_change_places() {
    let (identity, recipient) = pair();
    let sealed = seal(&[recipient], &contents(3 * CHUNK)).expect("sealed");
    let first = sealed.len() - stream::sealed_bytes(3 * CHUNK) + 16;
    let chunk = |number: usize| &sealed[first + number * (CHUNK + 16)..first + (number + 1) * (CHUNK + 16)];
    for order in [[1, 0, 2], [0, 0, 2], [0, 2, 1], [2, 1, 0]] {
        let chunks: Vec<u8> = order.iter().flat_map(|number| chunk(*number).to_vec()).collect();
        let moved = [&sealed[..first], &chunks].concat();
        let refused = open(std::slice::from_ref(&identity), &moved).expect_err("its chunks were moved");
        assert!(matches!(refused, SealError::Changed { .. }), "{order:?}: {refused:?}");
    }
}

#[test]
fn a_reader_that_failed_returns_nothing_more() {
    let (identity, recipient) = pair();
    let mut sealed = seal(&[recipient], &contents(2 * CHUNK)).expect("sealed");
    let at = sealed.len() - CHUNK;
    sealed[at] ^= 1;
    let mut reader = OpenReader::new(std::slice::from_ref(&identity), &sealed[..]).expect("its header is unchanged");
    let mut plain = Vec::new();
    let failed = reader.read_to_end(&mut plain).expect_err("the second chunk was changed");
    assert!(matches!(SealError::from_io(failed), SealError::Changed { at } if at == CHUNK as u64));
    assert_eq!(plain.len(), CHUNK);
    assert!(reader.read(&mut [0; 8]).is_err(), "a reader that continues after an error hides a missing part");
}

#[test]
fn another_identity_learns_whom_it_is_sealed_for_and_nothing_else() {
    let (_, recipient) = pair();
    let (stranger, _) = pair();
    let sealed = seal(&[recipient], b"secret").expect("sealed");
    let refused = open(std::slice::from_ref(&stranger), &sealed).expect_err("it is somebody else's").to_string();
    assert!(refused.contains(&recipient.to_string()), "the message does not name the identity to look for: {refused}");
    let refused = open(&[], &sealed).expect_err("without a key").to_string();
    assert!(refused.contains(&recipient.to_string()), "{refused}");
    // Another program does not name them.
    let Vector { sealed, .. } = vector(Path::new("tests/fixtures/age/x25519_multiple_recipients"));
    let refused = open(&[stranger], &sealed).expect_err("it is somebody else's").to_string();
    assert!(refused.contains("does not say for whom"), "{refused}");
}

#[test]
fn the_number_of_recipients_is_bounded() {
    let pairs: Vec<(Identity, Recipient)> = (0..RECIPIENTS_MAX).map(|_| pair()).collect();
    let mut recipients: Vec<Recipient> = pairs.iter().map(|(_, recipient)| *recipient).collect();
    let sealed = seal(&recipients, b"for all").expect("the maximum is allowed");
    let (last, _) = pairs.last().expect("there are some");
    assert_eq!(open(std::slice::from_ref(last), &sealed).expect("the last recipient opens it"), b"for all");
    recipients.push(pair().1);
    assert!(matches!(seal(&recipients, b""), Err(SealError::TooManyRecipients { given: 65 })));
    assert!(matches!(seal(&[], b""), Err(SealError::NoRecipients)));
    // A stranger's header costs at most its bound: here it never ends.
    let stanza =
        b"-> X25519 TEiF0ypqr+bpvcqXNyCVJpL7OuwPdVwPL7KQEbFDOCc\nEmECAEcKN+n/Vs9SbWiV+Hu0r+E8R77DdWYyd83nw7U\n";
    let endless = io::Cursor::new(b"age-encryption.org/v1\n").chain(Cycle { of: stanza, at: 0 });
    let refused = OpenReader::new(std::slice::from_ref(last), endless).map(drop).expect_err("it has no end");
    assert!(matches!(refused, SealError::Header { reason } if reason.contains("64 KiB")), "{refused:?}");
}

/// Repeats some bytes for ever.
struct Cycle {
    of: &'static [u8],
    at: usize,
}

impl Read for Cycle {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        bytes.iter_mut().for_each(|byte| {
            *byte = self.of[self.at % self.of.len()];
            self.at += 1;
        });
        Ok(bytes.len())
    }
}

#[test]
fn contents_without_their_end_do_not_open() {
    let (identity, recipient) = pair();
    let mut sealed = Vec::new();
    let mut writer = SealWriter::new(&[recipient], &mut sealed).expect("a header");
    writer.write_all(&contents(CHUNK + 5)).expect("memory takes it");
    drop(writer);
    let refused = open(&[identity], &sealed).expect_err("the process that sealed it was killed");
    assert!(matches!(refused, SealError::Truncated), "{refused:?}");
}

#[test]
fn keys_have_one_spelling_and_wrong_ones_are_explained_without_being_shown() {
    let (identity, recipient) = pair();
    let public = recipient.to_string();
    let secret = identity.secret_text();
    assert!(public.starts_with("age1") && public.len() == 62, "{public}");
    assert!(secret.starts_with("AGE-SECRET-KEY-1") && secret.len() == 74);
    assert_eq!(public.parse::<Recipient>().expect("its own text"), recipient);
    assert_eq!(secret.parse::<Identity>().expect("its own text").recipient(), recipient);
    let debug = format!("{identity:?}");
    assert!(debug.contains(&public) && !debug.contains(&secret[16..]), "{debug}");

    let zero = bech32::encode::<bech32::Bech32>(bech32::Hrp::parse("age").expect("valid"), &[0; 32]).expect("short");
    for (text, reason) in [
        ("", "empty"),
        (&public[..61], "misspelt"),
        (&public.to_uppercase(), "begins in another way"),
        (&public.replacen("age1", "agee1", 1), "begins in another way"),
        (&secret, "identity, which is secret"),
        (&secret.to_lowercase(), "identity, which is secret"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA", "SSH"),
        ("age1pq1qqqqqq", "X25519"),
        (&zero, "hides nothing"),
    ] {
        let refused = text.parse::<Recipient>().expect_err(text).to_string();
        assert!(refused.contains(reason) && !refused.contains(&secret[20..]), "{refused}");
    }
    for (text, reason) in [
        (&public[..], "public"),
        (&secret[..73], "misspelt"),
        (&secret.to_lowercase(), "begins in another way"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "SSH"),
    ] {
        let refused = text.parse::<Identity>().expect_err("it is not an identity").to_string();
        assert!(refused.contains(reason) && !refused.contains(&secret[20..60]), "{refused}");
    }
}

#[test]
fn an_identity_file_is_made_once_for_its_owner_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("identity.txt");
    let recipient = make_identity(&path).expect("a new file");
    let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "others can read the secret key");
    let before = fs::read(&path).expect("readable");
    let refused = make_identity(&path).expect_err("it exists").to_string();
    assert!(refused.contains("never overwritten"), "{refused}");
    assert_eq!(fs::read(&path).expect("readable"), before, "everything that is sealed for this key is lost");
    let [identity] = &read_identities(&path).expect("its own file")[..] else { panic!("one key") };
    assert_eq!(identity.recipient(), recipient);

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let refused = read_identities(&path).expect_err("others can read it").to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
    let refused = read_identities(folder.path()).expect_err("a folder").to_string();
    assert!(refused.contains("not a regular file"), "{refused}");
}

#[test]
fn a_key_file_that_is_missing_is_named_with_the_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, inside) = (folder.path().join("none"), folder.path().join("none/identity"));
    let (named, inside_named) = (file.display().to_string(), inside.display().to_string());
    for (error, path, reason) in [
        (read_identities(&file).err(), &named, "there is no such file"),
        (read_recipients(&file).err(), &named, "there is no such file"),
        (make_identity(&inside).err(), &inside_named, "there is no such folder"),
    ] {
        let said = error.expect("it is not there").to_string();
        assert!(said.contains(path.as_str()) && said.contains(reason), "nobody knows which file to mend: {said}");
    }
}

#[test]
fn a_file_of_keys_names_the_line_that_is_wrong_and_does_not_quote_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("recipients.txt");
    let (identity, recipient) = pair();
    let secret = identity.secret_text();
    for (text, reason) in [
        (format!("# us\n\n{recipient}\r\n"), ""),
        ("# nobody\n".to_owned(), "no key"),
        (format!("{recipient}\n{}\n", *secret), "line 2"),
        (format!("{recipient}\n").repeat(65), "64 is the maximum"),
        ("#".repeat(70_000), "more than 64 KiB"),
    ] {
        fs::write(&path, &text).expect("a file");
        match read_recipients(&path) {
            Ok(recipients) => assert!(reason.is_empty() && recipients == [recipient], "{text} was taken"),
            Err(error) => {
                let error = error.to_string();
                assert!(!reason.is_empty() && error.contains(reason), "{error}");
                assert!(error.contains("recipients.txt") && !error.contains(&secret[16..]), "{error}");
            }
        }
    }
}
