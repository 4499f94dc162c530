//! The contract of every depot.

use std::sync::Barrier;

use opik_offline::depot::{Created, Depot, DepotError, Entry, Name, OBJECT_BYTES_MAX, Version, prove};

/// Names in a folder in ascending order, among them all that are hard to order.
const NAMES: &[&str] = &["a-b", "a.b", "a/0", "a/b.c", "a/b/c", "a0", "aa", "b"];
/// Those that storage on top of a file system orders as well; no others are used.
pub(crate) const NAMES_USED: &[&str] = &["a/0", "a/b/c", "a/bb.c", "a0", "aa", "b", "b-c", "b.c"];

/// Checks every promise on a depot; a second connection to the same depot stands for another host.
pub(crate) fn check(depot: &dyn Depot, other: &dyn Depot) {
    check_with(NAMES, depot, other);
}

/// The same with other names in the listings.
pub(crate) fn check_with(below: &[&str], depot: &dyn Depot, other: &dyn Depot) {
    a_name_is_created_once(depot, other);
    a_version_is_replaced_once(depot, other);
    one_of_many_wins(depot, other);
    listings_are_ascending_and_complete(below, depot, other);
    a_listing_goes_on_where_it_ended(depot);
    deleted_objects_are_gone(depot, other);
    bytes_come_back_as_they_were(depot, other);
    let proofs = prove(depot).unwrap();
    assert!(proofs.are_conditions_kept() && proofs.can_read && proofs.can_list && proofs.can_delete, "{proofs:?}");
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn bytes(depot: &dyn Depot, name: &Name) -> Option<Vec<u8>> {
    depot.get(name).unwrap().map(|(bytes, _)| bytes)
}

fn version(depot: &dyn Depot, name: &Name) -> Version {
    depot.get(name).unwrap().expect("it is there").1
}

fn a_name_is_created_once(depot: &dyn Depot, other: &dyn Depot) {
    let bundle = name("v1/bundles/a0/once/0");
    assert_eq!(depot.get(&bundle).unwrap(), None);
    assert_eq!(depot.create(&bundle, b"first").unwrap(), Created::New);
    assert_eq!(depot.create(&bundle, b"first").unwrap(), Created::AlreadyThere, "a repeat is safe");
    assert_eq!(other.create(&bundle, b"second").unwrap(), Created::AlreadyThere);
    assert_eq!(bytes(other, &bundle).as_deref(), Some(&b"first"[..]), "what was shipped was overwritten");
}

fn a_version_is_replaced_once(depot: &dyn Depot, other: &dyn Depot) {
    let head = name("v1/heads/replaced");
    let first = depot.swap(&head, None, b"1").unwrap();
    assert!(matches!(other.swap(&head, None, b"x"), Err(DepotError::Lost { .. })), "two began one stream");
    assert_eq!(version(other, &head), first, "the version of a swap is that of what was written");
    let second = other.swap(&head, Some(&first), b"2").unwrap();
    assert_ne!(first, second);
    assert!(matches!(depot.swap(&head, Some(&first), b"x"), Err(DepotError::Lost { .. })), "two own one stream");
    assert_eq!(bytes(depot, &head).as_deref(), Some(&b"2"[..]));
    assert_eq!(depot.list(&name("v1/heads"), None, 10).unwrap()[0].version, second, "a listing shows who is silent");
    depot.delete(std::slice::from_ref(&head)).unwrap();
    let gone = depot.swap(&head, Some(&second), b"3");
    assert!(matches!(gone, Err(DepotError::Lost { .. })), "a finished stream was revived: {gone:?}");
}

fn one_of_many_wins(depot: &dyn Depot, other: &dyn Depot) {
    const RACERS: usize = 6;
    let race = |run: &(dyn Fn(usize, &dyn Depot) -> bool + Sync)| {
        let start = Barrier::new(RACERS);
        let won = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let (start, depot) = (&start, if racer % 2 == 0 { depot } else { other });
                    scope.spawn(move || {
                        start.wait();
                        run(racer, depot)
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(won, 1, "several owners of one stream would send its messages");
    };
    for round in 0..5 {
        let created = name(&format!("v1/race/create-{round}"));
        race(&|racer, depot| depot.create(&created, &[racer as u8]).unwrap() == Created::New);
        let swapped = name(&format!("v1/race/swap-{round}"));
        let first = depot.swap(&swapped, None, b"first").unwrap();
        race(&|racer, depot| match depot.swap(&swapped, Some(&first), &[racer as u8]) {
            Ok(_) => true,
            Err(DepotError::Lost { .. }) => false,
            Err(error) => panic!("{error}"),
        });
    }
}

fn listings_are_ascending_and_complete(below: &[&str], depot: &dyn Depot, other: &dyn Depot) {
    for (size, below) in below.iter().enumerate() {
        depot.create(&name(&format!("v1/list/{below}")), &vec![b'x'; size]).unwrap();
    }
    // The neighbours of the folder are not in it.
    for beside in ["v1/list-", "v1/list.x", "v1/list0/x"] {
        depot.create(&name(beside), b"beside").unwrap();
    }
    let listed = other.list(&name("v1/list"), None, 100).unwrap();
    let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str().trim_start_matches("v1/list/")).collect();
    assert_eq!(names.as_slice(), below, "a bundle is missing or out of order");
    for (size, entry) in listed.iter().enumerate() {
        assert_eq!((entry.bytes, &entry.version), (size as u64, &version(depot, &entry.name)), "{}", entry.name);
    }
    assert_eq!(depot.list(&name("v1/list/a"), None, 100).unwrap().len(), 3);
    assert_eq!(depot.list(&name("v1/nothing"), None, 100).unwrap(), []);
    for (at, after) in below.iter().enumerate() {
        let rest = depot.list(&name("v1/list"), Some(&name(&format!("v1/list/{after}"))), 2).unwrap();
        let rest: Vec<Name> = rest.into_iter().map(|entry| entry.name).collect();
        let expected: Vec<Name> =
            below[at + 1..].iter().take(2).map(|below| name(&format!("v1/list/{below}"))).collect();
        assert_eq!(rest, expected, "after {after}");
    }
    // The names after one that was deleted meanwhile, and after one that precedes all.
    let first_behind = |after| depot.list(&name("v1/list"), Some(&name(after)), 1).unwrap()[0].name.clone();
    assert_eq!(first_behind("v1/list/a/1"), first_behind("v1/list/a/0"), "the name itself need not be there");
    assert_eq!(first_behind("v1/a"), name(&format!("v1/list/{}", below[0])));
    assert_eq!(depot.list(&name("v1/list"), Some(&name("v1/z")), 1).unwrap(), []);
}

/// More than a service lists at once.
fn a_listing_goes_on_where_it_ended(depot: &dyn Depot) {
    const OBJECTS: usize = 1_010;
    let folder = name("v1/many");
    let names: Vec<Name> = (0..OBJECTS).map(|number| folder.join(&format!("{number:04}")).unwrap()).collect();
    std::thread::scope(|scope| {
        for part in names.chunks(OBJECTS / 8 + 1) {
            scope.spawn(move || {
                part.iter().for_each(|name| assert_eq!(depot.create(name, b"x").unwrap(), Created::New))
            });
        }
    });
    let all: Vec<Name> = depot.list(&folder, None, 5_000).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(all, names);
    // The second size divides the number of objects: the last page is empty.
    for size in [400, OBJECTS / 2] {
        let mut paged: Vec<Entry> = Vec::new();
        loop {
            let page = depot.list(&folder, paged.last().map(|entry| &entry.name), size).unwrap();
            let is_last = page.len() < size;
            paged.extend(page);
            // What is behind it would not be read.
            if is_last {
                break;
            }
        }
        assert_eq!(paged.iter().map(|entry| &entry.name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    }
    depot.delete(&names).unwrap();
    assert_eq!(depot.list(&folder, None, 10).unwrap(), []);
}

fn deleted_objects_are_gone(depot: &dyn Depot, other: &dyn Depot) {
    let (one, two, absent) = (name("v1/gone/1"), name("v1/gone/2"), name("v1/gone/3"));
    depot.create(&one, b"1").unwrap();
    depot.create(&two, b"2").unwrap();
    other.delete(&[one.clone(), absent.clone(), two.clone()]).unwrap();
    assert_eq!((bytes(depot, &one), bytes(depot, &two)), (None, None));
    depot.delete(std::slice::from_ref(&one)).unwrap();
    depot.delete(&[]).unwrap();
    assert_eq!(depot.create(&one, b"again").unwrap(), Created::New);
}

fn bytes_come_back_as_they_were(depot: &dyn Depot, other: &dyn Depot) {
    let (empty, large) = (name("v1/bytes/empty"), name("v1/bytes/large"));
    depot.create(&empty, b"").unwrap();
    assert_eq!(bytes(other, &empty), Some(Vec::new()));
    let mut noise: Vec<u8> =
        (0..OBJECT_BYTES_MAX as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    depot.create(&large, &noise).unwrap();
    assert!(bytes(other, &large).as_ref() == Some(&noise), "a bundle is not what was shipped");
    noise.push(0);
    assert!(matches!(depot.create(&name("v1/bytes/more"), &noise), Err(DepotError::TooLarge { .. })));
    assert!(matches!(depot.swap(&name("v1/bytes/more"), None, &noise), Err(DepotError::TooLarge { .. })));
}
