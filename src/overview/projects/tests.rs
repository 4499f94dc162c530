use super::*;
use crate::message::{Body, Encoding, HeaderSet, Lane, Message, MessageType, Request};
use crate::store::{Keys, Limits, OpenMode, WhenFull, open_with};

const LIMITS: Limits = Limits { size_max: 1 << 30, disk_reserve: 0, when_full: WhenFull::Refuse };

fn server() -> Server {
    Server::new("http://127.0.0.1:9/api")
}

fn message(server: &Server, workspace: &str, project: Option<&str>) -> Message {
    let body = Body::new("{}".to_owned(), Encoding::Identity);
    let (method, path, headers) = ("POST".into(), "v1/private/traces".into(), HeaderSet::default());
    Message {
        lane: Lane { server: Some(server.clone()), workspace: Some(workspace.into()), credential: None },
        message_type: MessageType::CreateTrace,
        request: Request { method, path, headers, body },
        touches: Vec::new(),
        items: 1,
        project: project.map(str::to_owned),
        accepted_at_ms: 1,
    }
}

fn store(folder: &tempfile::TempDir) -> std::sync::Arc<dyn Store> {
    let path = folder.path().join("store.db");
    open_with(&path, OpenMode::CreateIfMissing, LIMITS, &Keys::default()).expect("a new store")
}

#[test]
fn messages_are_counted_by_workspace_and_project_and_other_servers_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(&folder);
    let mut messages = Vec::new();
    for number in 0..40_u64 {
        let project = format!("project-{number}");
        messages.extend((0..=number).map(|_| message(&server(), "team", Some(&project))));
    }
    messages.push(message(&server(), "team", None));
    messages.push(message(&server(), "other", Some("project-39")));
    messages.push(message(&Server::new("http://127.0.0.1:8/api"), "team", Some("project-39")));
    store.register(&messages).expect("they can be stored");
    let own = messages.len() as u64 - 1;

    let found = count(store.as_ref(), &server(), COUNTED_MAX).expect("they can be counted");
    assert_eq!((found.counted, found.total, found.is_partial), (own, 42, false));
    let first = &found.list[0];
    assert_eq!((first.project.as_deref(), first.waiting, first.body_bytes), (Some("project-39"), 40, 80));
    assert_eq!(found.list.len(), LISTED_MAX);
    assert_eq!(found.others_waiting, own - found.list.iter().map(|project| project.waiting).sum::<u64>());

    let some = count(store.as_ref(), &server(), 100).expect("they can be counted");
    assert_eq!((some.counted, some.is_partial), (100, true));
    let all = count(store.as_ref(), &server(), own).expect("they can be counted");
    assert_eq!((all.counted, all.is_partial), (own, false));
}

#[test]
fn many_messages_are_not_counted_while_somebody_waits_for_the_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store(&folder);
    let census = ProjectCensus::default();
    census.count_if_due(store.as_ref(), &server(), (1, 0)).expect("nothing to do");
    assert!(census.lock().at.is_none(), "it was counted although nobody looks");
    let messages: Vec<Message> = (0..=AT_ONCE_MAX).map(|_| message(&server(), "team", Some("p"))).collect();
    store.register(&messages).expect("they can be stored");
    let stored = (AT_ONCE_MAX + 1, 0);
    assert_eq!(census.ask(store.as_ref(), &server(), stored).expect("no count").counted, 0);
    census.count_if_due(store.as_ref(), &server(), stored).expect("it can be counted");
    assert_eq!(census.ask(store.as_ref(), &server(), stored).expect("known").counted, AT_ONCE_MAX + 1);
    assert_eq!(census.ask(store.as_ref(), &server(), (0, 0)).expect("nothing").list.len(), 0);
}
