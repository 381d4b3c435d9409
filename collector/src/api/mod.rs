//! What people and their tools ask. Every method is: admit, then answer.
//!
//! * [`calls`]: the calls and the role that each needs
//! * [`query`]: the reading service
//! * [`admin`]: the mutations of an administrator
//! * [`reading`]: opens stored segments
//! * [`play`]: the events themselves, of a session or of a run interleaved by time
//! * [`search`]: exchanges that a query finds, page by page; [`tail`]: as they end
//! * [`proof`]: what a verifier needs, as stored

pub mod admin;
pub mod calls;
pub mod play;
pub mod proof;
pub mod query;
pub mod reading;
pub mod search;
pub mod tail;

pub use admin::AdminService;
pub use query::QueryService;
pub use search::Searching;

use tonic::Status;
use weir_proto::{NodeId, RunId, SessionId};

use crate::store::StoreError;
use crate::store::sqlite::{ReadError, Subject};

fn store_status(error: StoreError) -> Status {
    tracing::error!(error = %crate::chain(&error), "a read failed");
    Status::unavailable("the collector's store failed")
}

fn read_status(error: ReadError) -> Status {
    match error {
        ReadError::Cursor(bad) => Status::invalid_argument(bad.to_string()),
        ReadError::Store(error) => store_status(error),
    }
}

/// An id field: empty means "not given".
fn id<T: for<'a> TryFrom<&'a [u8]>>(field: &[u8], what: &str) -> Result<Option<T>, Status> {
    if field.is_empty() {
        return Ok(None);
    }
    T::try_from(field).map(Some).map_err(|_| Status::invalid_argument(format!("a {what} id has 16 bytes")))
}

/// Exactly one of the two.
fn subject(run: &[u8], session: &[u8]) -> Result<Subject, Status> {
    match (id::<RunId>(run, "run")?, id::<SessionId>(session, "session")?) {
        (Some(run), None) => Ok(Subject::Run(run)),
        (None, Some(session)) => Ok(Subject::Session(session)),
        _ => Err(Status::invalid_argument("name a run or a session, one of the two")),
    }
}

/// As the access log names it.
fn subject_text(run: &[u8], session: &[u8]) -> String {
    match (RunId::try_from(run), SessionId::try_from(session)) {
        (Ok(run), _) => format!("run {run}"),
        (_, Ok(session)) => format!("session {session}"),
        _ => String::new(),
    }
}

fn node_text(node: &[u8]) -> String {
    NodeId::try_from(node).map(|node| format!("node {node}")).unwrap_or_default()
}

/// Upper-case hex digits of a typed part of an id; hyphens are for the eye.
fn id_part(text: &str) -> Result<Option<String>, Status> {
    let digits: String = text.chars().filter(|c| *c != '-').map(|c| c.to_ascii_uppercase()).collect();
    if digits.is_empty() {
        return Ok(None);
    }
    if digits.len() > 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Status::invalid_argument("the beginning or the end of an id is hex digits, 32 at most"));
    }
    Ok(Some(digits))
}
