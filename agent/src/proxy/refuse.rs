//! Tells a client in its own protocol why it may not connect: its connect() has succeeded already, at the proxy.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_protocols::Denial;
use weir_protocols::postgres::{self, Refusal};

/// How long a refused client has to say what protocol it speaks.
const FIRST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of a refused client that are looked at.
const FIRST_WORDS_MAX: usize = 16 * 1024;

/// Answers if the protocol has a form for it, else the connection is reset.
pub(crate) async fn refuse(mut client: TcpStream, denial: &Denial) {
    let answered = tokio::time::timeout(FIRST_WORDS_TIMEOUT, answer(&mut client, denial)).await;
    if !matches!(answered, Ok(Ok(true))) {
        super::connection::reset(client);
    }
}

async fn answer(client: &mut TcpStream, denial: &Denial) -> std::io::Result<bool> {
    let mut seen = BytesMut::new();
    loop {
        match postgres::refuse(&seen, denial) {
            Refusal::NeedMore if seen.len() < FIRST_WORDS_MAX => {
                if client.read_buf(&mut seen).await? == 0 {
                    return Ok(false);
                }
            }
            Refusal::Reply(bytes, consumed) => {
                seen.advance(consumed.min(seen.len()));
                client.write_all(&bytes).await?;
            }
            Refusal::Last(bytes) => {
                client.write_all(&bytes).await?;
                client.shutdown().await?;
                // Closing with unread bytes would reset the connection under the answer.
                let mut rest = [0u8; 1024];
                while client.read(&mut rest).await? > 0 {}
                return Ok(true);
            }
            Refusal::NeedMore | Refusal::NotPostgres => return Ok(false),
        }
    }
}
