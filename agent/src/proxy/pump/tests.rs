//! The pump between real sockets, with a judge that allows, denies, or holds until the test says so.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use weir_proto::v1;
use weir_protocols::operation::Opacity;
use weir_protocols::{GrantKey, Permit};

use super::*;
use crate::policy::{Capture, Rules};
use crate::recording::{Mode, Recorder, Recording, RecordingConfig};

/// A pumped connection seen from outside: the application's socket and the server's.
struct Scene {
    application: TcpStream,
    server: TcpStream,
    held: mpsc::UnboundedReceiver<(ExchangeId, oneshot::Sender<Verdict>)>,
    pumped: tokio::task::JoinHandle<Ending>,
    _recording: Recording,
    _dir: tempfile::TempDir,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (connected, listener.accept().await.unwrap().0)
}

async fn recorder() -> (Recorder, Recording, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = RecordingConfig {
        state_dir: dir.path().join("state"),
        mode: Mode::Local,
        journal_bytes: 16 << 20,
        spool_quota_bytes: 64 << 20,
    };
    let (recorder, recording) = Recording::start(config).await.unwrap();
    (recorder, recording, dir)
}

impl Scene {
    /// An opaque session; `hold` makes its judge wait for the test.
    async fn set(rules: &str, hold: bool) -> Self {
        let (application, client) = pair().await;
        let (upstream, server) = pair().await;
        let (recorder, recording, dir) = recorder().await;
        let mut judge = Judge::new(GrantKey::for_tests(), Arc::new(toml::from_str::<Rules>(rules).unwrap()));
        let (holding, held) = mpsc::unbounded_channel();
        judge.hold = hold.then_some(holding);
        let (_, standing) = judge.connect("127.0.0.1:9".parse().unwrap()).unwrap();
        let pumped = tokio::spawn(async move {
            let record = recorder.open(v1::Opened::default()).await.unwrap();
            let mut tape = Tape::new(record, Capture::Full);
            let plan = MaskPlan::standard();
            let start = Start { first_exchange: ExchangeId::FIRST, plan: plan.clone() };
            let conversation = Kind::Opaque(Opacity::Unrecognized).start(start);
            let drained = CancellationToken::new();
            let terms = Terms { judge: &judge, standing: &standing, plan: &plan, drained: &drained };
            let ending = Pump::new(client, upstream, conversation, &mut tape, terms).run().await.unwrap();
            tape.close(ending.word(), None).await.unwrap();
            ending
        });
        Self { application, server, held, pumped, _recording: recording, _dir: dir }
    }
}

fn permit(exchange: ExchangeId) -> Permit {
    GrantKey::for_tests().permit(exchange, "test".into())
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_side_may_end_first() {
    let mut scene = Scene::set("", false).await;
    scene.application.write_all(b"question").await.unwrap();
    scene.application.shutdown().await.unwrap();
    let mut question = Vec::new();
    scene.server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question", "the server saw the client's end");
    scene.server.write_all(b"a late answer").await.unwrap();
    scene.server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    scene.application.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"a late answer");
    assert_eq!(scene.pumped.await.unwrap(), Ending::Ended(Side::Client));
}

#[tokio::test]
async fn a_held_request_leaves_only_with_its_permit() {
    let mut scene = Scene::set("", true).await;
    scene.application.write_all(b"held").await.unwrap();
    let (exchange, answer) = scene.held.recv().await.unwrap();
    let mut byte = [0];
    assert!(scene.server.try_read(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    answer.send(Verdict::Allow(permit(exchange))).unwrap();
    let mut seen = [0; 4];
    scene.server.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"held");
}

#[tokio::test]
async fn a_held_client_that_resets_is_withdrawn() {
    let mut scene = Scene::set("", true).await;
    scene.application.write_all(b"never to arrive").await.unwrap();
    let (exchange, answer) = scene.held.recv().await.unwrap();
    reset(scene.application);
    assert_eq!(scene.pumped.await.unwrap(), Ending::Aborted(Cause::Reset(Side::Client)));
    assert!(answer.send(Verdict::Allow(permit(exchange))).is_err(), "nobody waits for this verdict any more");
    let mut rest = Vec::new();
    let ended = scene.server.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "nothing was forwarded");
    assert!(
        ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset),
        "the reset was passed on"
    );
}

#[tokio::test]
async fn what_a_guarded_target_cannot_read_never_arrives() {
    let mut scene = Scene::set("[[target]]\nname = 'g'\naccess = 'guarded'", false).await;
    scene.application.write_all(b"unreadable").await.unwrap();
    assert_eq!(scene.pumped.await.unwrap(), Ending::Aborted(Cause::Denied));
    let mut rest = Vec::new();
    assert!(scene.server.read_to_end(&mut rest).await.is_err());
    assert!(rest.is_empty());
    assert!(scene.application.read_to_end(&mut rest).await.is_err(), "the client is told by a reset");
}

#[tokio::test]
async fn the_last_words_of_an_upstream_that_resets_are_delivered() {
    let mut scene = Scene::set("", false).await;
    scene.server.write_all(b"goodbye").await.unwrap();
    let mut words = [0; 7];
    scene.application.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"goodbye");
    reset(scene.server);
    assert_eq!(scene.pumped.await.unwrap(), Ending::Aborted(Cause::Reset(Side::Upstream)));
    let mut rest = Vec::new();
    let ended = scene.application.read_to_end(&mut rest).await;
    assert!(ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_server_that_does_not_read_stops_the_client() {
    let mut scene = Scene::set("", false).await;
    let block = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    // Bounded: the sockets' buffers and ours take less than this.
    const TAKEN_MAX: usize = 64 << 20;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), scene.application.write(&block)).await
    {
        sent += written.unwrap();
        assert!(sent < TAKEN_MAX, "the pump takes what it cannot deliver");
    }
    let mut received = 0;
    let mut buffer = vec![0; 64 * 1024];
    while received < sent {
        received += scene.server.read(&mut buffer).await.unwrap();
    }
    assert_eq!(received, sent, "and nothing is lost");
}
