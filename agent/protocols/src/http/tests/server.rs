//! A small server for plays: answers each request that reaches it, in order.

use crate::suite::Server;

/// Answers with what was asked for: the request line and the body's length. `/chunked`, `/interim`, `/close` in their ways.
#[derive(Default)]
pub(super) struct Small {
    unread: Vec<u8>,
    closed: bool,
}

impl Server for Small {
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.unread.extend_from_slice(bytes);
        let mut said = Vec::new();
        while !self.closed
            && let Some((request, length)) = request(&self.unread)
        {
            said.extend(self.answer(&request));
            self.unread.drain(..length);
        }
        said
    }
}

struct Request {
    line: String,
    body: Vec<u8>,
    expects: bool,
}

impl Small {
    fn answer(&mut self, request: &Request) -> Vec<u8> {
        let text = format!("{} with {} bytes", request.line, request.body.len());
        let interim = if request.expects || request.line.contains("/interim") {
            "HTTP/1.1 100 Continue\r\n\r\n"
        } else {
            ""
        };
        let is_head = request.line.starts_with("HEAD ");
        let answer = if request.line.contains("/chunked") {
            let (one, two) = text.split_at(text.len() / 2);
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x};a=b\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\nX: y\r\n\r\n",
                one.len(),
                two.len()
            )
        } else if request.line.contains("/close") {
            self.closed = true;
            format!("HTTP/1.1 200 OK\r\n\r\n{text}")
        } else {
            let body = if is_head { "" } else { &text };
            format!("HTTP/1.1 200 OK\r\nServer: small\r\nContent-Length: {}\r\n\r\n{body}", text.len())
        };
        [interim.as_bytes(), answer.as_bytes()].concat()
    }
}

/// The first request, if it is there whole, and its length.
fn request(bytes: &[u8]) -> Option<(Request, usize)> {
    let head_end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let field = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let rest = &bytes[head_end..];
    let (body, length) = match field("content-length") {
        Some(length) => {
            let length = length.parse().ok()?;
            (rest.get(..length)?.to_vec(), length)
        }
        None if field("transfer-encoding").is_some() => chunks(rest)?,
        None => (Vec::new(), 0),
    };
    let line = head.trim_start().lines().next()?.to_owned();
    let expects = field("expect").is_some();
    Some((Request { line, body, expects }, head_end + length))
}

fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line_end = at + memchr::memmem::find(bytes.get(at..)?, b"\r\n")?;
        let line = std::str::from_utf8(&bytes[at..line_end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        at = line_end + 2;
        if size == 0 {
            loop {
                let end = at + memchr::memmem::find(&bytes[at..], b"\r\n")?;
                let is_last = end == at;
                at = end + 2;
                if is_last {
                    return Some((body, at));
                }
            }
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
    }
}
