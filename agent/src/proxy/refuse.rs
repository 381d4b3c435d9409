//! Tells a client in its own protocol why it may not connect: its connect() has succeeded already, at the proxy.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_protocols::{Denial, http, postgres};

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
        match word(&seen, denial) {
            Word::More if seen.len() < FIRST_WORDS_MAX => {
                if client.read_buf(&mut seen).await? == 0 {
                    return Ok(false);
                }
            }
            Word::Reply(bytes, consumed) => {
                seen.advance(consumed.min(seen.len()));
                client.write_all(&bytes).await?;
            }
            Word::Last(bytes) => {
                client.write_all(&bytes).await?;
                client.shutdown().await?;
                // Closing with unread bytes would reset the connection under the answer.
                let mut rest = [0u8; 1024];
                while client.read(&mut rest).await? > 0 {}
                return Ok(true);
            }
            Word::More | Word::None => return Ok(false),
        }
    }
}

/// What to do about a client's first words.
enum Word {
    More,
    /// Send this, forget so many bytes, and go on.
    Reply(Bytes, usize),
    /// Send this, then close.
    Last(Bytes),
    None,
}

fn word(seen: &[u8], denial: &Denial) -> Word {
    match postgres::refuse(seen, denial) {
        postgres::Refusal::NeedMore => Word::More,
        postgres::Refusal::Reply(bytes, consumed) => Word::Reply(bytes, consumed),
        postgres::Refusal::Last(bytes) => Word::Last(bytes),
        postgres::Refusal::NotPostgres => match http::refuse(seen, denial) {
            http::Refusal::NeedMore => Word::More,
            http::Refusal::Last(bytes) => Word::Last(bytes),
            http::Refusal::NotHttp => Word::None,
        },
    }
}
