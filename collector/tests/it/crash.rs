//! The real program, killed with SIGKILL again and again while an agent ships: whatever was receipted is there, once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio_util::sync::CancellationToken;
use tonic::transport::Identity;
use weir_collector::ingest::TextFollower;
use weir_collector::metrics::Metrics;
use weir_collector::store::Store;
use weir_proto::credential::Credential;
use weir_proto::seal::{Hash, Sealed};
use weir_proto::v1::ingest_client::IngestClient;
use weir_proto::v1::{self, to_agent, to_collector};
use weir_proto::{RunId, SessionId};

use crate::agent::{Agent, Joining};
use crate::collector::channel;
use crate::text::found;

const KILLS: usize = 12;
const SESSIONS: usize = 40;
const SEGMENTS: u64 = 3;

/// A child that does not outlive the test.
struct Program {
    child: Child,
    address: String,
    credential: Option<String>,
}

impl Program {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir-collector"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut credential = None;
        let address = loop {
            let line = lines.next().expect("it says where it listens").unwrap();
            if line.starts_with("weiradmin1-") {
                credential = Some(line);
            } else if let Some(address) = line.strip_prefix("listening on ") {
                break address.to_owned();
            }
        };
        Self { child, address, credential }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn every_receipted_segment_survives_sigkill_exactly_once() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut program = Program::start(&data);
    let admin: Credential = program.credential.take().unwrap().parse().unwrap();
    let mut agent = join(&admin).await;
    let run = RunId::generate();
    let sealed: Vec<Vec<Sealed>> = (0..SESSIONS).map(|_| agent.session(run).whole(SEGMENTS)).collect();
    let mut receipted: BTreeMap<(SessionId, u64), Hash> = BTreeMap::new();

    for kill in 0..KILLS {
        // Everything is offered every time: a spool that lost all its receipts.
        let shipped = ship(&program.address, &agent, &sealed, &mut receipted);
        // Another moment each time: in the handshake, between PUT and COMMIT, in the middle of the batches.
        let moment = std::time::Duration::from_millis(15 * kill as u64);
        let _ = tokio::time::timeout(moment, shipped).await;
        program.kill();
        program = Program::start(&data);
        assert!(program.credential.is_none());
    }
    ship(&program.address, &agent, &sealed, &mut receipted).await;
    assert_eq!(receipted.len(), SESSIONS * SEGMENTS as usize, "in the end all is receipted");
    program.kill();

    let store = Store::open(&data).await.unwrap();
    for segments in &sealed {
        let session = weir_proto::seal::Segment::parse(segments[0].bytes.clone()).unwrap().session();
        let stored = store.index.segment_list(&session, 0, 100).await.unwrap();
        assert_eq!(stored.len() as u64, SEGMENTS);
        for (stored, sealed) in stored.iter().zip(segments) {
            assert_eq!(receipted[&(session, stored.seq)], sealed.hash);
            assert_eq!(
                store.bundles.part(&stored.bundle, stored.at, stored.len).await.unwrap(),
                sealed.bytes
            );
        }
    }
    // Killed between commits and full text, which goes on where it was: every text is there, once.
    let keys = weir_collector::keys::Keys::open(&data.join("keys")).unwrap();
    let mut follower = TextFollower::new(store.clone(), keys.into(), Metrics::default());
    follower.catch_up(&CancellationToken::new()).await.unwrap();
    assert_eq!(found(&data, "select").await.len(), SESSIONS * SEGMENTS as usize);
    let summary = store.index.run_summary(&run).await.unwrap().unwrap();
    assert_eq!(summary.exchanges, SESSIONS as u64 * SEGMENTS, "counted once, however often it was offered");
}

/// Offers everything in order until the stream breaks or all is answered.
async fn ship(
    address: &str,
    agent: &Agent,
    sealed: &[Vec<Sealed>],
    receipted: &mut BTreeMap<(SessionId, u64), Hash>,
) -> Option<()> {
    let identity: Identity = agent.identity.clone();
    let endpoint = crate::collector::endpoint(address, &agent.ca_der, Some(identity));
    let channel = endpoint.connect().await.ok()?;
    let (to, messages) = tokio::sync::mpsc::channel(1024);
    let hello =
        v1::Hello { format_min: 1, format_max: 1, node_id: agent.node.to_field(), ..Default::default() };
    let say = |message| v1::ToCollector { message: Some(message) };
    to.send(say(to_collector::Message::Hello(hello))).await.ok()?;
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut answers = IngestClient::new(channel).ship(stream).await.ok()?.into_inner();
    let Some(to_agent::Message::Welcome(welcome)) = answers.message().await.ok()??.message else {
        return None;
    };
    to.send(say(to_collector::Message::Wrap(agent.wrap(&welcome)))).await.ok()?;
    let count = sealed.iter().map(Vec::len).sum::<usize>();
    for segment in sealed.iter().flatten() {
        to.send(say(to_collector::Message::Segment(segment.to_message()))).await.ok()?;
    }
    for _ in 0..count {
        match answers.message().await.ok()??.message {
            Some(to_agent::Message::Receipt(receipt)) => {
                let said = weir_proto::seal::verify_receipt(&agent.receipts, &receipt).unwrap();
                let before = receipted.insert((said.session, said.seq), said.hash);
                assert!(before.is_none_or(|before| before == said.hash));
            }
            other => panic!("a segment in order was answered with {other:?}"),
        }
    }
    Some(())
}

async fn join(admin: &Credential) -> Agent {
    let mut client = v1::admin_client::AdminClient::new(channel(&admin.address, &admin.ca_der, None).await);
    let asked = v1::CreateJoinTokenRequest { uses: 1, valid_seconds: 60, name_pattern: "*".into() };
    let asked = crate::collector::asked_with(&admin.secret, asked);
    let token = client.create_join_token(asked).await.unwrap().into_inner().token.parse().unwrap();
    let joining = Joining::new(&token, "db-1");
    let answer = joining.send(&token).await.unwrap();
    Agent::of(joining, answer)
}
