//! The story of one connection, top to bottom: whose is it, may it connect, dial, pump, close.

use std::time::Duration;

use tokio::net::TcpStream;
use weir_proto::v1;
use weir_protocols::{ExchangeId, Permit, Verdict};

use super::pump::{Pump, Terms};
use super::refuse::refuse;
use super::tape::{Tape, TapeError};
use super::upstream::{DialError, dial};
use crate::node::Node;
use crate::policy::judge::Standing;
use crate::redirection::Flow;
use crate::selection::{Chosen, Process, Run};

/// Serves one accepted connection to its end. Whatever happens is recorded here or counted.
pub(crate) async fn serve(client: TcpStream, node: &Node) {
    let flow = match node.redirection.flow_of(&client) {
        Ok(Some(flow)) => flow,
        Ok(None) => {
            // A neighbour that found the port, or a record that the kernel could not keep: nothing is forwarded.
            node.metrics.without_origin.inc();
            return reset(client);
        }
        Err(error) => {
            node.metrics.without_origin.inc();
            tracing::error!(%error, "the kernel could not say where a connection wanted to go");
            return reset(client);
        }
    };
    let mut process = Process::read(&flow).await;
    match node.runs.choose(&flow, &mut process).await {
        Chosen::Governed(run) => {
            if let Err(error) = govern(client, &flow, &process, &run, node).await {
                node.metrics.record_errors.inc();
                tracing::error!(origin = %flow.origin, run = %run.id, error = &error as &dyn std::error::Error,
                    "a connection was closed because it could not be recorded");
            }
        }
        Chosen::Untouched => pass(client, &flow, node).await,
    }
}

/// A governed connection is a session: recorded before its first byte moves.
async fn govern(
    client: TcpStream,
    flow: &Flow,
    process: &Process,
    run: &Run,
    node: &Node,
) -> Result<(), TapeError> {
    let judged = node.judge.connect(flow.origin);
    let standing = match &judged {
        Ok((_, standing)) | Err((_, standing)) => standing.clone(),
    };
    let opened = opened(flow, process, run, &standing);
    let record = match node.recorder.open(opened).await {
        Ok(record) => record,
        Err(error) => {
            reset(client);
            return Err(error.into());
        }
    };
    let mut tape = Tape::new(record, standing.capture);
    match judged {
        Ok((permit, standing)) => forward(client, flow, tape, permit, &standing, node).await,
        Err((denial, _)) => {
            node.metrics.denied.inc();
            tape.judged(ExchangeId::SESSION, &Verdict::Deny(denial.clone())).await?;
            refuse(client, &denial).await;
            tape.close("denied", Some("denied")).await
        }
    }
}

/// An allowed connection: dial, then pump until both sides are done.
async fn forward(
    client: TcpStream,
    flow: &Flow,
    mut tape: Tape,
    permit: Permit,
    standing: &Standing,
    node: &Node,
) -> Result<(), TapeError> {
    tape.judged(ExchangeId::SESSION, &Verdict::Allow(permit)).await?;
    let upstream = match reach(&client, flow, node).await {
        Ok(upstream) => upstream,
        Err(error) => {
            tracing::debug!(origin = %flow.origin, error = &error as &dyn std::error::Error, "upstream");
            reset(client);
            if error.is_upstreams() {
                node.metrics.dial_errors.inc();
            }
            return tape.close(error.cause(), Some(error.refused())).await;
        }
    };
    node.metrics.open.inc();
    let detect = Box::new(weir_protocols::detect::Detect::new());
    let terms = Terms { judge: &node.judge, standing, plan: &node.plan, drained: &node.drained };
    let ended = Pump::new(client, upstream, detect, &mut tape, terms).run().await;
    node.metrics.open.dec();
    node.metrics.session(&tape);
    match ended {
        Ok(ending) => tape.close(ending.word(), None).await,
        Err(error) => {
            node.metrics.record_errors.inc();
            tracing::error!(origin = %flow.origin, error = &error as &dyn std::error::Error,
                "a connection was closed by a failure of ours");
            tape.close("agent-error", None).await
        }
    }
}

/// Not a governed process after all: its bytes are passed on and nothing is kept but a count.
async fn pass(mut client: TcpStream, flow: &Flow, node: &Node) {
    node.metrics.untouched.inc();
    match reach(&client, flow, node).await {
        Ok(mut upstream) => {
            let whole = tokio::select! {
                copied = tokio::io::copy_bidirectional(&mut client, &mut upstream) => copied.is_ok(),
                () = node.drained.cancelled() => false,
            };
            if !whole {
                reset(client);
                reset(upstream);
            }
        }
        Err(error) => {
            tracing::debug!(origin = %flow.origin, error = &error as &dyn std::error::Error, "upstream of an ungoverned process");
            reset(client);
        }
    }
}

/// Closes with RST: the peer must not mistake it for an orderly end.
pub(crate) fn reset(stream: TcpStream) {
    if let Err(error) = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER failed");
    }
}

/// Dials, as long as the client is there and the node goes on.
async fn reach(client: &TcpStream, flow: &Flow, node: &Node) -> Result<TcpStream, DialError> {
    tokio::select! {
        dialled = dial(flow) => dialled,
        () = node.drained.cancelled() => Err(DialError::Drained),
        _ = client.ready(tokio::io::Interest::ERROR) => Err(DialError::ClientGone),
    }
}

fn opened(flow: &Flow, process: &Process, run: &Run, standing: &Standing) -> v1::Opened {
    v1::Opened {
        run: Some(run.to_message()),
        process: Some(process.to_message()),
        origin: Some(address(flow.origin)),
        source: flow.bound_source.map(address),
        target: standing.target.to_string(),
        netns: flow.netns_cookie,
        bound_device: flow.device_name().unwrap_or_default(),
        connected_at_ns: flow.connected_at_ns,
        view_version: weir_protocols::view::VIEW_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}

fn address(address: std::net::SocketAddr) -> v1::Address {
    v1::Address { ip: address.ip().to_canonical().to_string(), port: address.port().into() }
}
