//! Whether first bytes are HTTP/1's.

use crate::detect::Recognition;
use crate::kind::Kind;
use crate::operation::Opacity;

/// Longest method of a request that is recognized, bytes.
const METHOD_BYTES_MAX: usize = 32;
/// Before a path these are enough: what else begins like this is not worth the wait.
const METHODS: [&[u8]; 9] =
    [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"PROPFIND"];
/// What an HTTP/2 client begins with (RFC 9113, 3.4), up to where it is no HTTP/1.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// A client's first bytes: `METHOD /`, or a request line up to its `HTTP/1.`.
pub(crate) fn request(bytes: &[u8]) -> Recognition {
    if bytes.starts_with(HTTP2_PREFACE) {
        return Recognition::Match(Kind::Opaque(Opacity::Http2));
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Recognition::NeedMore;
    }
    // Generous: what a lenient server would take for a request must not pass by the rules about requests. Whether it is a
    // sound one is decided later.
    let line = trim(bytes, b" \t\r\n");
    let method_end = line.iter().position(|byte| !is_method(*byte)).unwrap_or(line.len());
    if method_end > METHOD_BYTES_MAX {
        return Recognition::No;
    }
    let (method, rest) = line.split_at(method_end);
    let target = match rest {
        [] => return Recognition::NeedMore,
        [b' ' | b'\t', target @ ..] if !method.is_empty() => trim(target, b" \t"),
        _ => return Recognition::No,
    };
    if target.starts_with(b"/") && METHODS.contains(&method) {
        return Recognition::Match(Kind::Http);
    }
    if !may_be_target(method, target) {
        return Recognition::No;
    }
    let target_end = target.iter().position(|byte| b" \t\r\n".contains(byte)).unwrap_or(target.len());
    match &target[target_end..] {
        [] => Recognition::NeedMore,
        [b' ' | b'\t', version @ ..] if target_end > 0 => begins(trim(version, b" \t"), b"HTTP/"),
        _ => Recognition::No,
    }
}

/// The forms of a request's target (RFC 9112, 3.2), as far as it is there. Any other word is not waited for.
fn may_be_target(method: &[u8], target: &[u8]) -> bool {
    let begins_as = |scheme: &[u8]| {
        let length = scheme.len().min(target.len());
        target[..length].eq_ignore_ascii_case(&scheme[..length])
    };
    matches!(target, [] | [b'/' | b'*', ..])
        || method.eq_ignore_ascii_case(b"CONNECT")
        || begins_as(b"http://")
        || begins_as(b"https://")
}

fn trim<'a>(bytes: &'a [u8], blanks: &[u8]) -> &'a [u8] {
    let start = bytes.iter().position(|byte| !blanks.contains(byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

/// A server that speaks first, to say that it will not wait any longer.
pub(crate) fn response(bytes: &[u8]) -> Recognition {
    begins(bytes, b"HTTP/1.")
}

fn begins(bytes: &[u8], expected: &[u8]) -> Recognition {
    let length = bytes.len().min(expected.len());
    if !bytes[..length].eq_ignore_ascii_case(&expected[..length]) {
        Recognition::No
    } else if length == expected.len() {
        Recognition::Match(Kind::Http)
    } else {
        Recognition::NeedMore
    }
}

/// Of any token (RFC 9110, 5.6.2), in any case: there are servers that take every method for GET.
fn is_method(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_and_nothing_else() {
        let http = Recognition::Match(Kind::Http);
        for (bytes, expected) in [
            (&b"GET /"[..], http),
            (b"\r\nGET /", http),
            (b"G", Recognition::NeedMore),
            (b"GET", Recognition::NeedMore),
            (b"get /", Recognition::NeedMore),
            (b"get / HTTP/1.", http),
            (b"FOO http://a/b HTTP/1.1", http),
            (b"CONNECT db:5432 HTTP/1.0\r\n", http),
            (b"CONNECT db:5432 HTTP", Recognition::NeedMore),
            (b"OPTIONS * RTSP/1.0", Recognition::No),
            (b"INVITE sip:a SIP/2.0", Recognition::No),
            (b"send something", Recognition::No),
            (b"get HTT", Recognition::NeedMore),
            (b"get key\r\n", Recognition::No),
            (b"set key 0 0 5\r\n", Recognition::No),
            (b"SSH-2.0-x\r\n", Recognition::No),
            (b"PRI * HTTP/2", Recognition::NeedMore),
            (b"PRI * HTTP/2.0\r\n", Recognition::Match(Kind::Opaque(Opacity::Http2))),
            (b"\nGET /", http),
            (b"GET  /", http),
            (b"GET\t/", http),
            (b"G3T! /x  http/1.1", http),
            (b"FOO /a\x01b HTTP/2.0", http),
            (b"\n", Recognition::NeedMore),
            (b" /", Recognition::No),
            (b"\x16\x03", Recognition::No),
            (b"CONNECT\naccept-version:1.2\n", Recognition::No),
            (b"hello there\n", Recognition::No),
            (b"hello there world\n", Recognition::No),
        ] {
            assert_eq!(request(bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(request(&[b'A'; 33]), Recognition::No);
    }
}
