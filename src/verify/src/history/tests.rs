//! Histories survive a round trip through a file, and malformed files are rejected with the line's number.

use super::*;

fn example() -> History {
    let id = Uid(Uuid::from_u128(7));
    let seen = Seen {
        message: 9,
        seq: 1,
        sender: Some(0),
        body: Some(Digest::of("hello")),
        id: Some(id),
        time_ms: 5,
        status: 1,
    };
    let gone = Seen { body: None, id: None, sender: None, status: 0, ..seen };
    let page = Page {
        revision: u64::MAX,
        conversation: 9,
        last_seq: 1,
        total: 1,
        unread: 0,
        has_more: false,
        own: Marks::default(),
        other: Marks { delivered: 1, read: 1 },
        messages: vec![seen, gone],
    };
    let stored = Stored { message: 9, conversation: 9, seq: 1, repeated: false, time_ms: 5 };
    let body = Digest::of("hello");
    let read = |freshness, last, outcome| Action::Read { with: 0, before: 0, limit: 3, freshness, last, outcome };
    let event = |revision, event| Happening { revision, conversation: 9, event };
    let events = vec![
        event(9, Event::Message(gone)),
        event(10, Event::Receipt { member: Some(1), marks: Marks { delivered: 1, read: 0 } }),
        event(11, Event::Deletion { seqs: vec![1, 2], for_everyone: true }),
    ];
    let actions = vec![
        Action::Send { id, to: 1, body, outcome: Outcome::Ok(stored) },
        Action::Send { id, to: 1, body, outcome: Outcome::Refused },
        Action::Send { id, to: 1, body, outcome: Outcome::Unknown },
        read(Freshness::Linearizable, true, Outcome::Ok(page)),
        read(Freshness::AtLeast(4), false, Outcome::Refused),
        read(Freshness::Local, false, Outcome::Unknown),
        Action::MarkRead { with: 0, up_to: 0, outcome: Outcome::Ok(Marked { read: 1, revision: 10 }) },
        Action::Deliver { with: 0, up_to: 1, outcome: Outcome::Ok(12) },
        Action::Delete {
            messages: vec![9],
            for_everyone: true,
            outcome: Outcome::Ok(Deleted { deleted: 1, ignored: 0, revision: 11 }),
        },
        Action::Subscribe { stream: 0, after: 3, events, cursor: 13 },
    ];
    let node = |at: usize| (at > 2).then_some(0);
    let record = |(at, action)| Record { client: 1, account: 1, node: node(at), began_us: 4, ended_us: 5, action };
    let header = Header {
        format: FORMAT,
        seed: 3,
        clients: 2,
        seconds: 1.5,
        accounts: vec!["a".into(), "b".into()],
        nodes: vec!["n:1".into()],
        load_ended_us: 1_500_000,
    };
    History { header, records: actions.into_iter().enumerate().map(record).collect() }
}

fn written(history: &History) -> String {
    let mut bytes = Vec::new();
    history.write(&mut bytes).expect("memory");
    String::from_utf8(bytes).expect("JSON is text")
}

#[test]
fn a_file_brings_back_what_was_recorded() {
    let history = example();
    let text = written(&history);
    assert_eq!(text.lines().count(), 1 + history.records.len());
    assert_eq!(History::read(text.as_bytes()).expect("as written"), history);
    assert_eq!(Digest::of("hello").to_string(), "2cf24dba5fb0a30e", "the beginning of the well-known SHA-256");
}

#[test]
fn the_format_is_the_documented_one() {
    let text = written(&example());
    let line = text.lines().nth(1).expect("a record");
    let value: serde_json::Value = serde_json::from_str(line).expect("one JSON value");
    assert_eq!(value["send"]["id"], "00000000-0000-0000-0000-000000000007");
    assert_eq!(value["send"]["outcome"]["ok"]["message"], 9);
    assert_eq!((&value["began_us"], &value["ended_us"]), (&4.into(), &5.into()));
    assert!(value.get("node").is_none(), "the library chose");
    assert!(text.lines().nth(2).expect("a record").contains(r#""outcome":"refused""#));
}

#[test]
fn what_is_no_history_is_refused_by_its_line() {
    let good = written(&example());
    let (header, rest) = good.split_once('\n').expect("lines");
    let record = rest.lines().next().expect("a record");
    for (bad, line) in [
        (String::new(), "line 1"),
        ("{}".to_owned(), "line 1"),
        (header.replace("\"format\":1", "\"format\":2"), "line 1: format 2"),
        (format!("{header}\n{record}\n{{\"client\":1}}"), "line 3"),
        (format!("{header}\n{}", record.replace("\"account\":1", "\"account\":2")), "line 2: an account"),
        (format!("{header}\n{}", record.replace("\"to\":1", "\"to\":2")), "line 2: an account"),
        (format!("{header}\n{}", record.replace("\"began_us\":4", "\"began_us\":6")), "line 2: it ended"),
        (format!("{header}\n{}", record.replace("\"began_us\"", "\"node\":1,\"began_us\"")), "line 2: a node"),
    ] {
        let error = History::read(bad.as_bytes()).expect_err(&bad);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().starts_with(line), "{error} for {bad}");
    }
}
