//! What a request is aimed at (RFC 9112, 3.2): the target and the Host field must tell the same.

use bytes::{Bytes, BytesMut};

use super::message::{Malformed, Version};
use crate::operation;

/// The request's operation and its URL.
pub(crate) fn read(
    method: Bytes,
    target: &Bytes,
    host: Option<&Bytes>,
    version: Version,
) -> Result<(operation::Http, Bytes), Malformed> {
    if host.is_none() && version == Version::Http11 {
        return Err(Malformed::because("no Host field"));
    }
    let named = host.map(|host| authority(host)).transpose()?;
    if &method[..] == b"CONNECT" {
        let wanted = authority(target)?;
        if wanted.host.is_empty() || wanted.port.is_none() {
            return Err(Malformed::because("CONNECT needs a host and a port"));
        }
        let (host, port) = (wanted.lower_host(target), wanted.port);
        let operation = operation::Http { method, host, port, path: Bytes::new(), query: None };
        return Ok((operation, target.clone()));
    }
    if target.starts_with(b"/") {
        let (path, query) = split_query(target);
        let (host, port, url) = match (host, named) {
            (Some(field), Some(named)) => (named.lower_host(field), named.port, url(field, target)),
            _ => (Bytes::new(), None, target.clone()),
        };
        return Ok((operation::Http { method, host, port, path, query }, url));
    }
    if &target[..] == b"*" && &method[..] == b"OPTIONS" {
        let (host, port) = match (host, named) {
            (Some(field), Some(named)) => (named.lower_host(field), named.port),
            _ => (Bytes::new(), None),
        };
        let url = url(&host, b" *");
        return Ok((operation::Http { method, host, port, path: Bytes::new(), query: None }, url));
    }
    absolute(method, target, named)
}

fn absolute(
    method: Bytes,
    target: &Bytes,
    named: Option<Authority<'_>>,
) -> Result<(operation::Http, Bytes), Malformed> {
    const UNKNOWN: Malformed = Malformed::because("the request target has no known form");
    let scheme_end = memchr::memmem::find(target, b"://").ok_or(UNKNOWN)?;
    let default_port = match target[..scheme_end].to_ascii_lowercase().as_slice() {
        b"http" | b"ws" => 80,
        b"https" | b"wss" => 443,
        _ => return Err(UNKNOWN),
    };
    let rest = target.slice(scheme_end + 3..);
    let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    let whole = rest.slice(..end);
    // No client has a use for it there, and where it ends readers disagree (RFC 9110, 4.2.4).
    if memchr::memchr(b'@', &whole).is_some() {
        return Err(Malformed::because("the request target names a user"));
    }
    let wanted = authority(&whole)?;
    if wanted.host.is_empty() {
        return Err(Malformed::because("the request target names no host"));
    }
    if let Some(named) = named {
        let same_port = named.port.unwrap_or(default_port) == wanted.port.unwrap_or(default_port);
        if !same_port || !named.host.eq_ignore_ascii_case(wanted.host) {
            return Err(Malformed::because("the request target and the Host field disagree"));
        }
    }
    let (path, query) = split_query(&rest.slice(end..));
    let (host, port) = (wanted.lower_host(&whole), wanted.port);
    Ok((operation::Http { method, host, port, path, query }, target.clone()))
}

/// `http://host/path`, as it was written.
fn url(host: &[u8], target: &[u8]) -> Bytes {
    let mut url = BytesMut::with_capacity(7 + host.len() + target.len());
    url.extend_from_slice(b"http://");
    url.extend_from_slice(host);
    url.extend_from_slice(target);
    url.freeze()
}

fn split_query(target: &Bytes) -> (Bytes, Option<Bytes>) {
    match memchr::memchr(b'?', target) {
        Some(at) => (target.slice(..at), Some(target.slice(at + 1..))),
        None => (target.clone(), None),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Authority<'a> {
    host: &'a [u8],
    port: Option<u16>,
}

impl Authority<'_> {
    /// A part of `whole`, copied only where it is not in lower case.
    fn lower_host(&self, whole: &Bytes) -> Bytes {
        if self.host.iter().any(u8::is_ascii_uppercase) {
            return Bytes::from(self.host.to_ascii_lowercase());
        }
        whole.slice_ref(self.host)
    }
}

/// `host`, `host:port`, `[address]:port`; a Host field may be empty.
fn authority(text: &[u8]) -> Result<Authority<'_>, Malformed> {
    const UNSOUND: Malformed = Malformed::because("the host is not sound");
    let (host, port) = if text.starts_with(b"[") {
        let end = memchr::memchr(b']', text).ok_or(UNSOUND)?;
        if !text[1..end].iter().all(|byte| byte.is_ascii_alphanumeric() || b":.%-_~".contains(byte)) {
            return Err(UNSOUND);
        }
        (&text[..=end], &text[end + 1..])
    } else {
        let end = memchr::memchr(b':', text).unwrap_or(text.len());
        if !text[..end].iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte))
        {
            return Err(UNSOUND);
        }
        text.split_at(end)
    };
    let port = match port {
        [] | [b':'] => None,
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            let port = digits.iter().fold(0_u32, |port, digit| port * 10 + u32::from(digit - b'0'));
            Some(u16::try_from(port).map_err(|_| UNSOUND)?)
        }
        _ => return Err(UNSOUND),
    };
    Ok(Authority { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(method: &str, target: &str, host: Option<&str>) -> Result<String, &'static str> {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let host = host.map(bytes);
        let (http, url) =
            read(bytes(method), &bytes(target), host.as_ref(), Version::Http11).map_err(|e| e.reason)?;
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(format!(
            "{} {:?} {} {:?} {}",
            text(&http.host),
            http.port,
            text(&http.path),
            http.query.as_ref().map(text),
            text(&url)
        ))
    }

    #[test]
    fn every_form_says_where_it_goes() {
        for (method, target, host, expected) in [
            ("GET", "/a?b=c?d", "Shop:80", "shop Some(80) /a Some(\"b=c?d\") http://Shop:80/a?b=c?d"),
            ("GET", "/", "[::1]:8080", "[::1] Some(8080) / None http://[::1]:8080/"),
            ("GET", "//x", "", " None //x None http:////x"),
            ("OPTIONS", "*", "shop", "shop None  None http://shop *"),
            ("CONNECT", "db:5432", "db:5432", "db Some(5432)  None db:5432"),
            ("GET", "http://SHOP/a@b", "shop:80", "shop None /a@b None http://SHOP/a@b"),
            ("GET", "https://shop?x", "shop:443", "shop None  Some(\"x\") https://shop?x"),
        ] {
            assert_eq!(told(method, target, Some(host)).as_deref(), Ok(expected), "{target}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for (method, target, host) in [
            ("GET", "/", None),
            ("GET", "/", Some("a b")),
            ("GET", "/", Some("a@b")),
            ("GET", "/", Some("a/b")),
            ("GET", "/", Some("a:99999")),
            ("GET", "/", Some("a:x")),
            ("GET", "/", Some("[::1")),
            ("GET", "*", Some("a")),
            ("GET", "a/b", Some("a")),
            ("GET", "ftp://a/", Some("a")),
            ("GET", "http:///x", Some("")),
            ("GET", "http://a/", Some("b")),
            ("GET", "http://a:81/", Some("a")),
            ("GET", "http://a/", Some("")),
            ("GET", "http://u:p@a/", Some("a")),
            ("GET", "http://@a/", Some("a")),
            ("GET", "http://b\\@a/", Some("a")),
            ("GET", "http://b@a?c", Some("a")),
            ("CONNECT", "/x", Some("a")),
            ("CONNECT", "db", Some("db")),
        ] {
            assert!(told(method, target, host).is_err(), "{method} {target} {host:?}");
        }
    }
}
