//! Credentials, join tokens, revocation.

use std::io::Read;

use anyhow::{Context, Result};
use serde_json::json;
use weir_collector::config::parse_duration;
use weir_proto::v1;

use crate::How;
use crate::client::Client;
use crate::{home, output};

/// Longest credential read from stdin.
const CREDENTIAL_BYTES_MAX: u64 = 16 * 1024;

/// Tries the credential before it keeps it.
pub(crate) async fn login(text: &str) -> Result<()> {
    let text = match text {
        "-" => {
            let mut read = String::new();
            std::io::stdin().take(CREDENTIAL_BYTES_MAX).read_to_string(&mut read).context("reading stdin")?;
            read
        }
        text => text.to_owned(),
    };
    let credential = text.parse().context("the credential")?;
    let mut client = Client::connect_with(&credential).await?;
    let me = client.query.whoami(v1::WhoamiRequest {}).await?.into_inner();
    let path = home::keep_credential(&credential)?;
    output::line(format!(
        "logged in to {} as {} ({}); kept in {}",
        credential.address,
        output::clean(&me.name),
        output::clean(&me.role),
        path.display()
    ))
}

pub(crate) async fn whoami(how: &How) -> Result<()> {
    let mut client = Client::connect(how).await?;
    let me = client.query.whoami(v1::WhoamiRequest {}).await?.into_inner();
    if how.json {
        return output::json(
            &json!({ "name": me.name, "role": me.role, "collector_version": me.collector_version }),
        );
    }
    output::line(output::clean(&format!("{} ({}), collector {}", me.name, me.role, me.collector_version)))
}

#[derive(clap::Args)]
pub(crate) struct JoinToken {
    /// How many nodes may join with it
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// How long it is good for: 90s, 15m, 12h, 30d
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    valid: String,
    /// Which node names it is good for; `*` stands for any part of a name
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    name: String,
}

impl JoinToken {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let valid = parse_duration(&self.valid).map_err(anyhow::Error::msg)?;
        let asked = v1::CreateJoinTokenRequest {
            uses: self.uses,
            valid_seconds: i64::try_from(valid.as_secs()).context("--valid is too long")?,
            name_pattern: self.name,
        };
        let made = Client::connect(how).await?.admin.create_join_token(asked).await?.into_inner();
        if how.json {
            let expires = output::time_json(made.expires_unix.saturating_mul(1_000_000_000));
            return output::json(&json!({ "token": made.token, "expires": expires }));
        }
        output::line(made.token)
    }
}

#[derive(clap::Args)]
pub(crate) struct Credential {
    /// Whose it is: the access log names it
    name: String,
    /// `viewer` or `admin`
    #[arg(long, value_name = "ROLE", default_value = "viewer")]
    role: String,
}

impl Credential {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let asked = v1::CreateCredentialRequest { name: self.name, role: self.role };
        let made = Client::connect(how).await?.admin.create_credential(asked).await?.into_inner();
        if how.json {
            return output::json(&json!({ "credential": made.credential }));
        }
        output::line(made.credential)
    }
}

pub(crate) async fn revoke_credential(how: &How, name: &str) -> Result<()> {
    let asked = v1::RevokeCredentialRequest { name: name.to_owned() };
    Client::connect(how).await?.admin.revoke_credential(asked).await?;
    output::line(format!("revoked {}", output::clean(name)))
}

pub(crate) async fn revoke_node(how: &How, named: &str) -> Result<()> {
    let mut client = Client::connect(how).await?;
    let node = client.node(named).await?;
    client.admin.revoke_node(v1::RevokeNodeRequest { node_id: node.to_field() }).await?;
    output::line(format!("revoked node {node}"))
}
