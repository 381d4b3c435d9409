//! What is taken, what is refused, and that neither loses anything.

use bytes::Bytes;
use proptest::prelude::{Strategy, any};
use proptest::strategy::ValueTree;
use tokio_stream::StreamExt;
use weir_collector::api::play::play_within;
use weir_collector::api::reading::Reading;
use weir_collector::serve::Data;
use weir_collector::store::sqlite::Subject;
use weir_proto::seal::{self, Sealed, SigningKey};
use weir_proto::v1::refused::Why;
use weir_proto::v1::{self, event::Kind, to_agent, to_collector};
use weir_proto::{RunId, SessionId};

use crate::agent::{Agent, Recorded, event};
use crate::collector::Collector;

#[tokio::test]
async fn a_session_is_receipted_indexed_and_played() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    let mut recorded = agent.session(run);
    for (seq, sealed) in recorded.whole(3).iter().enumerate() {
        let receipt = shipping.receipt(sealed).await;
        let said = seal::verify_receipt(&agent.receipts, &receipt).unwrap();
        assert_eq!((said.session, said.seq, said.hash), (recorded.session, seq as u64, sealed.hash));
    }

    let mut query = collector.query().await;
    let runs = query.runs(collector.asked(v1::RunsRequest::default())).await.unwrap().into_inner().runs;
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].sessions, runs[0].exchanges, runs[0].open_sessions), (1, 3, 0));
    let told = runs[0].run.as_ref().unwrap();
    assert_eq!(told.labels["team"], "db");
    assert_eq!(told.principal.as_ref().unwrap().subject, "uid:1000");

    let asked = v1::SessionsRequest { run_id: run.to_field(), ..Default::default() };
    let sessions = query.sessions(collector.asked(asked)).await.unwrap().into_inner().sessions;
    let session = &sessions[0];
    assert_eq!((session.protocol.as_str(), session.target.as_str()), ("postgres", "orders"));
    assert_eq!((session.segments, session.exchanges, session.cause.as_str()), (3, 3, "client-end"));
    assert_eq!((session.request_bytes, session.response_bytes), (7, 9), "the closing totals count");

    let asked = v1::ExchangesRequest { run_id: run.to_field(), ..Default::default() };
    let exchanges = query.exchanges(collector.asked(asked)).await.unwrap().into_inner().exchanges;
    let texts: Vec<_> = exchanges
        .iter()
        .map(|e| e.finished.as_ref().unwrap().operation.as_ref().unwrap().text.clone())
        .collect();
    assert_eq!(texts, ["SELECT 1", "SELECT 2", "SELECT 3"]);
    assert_eq!(exchanges[0].duration_ns, 2);

    let asked = v1::PlayRequest { run_id: run.to_field(), ..Default::default() };
    let mut events = query.play(collector.asked(asked)).await.unwrap().into_inner();
    let mut played = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(Kind::Data(data)) = event.event.unwrap().kind {
            played.push(data.bytes);
        }
    }
    assert_eq!(played, ["row 1", "row 2", "row 3"]);
}

#[tokio::test]
async fn sessions_of_a_run_are_played_interleaved() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    let (mut one, mut two) = (agent.session(run), agent.session(run));
    let data = |at: u64, text: &'static str| {
        let direction = v1::Direction::Request as i32;
        event(
            at,
            Kind::Data(v1::Data {
                direction,
                bytes: Bytes::from_static(text.as_bytes()),
                ..Default::default()
            }),
        )
    };
    for (recorded, events) in [
        (&mut one, vec![data(5, "b"), data(30, "e")]),
        (&mut two, vec![data(2, "a"), data(10, "c"), data(20, "d")]),
    ] {
        let mut all = vec![recorded.opened_event()];
        all.extend(events);
        let sealed = recorded.seal(&all, false);
        shipping.receipt(&sealed).await;
    }
    let sealed = two.seal(&[data(40, "f")], false);
    shipping.receipt(&sealed).await;

    let asked = v1::PlayRequest { run_id: run.to_field(), ..Default::default() };
    let mut query = collector.query().await;
    let mut events = query.play(collector.asked(asked)).await.unwrap().into_inner();
    let mut played = String::new();
    while let Some(event) = events.message().await.unwrap() {
        if let Some(Kind::Data(data)) = event.event.unwrap().kind {
            played.push_str(std::str::from_utf8(&data.bytes).unwrap());
        }
    }
    assert_eq!(played, "abcdef");

    // The same when next to nothing may be held.
    for held_bytes_max in [0, 40] {
        let Data { keys, store } = Data::open(&collector.config.data).await.unwrap();
        let mut events = play_within(Reading { store, keys }, Subject::Run(run), None, held_bytes_max);
        let mut again = String::new();
        while let Some(event) = events.next().await {
            if let Some(Kind::Data(data)) = event.unwrap().event.unwrap().kind {
                again.push_str(std::str::from_utf8(&data.bytes).unwrap());
            }
        }
        assert_eq!(again, "abcdef");
    }
}

#[tokio::test]
async fn the_same_segment_is_acknowledged_again_and_another_is_not_taken() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let mut recorded = agent.session(RunId::generate());
    let mut twin = Recorded::new(&agent, recorded.session, recorded.run, recorded.number);
    let segments = recorded.whole(2);
    let first = shipping.receipt(&segments[0]).await;
    assert_eq!(shipping.receipt(&segments[0]).await, first, "the very same receipt");
    // Both in one batch: sent without waiting in between.
    for sealed in [&segments[1], &segments[1]] {
        shipping.send(to_collector::Message::Segment(sealed.to_message())).await;
    }
    let (one, two) = (shipping.answer().await.unwrap(), shipping.answer().await.unwrap());
    assert!(matches!(one, to_agent::Message::Receipt(_)));
    assert_eq!(one, two);

    let other = twin.seal(&[twin.opened_event(), event(1, Kind::Gap(v1::Gap::default()))], false);
    let refused = shipping.refused(&other).await;
    assert_eq!((refused.why(), refused.seq), (Why::Tamper, 0));
    assert_eq!(alerts(&collector, &agent).await, ["replaced-segment"]);
    shipping.refused(&other).await;
    assert_eq!(alerts(&collector, &agent).await.len(), 1, "the same attempt is one alert");
    assert_eq!(count_of(&collector, &recorded).await, 2);
}

#[tokio::test]
async fn segments_are_taken_in_sequence() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let mut recorded = agent.session(RunId::generate());
    let segments = recorded.whole(3);
    let refused = shipping.refused(&segments[2]).await;
    assert_eq!((refused.why(), refused.seq, refused.wanted), (Why::WantSeq, 2, 0));
    shipping.receipt(&segments[0]).await;
    let refused = shipping.refused(&segments[2]).await;
    assert_eq!((refused.why(), refused.wanted), (Why::WantSeq, 1));
    shipping.receipt(&segments[1]).await;
    shipping.receipt(&segments[2]).await;
    assert!(alerts(&collector, &agent).await.is_empty(), "disorder is not tampering");
}

#[tokio::test]
async fn forgeries_are_refused_and_told() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let mut recorded = agent.session(RunId::generate());
    let good = recorded.whole(2);

    let flipped = |at: usize| {
        let mut bytes = good[0].bytes.to_vec();
        let at = if at == usize::MAX { bytes.len() - 1 } else { at };
        bytes[at] ^= 1;
        Sealed { bytes: bytes.into(), ..good[0].clone() }
    };
    for changed in [flipped(143), flipped(usize::MAX)] {
        assert_eq!(shipping.refused(&changed).await.why(), Why::Tamper);
    }
    let mut stranger = Recorded::new(&agent, recorded.session, recorded.run, recorded.number);
    stranger_signs(&mut stranger);
    assert_eq!(shipping.refused(&stranger.whole(1)[0]).await.why(), Why::Tamper);
    assert_eq!(alerts(&collector, &agent).await, ["bad-signature"], "one attempt on (session, 0)");

    // The right segment is still welcome, and the chain stands.
    shipping.receipt(&good[0]).await;
    let mut fork = Recorded::new(&agent, recorded.session, recorded.run, recorded.number);
    let mut draft = fork.draft(&[event(1, Kind::Gap(v1::Gap::default()))], false);
    (draft.seq, draft.prev_hash) = (1, [7; 32]);
    let forked = fork.seal_as(draft, &[event(1, Kind::Gap(v1::Gap::default()))]);
    assert_eq!(shipping.refused(&forked).await.why(), Why::Tamper);
    shipping.receipt(&good[1]).await;
    let mut draft = recorded.draft(&[event(1, Kind::Gap(v1::Gap::default()))], false);
    draft.seq = 2;
    let after = recorded.seal_as(draft, &[event(1, Kind::Gap(v1::Gap::default()))]);
    assert_eq!(shipping.refused(&after).await.why(), Why::Tamper, "nothing comes after the last");
}

/// Signed by a key that is not the node's.
fn stranger_signs(recorded: &mut Recorded) {
    recorded.sign_with(SigningKey::from_bytes(&[9; 32]));
}

#[tokio::test]
async fn a_node_ships_only_what_is_its_own() {
    let collector = Collector::start().await;
    let (mut one, mut two) = (Agent::join(&collector, "a").await, Agent::join(&collector, "b").await);
    let (mut to_one, mut to_two) = (one.ship(&collector).await, two.ship(&collector).await);
    let run = RunId::generate();
    let mut recorded = one.session(run);
    let segments = recorded.whole(2);
    to_one.receipt(&segments[0]).await;

    assert_eq!(to_two.refused(&segments[1]).await.why(), Why::Tamper, "the other node's segment");
    let mut stolen = Recorded::new(&two, recorded.session, run, 1);
    assert_eq!(to_two.refused(&stolen.whole(1)[0]).await.why(), Why::Tamper, "the other node's session");
    let mut foreign_run = two.session(run);
    assert_eq!(to_two.refused(&foreign_run.whole(1)[0]).await.why(), Why::Tamper, "the other node's run");
    assert_eq!(alerts(&collector, &two).await, ["foreign-node", "foreign-session", "foreign-run"]);
    assert!(alerts(&collector, &one).await.is_empty());
    to_one.receipt(&segments[1]).await;
}

#[tokio::test]
async fn what_is_sealed_must_be_a_recording() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();

    let mut not_opened = agent.session(run);
    let sealed = not_opened.seal(&[event(0, Kind::Closed(v1::Closed::default()))], true);
    assert_eq!(shipping.refused(&sealed).await.why(), Why::Tamper);

    let mut lies = agent.session(run);
    let mut opened = lies.opened_event();
    if let Some(Kind::Opened(opened)) = &mut opened.kind {
        opened.session_id = SessionId::generate().to_field();
    }
    let sealed = lies.seal(&[opened], false);
    assert_eq!(shipping.refused(&sealed).await.why(), Why::Tamper);

    let mut nonsense = agent.session(run);
    let mut draft = nonsense.draft(&[], false);
    draft.events = 1;
    let sealed = nonsense.seal_plain(draft, b"\xff\xff\xff\xff\xff\xff");
    assert_eq!(shipping.refused(&sealed).await.why(), Why::Tamper);
    assert_eq!(alerts(&collector, &agent).await, ["malformed-events"; 3]);
}

#[tokio::test]
async fn numbers_that_no_session_reaches_are_refused_and_hurt_nobody() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    let huge = u64::MAX;
    let finished = |exchange| v1::Finished { exchange, rows: huge, ..Default::default() };
    let closed = v1::Closed { events: 2, request_bytes: huge, ..Default::default() };
    let gap = || event(3, Kind::Gap(v1::Gap::default()));
    for (events, last) in [
        (vec![event(1, Kind::Finished(finished(huge)))], false),
        (vec![event(1, Kind::Closed(closed))], true),
        (vec![event(u64::MAX - crate::agent::BOOT, Kind::Gap(v1::Gap::default()))], false),
        (vec![event(1, Kind::Closed(v1::Closed::default()))], false),
        (vec![event(1, Kind::Closed(v1::Closed::default())), gap()], true),
    ] {
        let mut recorded = agent.session(run);
        let sealed = recorded.seal(&[vec![recorded.opened_event()], events].concat(), last);
        assert_eq!(shipping.refused(&sealed).await.why(), Why::Tamper);
    }
    let mut miscounted = agent.session(run);
    let events = [miscounted.opened_event(), gap()];
    for said in [1, 3] {
        let draft = seal::Draft { events: said, ..miscounted.draft(&events, false) };
        let sealed =
            Recorded::new(&agent, miscounted.session, run, miscounted.number).seal_as(draft, &events);
        assert_eq!(shipping.refused(&sealed).await.why(), Why::Tamper);
    }
    assert_eq!(alerts(&collector, &agent).await, ["malformed-events"; 6]);

    // What the server said is kept as far as it makes sense.
    let sealed = miscounted.seal(&[events[0].clone(), event(1, Kind::Finished(finished(1)))], false);
    shipping.receipt(&sealed).await;
    let mut query = collector.query().await;
    let runs = query.runs(collector.asked(v1::RunsRequest::default())).await.unwrap().into_inner().runs;
    assert_eq!(runs[0].exchanges, 1);
}

#[tokio::test]
async fn what_the_index_cannot_take_is_refused_alone() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let run = RunId::generate();
    let (mut bad, mut good) = (agent.session(run), agent.session(run));
    let (bad_segments, good_segments) = (bad.whole(2), good.whole(2));
    collector
        .restart(async |data| {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("index.sqlite"));
            let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
            let id = hex::encode(bad.session.as_bytes());
            let refuse = format!(
                "CREATE TRIGGER refuse BEFORE INSERT ON segment WHEN NEW.session_id = x'{id}' \
                 BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            );
            sqlx::query(sqlx::AssertSqlSafe(refuse)).execute(&pool).await.unwrap();
            pool.close().await;
        })
        .await;
    let mut shipping = agent.ship(&collector).await;
    for sealed in [&bad_segments[0], &good_segments[0], &bad_segments[1], &good_segments[1]] {
        shipping.send(to_collector::Message::Segment(sealed.to_message())).await;
    }
    let mut receipts = 0;
    for _ in 0..4 {
        match shipping.answer().await.unwrap() {
            to_agent::Message::Receipt(receipt) => {
                assert_eq!(receipt.session_id, good.session.to_field());
                receipts += 1;
            }
            to_agent::Message::Refused(refused) => assert_eq!(refused.session_id, bad.session.to_field()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((receipts, count_of(&collector, &good).await, count_of(&collector, &bad).await), (2, 2, 0));
    assert_eq!(alerts(&collector, &agent).await, ["unstorable-segment"]);
}

#[tokio::test]
async fn a_damaged_row_stops_its_session_and_not_the_node() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let run = RunId::generate();
    let (mut damaged, mut good) = (agent.session(run), agent.session(run));
    let segments = damaged.whole(1);
    agent.ship(&collector).await.receipt(&segments[0]).await;
    collector
        .restart(async |data| {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("index.sqlite"));
            let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
            sqlx::query("DELETE FROM segment").execute(&pool).await.unwrap();
            pool.close().await;
        })
        .await;
    let mut shipping = agent.ship(&collector).await;
    assert_eq!(shipping.refused(&segments[0]).await.why(), Why::Tamper);
    shipping.receipt(&good.whole(1)[0]).await;
    assert_eq!(alerts(&collector, &agent).await, ["damaged-index"]);
}

#[tokio::test]
async fn without_its_wrap_a_segment_waits() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.connect(&collector).await.unwrap();
    let segments = agent.session(RunId::generate()).whole(1);
    assert_eq!(shipping.refused(&segments[0]).await.why(), Why::NoWrap);
    let wrap = agent.wrap(&shipping.welcome);
    shipping.send(to_collector::Message::Wrap(wrap)).await;
    shipping.receipt(&segments[0]).await;
}

#[tokio::test]
async fn an_unknown_format_is_refused_by_name() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let mut recorded = agent.session(RunId::generate());
    recorded.whole(1);
    let mut draft = recorded.draft(&[], false);
    (draft.seq, draft.events) = (77, 1);
    let sealed = recorded.seal_plain(draft, &[0; 64]);
    let mut bytes = sealed.bytes.to_vec();
    bytes[5] = 99;
    let refused = shipping.refused(&Sealed { bytes: bytes.into(), ..sealed }).await;
    assert_eq!((refused.why(), refused.seq), (Why::UnknownFormat, 77));
    assert_eq!(refused.session_id, recorded.session.to_field());
    assert!(alerts(&collector, &agent).await.is_empty());
}

#[tokio::test]
async fn below_the_floor_new_segments_wait_with_their_agent() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let segments = agent.session(RunId::generate()).whole(2);
    let mut shipping = agent.ship(&collector).await;
    let receipt = shipping.receipt(&segments[0]).await;
    drop(shipping);
    collector.config.free_space_floor = u64::MAX;
    collector.config.free_space_warn = u64::MAX;
    collector.restart(async |_| {}).await;
    let mut shipping = agent.ship(&collector).await;
    assert_eq!(shipping.receipt(&segments[0]).await, receipt, "what is held is acknowledged all the same");
    assert_eq!(shipping.refused(&segments[1]).await.why(), Why::Full);
    drop(shipping);
    collector.config.free_space_floor = 0;
    collector.restart(async |_| {}).await;
    agent.ship(&collector).await.receipt(&segments[1]).await;
}

#[tokio::test]
async fn the_node_log_grows_once_and_a_second_version_is_told() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    assert_eq!((shipping.welcome.node_entries, shipping.welcome.next_number), (0, 1));
    let before = agent.log.clone();
    let first = agent.entry(v1::NodeEntry::default());
    let second = agent.entry(v1::NodeEntry::default());
    assert_eq!(shipping.entries(vec![second.clone()]).await.unwrap().entries, 0, "the first is missing");
    assert_eq!(shipping.entries(vec![first.clone(), second.clone()]).await.unwrap().entries, 2);
    let receipt = shipping.entries(vec![first, second]).await.unwrap();
    assert_eq!((receipt.entries, receipt.diverged, &receipt.head[..]), (2, false, &agent.log.head[..]));

    // A disk from before the two: another entry 0.
    let head = agent.log.clone();
    agent.log = before;
    let other = agent.entry(Agent::opened(&[]));
    let other = {
        let _ = other;
        agent.log = seal::NodeChain::start(agent.node);
        agent.entry(v1::NodeEntry { boot_id: "another boot".into(), ..Default::default() })
    };
    let receipt = shipping.entries(vec![other]).await.unwrap();
    assert_eq!((receipt.entries, receipt.diverged), (2, true));
    assert_eq!(alerts(&collector, &agent).await, ["node-log-diverged"]);
    // It goes on from the collector's head and says so.
    agent.log = head;
    let mark = v1::node_entry::Mark::RolledBack(v1::RolledBack {
        own_index: 1,
        own_next_number: 1,
        ..Default::default()
    });
    let entry = agent.entry(v1::NodeEntry { mark: Some(mark), ..Default::default() });
    let receipt = shipping.entries(vec![entry]).await.unwrap();
    assert_eq!((receipt.entries, receipt.diverged), (3, false));
    assert_eq!(alerts(&collector, &agent).await, ["node-log-diverged", "rolled-back"]);
}

#[tokio::test]
async fn a_forged_node_entry_ends_the_stream() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    agent.signer = SigningKey::from_bytes(&[9; 32]);
    let entry = agent.entry(v1::NodeEntry::default());
    assert_eq!(shipping.entries(vec![entry]).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    assert_eq!(alerts(&collector, &agent).await, ["bad-node-entry"]);
}

#[tokio::test]
async fn nonsense_on_the_stream_harms_nobody() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..64 {
        let bytes: Vec<u8> =
            proptest::collection::vec(any::<u8>(), 0..400).new_tree(&mut runner).unwrap().current();
        let choice = bytes.len() % 4;
        let field = Bytes::from(bytes);
        let message = match choice {
            0 => to_collector::Message::Segment(v1::SealedSegment { bytes: field.clone(), signature: field }),
            1 => to_collector::Message::Node(v1::NodeEntries { signed: vec![field], ..Default::default() }),
            2 => to_collector::Message::Wrap(v1::Wrap {
                generation_id: field.clone(),
                key_id: field.clone(),
                enc: field.clone(),
                ciphertext: field,
                node_id: agent.node.to_field(),
            }),
            _ => to_collector::Message::Hello(v1::Hello { node_id: field, ..Default::default() }),
        };
        let mut shipping = agent.ship(&collector).await;
        shipping.send(message).await;
        match shipping.answer().await {
            Ok(to_agent::Message::Refused(refused)) => assert_eq!(refused.why(), Why::Tamper),
            Ok(other) => panic!("nonsense was answered with {other:?}"),
            Err(status) => assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}"),
        }
    }
    let sealed = agent.session(RunId::generate()).whole(1);
    agent.ship(&collector).await.receipt(&sealed[0]).await;
}

#[tokio::test]
async fn a_message_beyond_the_bound_is_not_read() {
    let collector = Collector::start().await;
    let agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let bytes = Bytes::from(vec![0; 8 << 20]);
    shipping.send(to_collector::Message::Segment(v1::SealedSegment { bytes, signature: Bytes::new() })).await;
    assert_eq!(shipping.answer().await.unwrap_err().code(), tonic::Code::OutOfRange);
}

#[tokio::test]
async fn an_agent_that_reads_no_answers_is_not_read_either() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let sealed = agent.session(RunId::generate()).whole(1).remove(0);
    let shipping = agent.ship(&collector).await;
    // Far more than answers, windows and channels can hold: sending must stall, not the collector grow.
    let message = v1::ToCollector { message: Some(to_collector::Message::Segment(sealed.to_message())) };
    let flood = async {
        for _ in 0..2_000_000 {
            shipping.to.send(message.clone()).await.unwrap();
        }
    };
    let stalled = tokio::time::timeout(std::time::Duration::from_secs(5), flood).await.is_err();
    assert!(stalled, "2 million unread answers were taken");
    // Others are served meanwhile.
    let mut other = Agent::join(&collector, "db-2").await;
    let sealed = other.session(RunId::generate()).whole(1);
    other.ship(&collector).await.receipt(&sealed[0]).await;
}

async fn alerts(collector: &Collector, agent: &Agent) -> Vec<String> {
    let index = collector.issuer().await.index;
    index.alert_list(&agent.node, None).await.unwrap().into_iter().map(|alert| alert.kind).collect()
}

async fn count_of(collector: &Collector, recorded: &Recorded) -> u64 {
    let index = collector.issuer().await.index;
    index.segment_list(&recorded.session, 0, 1000).await.unwrap().len() as u64
}
