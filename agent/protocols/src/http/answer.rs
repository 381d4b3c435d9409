//! What we answer in the server's place: short, plain, and with the reason.

use bytes::Bytes;

use super::message::Malformed;
use crate::verdict::Denial;

/// A denied request's answer.
pub(crate) fn denied(denial: &Denial, is_head: bool, closes: bool) -> Bytes {
    let reason = format!("denied by Weir rule \"{}\": {}", denial.rule, denial.reason);
    answer(403, &reason, is_head, closes)
}

/// For what could not be read: it always ends the connection.
pub(crate) fn malformed(fault: Malformed, is_head: bool) -> Bytes {
    let what = if fault.status == 502 {
        "the server's answer was not passed on"
    } else {
        "the request was not passed on"
    };
    answer(fault.status, &format!("Weir: {what}: {}", fault.reason), is_head, true)
}

fn answer(status: u16, text: &str, is_head: bool, closes: bool) -> Bytes {
    let length = text.len() + 1;
    let connection = if closes { "Connection: close\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\n{connection}\r\n",
        phrase(status)
    );
    if !is_head {
        answer.push_str(text);
        answer.push('\n');
    }
    Bytes::from(answer)
}

/// Of the statuses that we answer.
pub(crate) const fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}
