//! The pump between real sockets, with a judge that allows, denies, or holds until the test says so.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use weir_proto::v1;
use weir_protocols::operation::Opacity;
use weir_protocols::{GrantKey, Permit};

use super::super::leg::READ_BYTES_MAX;
use super::*;
use crate::policy::Capture;
use crate::recording::{Mode, Moment, Recorder, Recording, RecordingConfig};

/// A pumped connection seen from outside: the application's socket and the server's.
struct Scene {
    application: TcpStream,
    server: TcpStream,
    running: Running,
}

/// A pump at work between two sockets.
struct Running {
    held: mpsc::UnboundedReceiver<(ExchangeId, oneshot::Sender<Verdict>)>,
    pumped: tokio::task::JoinHandle<Ending>,
    drained: CancellationToken,
    recording: Recording,
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
        moment: Moment::now,
    };
    let (recorder, recording) = Recording::start(config).await.unwrap();
    (recorder, recording, dir)
}

impl Scene {
    /// An opaque session; `hold` makes its judge wait for the test.
    async fn set(rules: &str, hold: bool) -> Self {
        let (application, client) = pair().await;
        // Small, so that what the application does not read soon waits in the pump.
        socket2::SockRef::from(&application).set_recv_buffer_size(4096).unwrap();
        socket2::SockRef::from(&client).set_send_buffer_size(4096).unwrap();
        let (upstream, server) = pair().await;
        let running = Running::start(client, upstream, rules, hold).await;
        Self { application, server, running }
    }
}

impl Running {
    async fn start(client: TcpStream, upstream: TcpStream, rules: &str, hold: bool) -> Self {
        let (recorder, recording, dir) = recorder().await;
        let mut judge = Judge::for_tests(rules);
        let (holding, held) = mpsc::unbounded_channel();
        judge.hold = hold.then_some(holding);
        let (_, standing) = judge.connect("127.0.0.1:9".parse().unwrap()).unwrap();
        let drained = CancellationToken::new();
        let drained_of_pump = drained.clone();
        let pumped = tokio::spawn(async move {
            let record = recorder.open(v1::Opened::default()).await.unwrap();
            let mut tape = Tape::new(record, Capture::Full);
            let plan = MaskPlan::standard();
            let start = Start { first_exchange: ExchangeId::FIRST, plan: plan.clone() };
            let conversation = Kind::Opaque(Opacity::Unrecognized).start(start);
            let terms = Terms { judge: &judge, standing: &standing, plan: &plan, drained: &drained_of_pump };
            let ending = Pump::new(client, upstream, conversation, &mut tape, terms).run().await.unwrap();
            tape.close(ending.word(), None).await.unwrap();
            ending
        });
        Self { held, pumped, drained, recording, _dir: dir }
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
    assert_eq!(scene.running.pumped.await.unwrap(), Ending::Ended(Side::Client));
}

#[tokio::test]
async fn a_durable_target_forwards_what_is_on_the_disk() {
    let mut scene = Scene::set("[[target]]\nname = 'd'\ndurable = true", false).await;
    scene.application.write_all(b"question").await.unwrap();
    let mut question = [0; 8];
    scene.server.read_exact(&mut question).await.unwrap();
    assert_eq!(&question, b"question");
    assert!(scene.running.recording.is_synced(), "nothing that was sent is only in memory");
}

#[tokio::test]
async fn a_held_request_leaves_only_with_its_permit() {
    let mut scene = Scene::set("", true).await;
    scene.application.write_all(b"held").await.unwrap();
    let (exchange, answer) = scene.running.held.recv().await.unwrap();
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
    let (exchange, answer) = scene.running.held.recv().await.unwrap();
    reset(scene.application);
    assert_eq!(scene.running.pumped.await.unwrap(), Ending::Aborted(Cause::Reset(Side::Client)));
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
    assert_eq!(scene.running.pumped.await.unwrap(), Ending::Aborted(Cause::Denied));
    let mut rest = Vec::new();
    assert!(scene.server.read_to_end(&mut rest).await.is_err());
    assert!(rest.is_empty());
    assert!(scene.application.read_to_end(&mut rest).await.is_err(), "the client is told by a reset");
}

#[tokio::test]
async fn the_last_words_of_an_upstream_that_resets_are_delivered() {
    let mut scene = Scene::set("", false).await;
    let words = vec![b'w'; 48 * 1024];
    scene.server.write_all(&words).await.unwrap();
    // All of it has left the server, whose reset would otherwise throw it away.
    while unsent_bytes(&scene.server) != Some(0) {
        tokio::time::sleep(UNSENT_INTERVAL).await;
    }
    reset(scene.server);
    let mut heard = Vec::new();
    let ended = scene.application.read_to_end(&mut heard).await;
    assert!(ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    assert_eq!(heard.len(), words.len());
    assert_eq!(scene.running.pumped.await.unwrap(), Ending::Aborted(Cause::Reset(Side::Upstream)));
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

#[tokio::test]
async fn small_reads_that_wait_do_not_each_hold_a_buffer() {
    let (mut sender, receiver) = pair().await;
    sender.set_nodelay(true).unwrap();
    let mut leg = Leg::new(receiver);
    let mut kept = Vec::new();
    for _ in 0..1000 {
        sender.write_all(b"x").await.unwrap();
        leg.stream.readable().await.unwrap();
        kept.push(poll_fn(|context| leg.read(context)).await.unwrap());
    }
    let allocations: std::collections::BTreeSet<_> =
        kept.iter().map(|slice| slice.as_ptr() as usize / READ_BYTES_MAX).collect();
    assert!(allocations.len() <= 8, "{} allocations for a thousand bytes", allocations.len());
}

#[tokio::test]
async fn a_session_that_never_waits_still_drains() {
    let mut scene = Scene::set("", false).await;
    let writer = tokio::spawn(async move {
        let block = vec![b'x'; 64 * 1024];
        while scene.server.write_all(&block).await.is_ok() {}
    });
    let reader = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while scene.application.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    });
    scene.running.drained.cancel();
    assert_eq!(scene.running.pumped.await.unwrap(), Ending::Drained);
    writer.await.unwrap();
    reader.await.unwrap();
}

/// The same through the kernel: a governed process, redirected, held, and gone before the verdict.
#[cfg(feature = "kernel-tests")]
#[tokio::test(flavor = "multi_thread")]
async fn a_governed_process_that_resets_while_it_is_held_is_withdrawn() {
    use super::super::upstream::dial;
    use crate::redirection::Redirection;
    use crate::redirection::kernel_tests::ground::{Ground, listen};

    let ground = Ground::new();
    let redirection = Redirection::attach(&ground.scope).unwrap();
    let proxy = listen("127.0.0.1:0");
    redirection.serve(&proxy, None).unwrap();
    proxy.set_nonblocking(true).unwrap();
    let proxy = TcpListener::from_std(proxy).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = server.local_addr().unwrap();

    let mut process = ground.client(&ground.governed, &["held", "127.0.0.1", &origin.port().to_string()]);
    process.step();
    let (client, _) = proxy.accept().await.unwrap();
    let flow = redirection.flow_of(&client).unwrap().unwrap();
    assert_eq!(flow.origin, origin);
    let upstream = dial(&flow).await.unwrap();
    let (mut server, _) = server.accept().await.unwrap();
    let mut running = Running::start(client, upstream, "", true).await;
    let (exchange, answer) = running.held.recv().await.unwrap();
    assert_eq!(process.go(), "reset");
    assert_eq!(running.pumped.await.unwrap(), Ending::Aborted(Cause::Reset(Side::Client)));
    assert!(answer.send(Verdict::Allow(permit(exchange))).is_err(), "nobody waits for this verdict any more");
    let mut rest = Vec::new();
    assert!(server.read_to_end(&mut rest).await.is_err(), "the server is told by a reset");
    assert!(rest.is_empty(), "nothing was forwarded");
    redirection.detach().unwrap();
}
