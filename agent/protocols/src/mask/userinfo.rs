//! The password in a URL: `scheme://user:password@host`, `scheme://token@host`.

use super::view::{Peek, View, is_quote};

/// Longest beginning of a URL in which the `@` is looked for, bytes.
const USERINFO_BYTES_MAX: usize = 512;

/// A user without a password that has as many bytes is a token.
const TOKEN_BYTES_MIN: usize = 16;
/// No name of a host is longer, bytes: what is, is the beginning of a token.
const HOST_BYTES_MAX: usize = 255;

pub(super) const RULE: &str = "url";

/// What follows `scheme:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Userinfo {
    /// Nothing secret; the reading goes on here.
    None(usize),
    /// The password stands in this range.
    Password(usize, usize),
    /// It begins here, and its end is too far away to be seen.
    Endless(usize),
}

/// Reads on after `scheme:`. `None` when more bytes are needed to tell.
pub(super) fn read(view: View<'_>, colon: usize) -> Option<Userinfo> {
    let mut at = colon;
    for _ in 0..2 {
        // JSON may write `\/`.
        at += usize::from(view.peek(at)? == Peek::Byte(b'\\'));
        if view.peek(at)? != Peek::Byte(b'/') {
            return Some(Userinfo::None(colon));
        }
        at += 1;
    }
    let fits = |byte| byte > b' ' && byte != 0x7f && !is_quote(byte) && !b"<>".contains(&byte);
    let ends = |byte: u8| b"/?#".contains(&byte);
    let length = view.run(at, USERINFO_BYTES_MAX, |byte| fits(byte) && !ends(byte))?;
    let authority = &view.buffer[at..at + length];
    let end = memchr::memrchr(b'@', authority);
    let Some(name) = memchr::memchr(b':', &authority[..end.unwrap_or(authority.len())]) else {
        return Some(match end {
            Some(end) if end >= TOKEN_BYTES_MIN => Userinfo::Password(at, at + end),
            None if length == USERINFO_BYTES_MAX && !is_list_of_hosts(authority) => Userinfo::Endless(at),
            _ => Userinfo::None(at),
        });
    };
    let start = at + name + 1;
    let password = &authority[name + 1..];
    if let Some(end) = end {
        return Some(Userinfo::Password(start, at + end));
    }
    if authority.starts_with(b"[") || is_port(password) {
        return Some(Userinfo::None(at));
    }
    // Only now: a run over what follows each of many short authorities would cost too much.
    let length = view.run(at, USERINFO_BYTES_MAX, fits)?;
    let shown = &view.buffer[at..at + length];
    let is_cut = length == USERINFO_BYTES_MAX || view.peek(at + length)? == Peek::Nothing;
    // A password may hold what should have been written as %2F.
    if let Some(end) = memchr::memrchr(b'@', shown) {
        return Some(Userinfo::Password(start, at + end));
    }
    Some(if is_cut {
        Userinfo::Endless(start)
    } else if authority.len() == length {
        // Neither a port nor a path, so what else would it be.
        Userinfo::Password(start, at + length)
    } else {
        Userinfo::None(at)
    })
}

/// `db1,db2,db3`
fn is_list_of_hosts(authority: &[u8]) -> bool {
    authority.split(|byte| *byte == b',').all(|host| host.len() <= HOST_BYTES_MAX)
}

/// `5432` or `5432,other:5433`
fn is_port(bytes: &[u8]) -> bool {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    matches!(bytes.get(digits), None | Some(b',')) && digits <= 5
}
