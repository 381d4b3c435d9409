//! The mutations of an administrator.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weir_proto::credential::{Credential, JoinToken};
use weir_proto::v1::admin_server::Admin;
use weir_proto::{NodeId, v1};

use super::{calls, id, node_text, store_status};
use crate::access::{Access, Role, new_secret, secret_hash};
use crate::clock;
use crate::ingest::Connected;
use crate::keys::{Keys, KeysError};
use crate::store::{Index, StoreError};

const NAME_CHARS_MAX: usize = 128;
const USES_MAX: u32 = 1_000_000;
/// A year.
const VALID_SECONDS_MAX: i64 = 366 * 24 * 3600;

pub struct AdminService {
    pub access: Access,
    pub issuer: Issuer,
    pub connected: Connected,
}

/// Makes join tokens and credentials: also used without the network, by `weir-collector token` and the first start.
#[derive(Clone)]
pub struct Issuer {
    pub index: Index,
    pub keys: Arc<Keys>,
    /// `host:port` that goes into what is issued.
    pub address: String,
}

#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("{0}")]
    Asked(&'static str),
    #[error("a credential with this name exists: revoke it first, or take another name")]
    NameTaken,
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Issuer {
    pub async fn join_token(
        &self,
        uses: u32,
        valid_seconds: i64,
        name_pattern: &str,
        by: &str,
    ) -> Result<(JoinToken, i64), IssueError> {
        if !(1..=USES_MAX).contains(&uses) {
            return Err(IssueError::Asked("a join token has 1 to 1000000 uses"));
        }
        if !(1..=VALID_SECONDS_MAX).contains(&valid_seconds) {
            return Err(IssueError::Asked("a join token is valid for a second to 366 days"));
        }
        if name_pattern.is_empty() || name_pattern.chars().count() > NAME_CHARS_MAX {
            return Err(IssueError::Asked("the name pattern is empty or too long: `*` allows every name"));
        }
        let secret = new_secret()?;
        let now_ms = clock::unix_ms();
        let expires_ms = now_ms + valid_seconds * 1000;
        self.index.join_token_add(&secret_hash(&secret), uses, expires_ms, name_pattern, by, now_ms).await?;
        let ca_der = self.keys.authority.certificate_der().to_vec();
        Ok((JoinToken { address: self.address.clone(), ca_der, secret }, expires_ms / 1000))
    }

    pub async fn credential(&self, name: &str, role: Role, by: &str) -> Result<Credential, IssueError> {
        let printable = name.chars().all(|c| c.is_ascii_graphic());
        if name.is_empty() || name.len() > NAME_CHARS_MAX || !printable {
            return Err(IssueError::Asked(
                "a credential's name is 1 to 128 printable ASCII characters without spaces",
            ));
        }
        let secret = new_secret()?;
        let added =
            self.index.credential_add(&secret_hash(&secret), name, role.name(), by, clock::unix_ms()).await?;
        if !added {
            return Err(IssueError::NameTaken);
        }
        let ca_der = self.keys.authority.certificate_der().to_vec();
        Ok(Credential { admin: role == Role::Admin, address: self.address.clone(), ca_der, secret })
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let (caller, asked) = self
            .access
            .admit(calls::CREATE_JOIN_TOKEN, request, |asked| {
                format!("{} uses for {}", asked.uses, asked.name_pattern)
            })
            .await?;
        let (token, expires_unix) = self
            .issuer
            .join_token(asked.uses, asked.valid_seconds, &asked.name_pattern, caller.name())
            .await
            .map_err(issue_status)?;
        Ok(Response::new(v1::CreateJoinTokenResponse { token: token.to_string(), expires_unix }))
    }

    async fn create_credential(
        &self,
        request: Request<v1::CreateCredentialRequest>,
    ) -> Result<Response<v1::CreateCredentialResponse>, Status> {
        let (caller, asked) = self
            .access
            .admit(calls::CREATE_CREDENTIAL, request, |asked| format!("{} {}", asked.role, asked.name))
            .await?;
        let role = Role::named(&asked.role)
            .ok_or_else(|| Status::invalid_argument("a role is `viewer` or `admin`"))?;
        let credential =
            self.issuer.credential(&asked.name, role, caller.name()).await.map_err(issue_status)?;
        Ok(Response::new(v1::CreateCredentialResponse { credential: credential.to_string() }))
    }

    async fn revoke_credential(
        &self,
        request: Request<v1::RevokeCredentialRequest>,
    ) -> Result<Response<v1::RevokeCredentialResponse>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::REVOKE_CREDENTIAL, request, |asked| asked.name.clone()).await?;
        match self
            .issuer
            .index
            .credential_revoke(&asked.name, clock::unix_ms())
            .await
            .map_err(store_status)?
        {
            true => Ok(Response::new(v1::RevokeCredentialResponse {})),
            false => Err(Status::not_found("no valid credential has this name")),
        }
    }

    async fn revoke_node(
        &self,
        request: Request<v1::RevokeNodeRequest>,
    ) -> Result<Response<v1::RevokeNodeResponse>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::REVOKE_NODE, request, |asked| node_text(&asked.node_id)).await?;
        let node: NodeId =
            id(&asked.node_id, "node")?.ok_or_else(|| Status::invalid_argument("name a node"))?;
        if !self.issuer.index.node_revoke(&node, clock::unix_ms()).await.map_err(store_status)? {
            return Err(Status::not_found("no such node"));
        }
        // First the row, then the stream: one that begins in between finds the row.
        self.connected.revoke(&node);
        Ok(Response::new(v1::RevokeNodeResponse {}))
    }
}

fn issue_status(error: IssueError) -> Status {
    match error {
        IssueError::Asked(what) => Status::invalid_argument(what),
        IssueError::NameTaken => Status::already_exists(error.to_string()),
        IssueError::Keys(error) => Status::internal(error.to_string()),
        IssueError::Store(error) => store_status(error),
    }
}
