//! Paths of one kind, under one name: `/users/17/orders/9f2c...` is `/users/{id}/orders/{id}`.

/// Parts kept of a path, and characters of one part.
const PARTS_MAX: usize = 12;
const PART_CHARS_MAX: usize = 64;
/// Hex digits, or letters and digits, that stand together in what nobody named.
const HEX_DIGITS_MIN: usize = 12;
const TOKEN_CHARS_MIN: usize = 20;

/// Of a URL as it is recorded: `http://host:port/path?query`, or `host:port` for CONNECT.
pub struct Url<'a> {
    /// Host, and port where it is said.
    pub authority: &'a str,
    /// Without the query string.
    pub path: &'a str,
}

pub fn url(text: &str) -> Url<'_> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(at);
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    Url { authority, path: &rest[..end] }
}

pub fn grouped(path: &str) -> String {
    let mut shown = String::new();
    let mut parts = path.split('/').skip(1);
    for part in parts.by_ref().take(PARTS_MAX) {
        shown.push('/');
        if is_id(part) {
            shown.push_str("{id}");
        } else if part.chars().count() > PART_CHARS_MAX {
            shown.extend(part.chars().take(PART_CHARS_MAX - 1).chain(['…']));
        } else {
            shown.push_str(part);
        }
    }
    if parts.next().is_some() {
        shown.push_str("/…");
    }
    if shown.is_empty() { "/".to_owned() } else { shown }
}

/// Numbers, UUIDs, hashes, tokens.
fn is_id(part: &str) -> bool {
    let mut digits = 0;
    let (mut hex, mut word) = (!part.is_empty(), !part.is_empty());
    for c in part.bytes() {
        digits += usize::from(c.is_ascii_digit());
        hex &= c.is_ascii_hexdigit() || c == b'-';
        word &= c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'=');
    }
    let len = part.len();
    (len > 0 && digits == len)
        || (hex && digits > 0 && len >= HEX_DIGITS_MIN)
        || (word && digits >= 4 && len >= TOKEN_CHARS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_kind_have_one_name() {
        for (path, name) in [
            ("", "/"),
            ("/", "/"),
            ("/api/v1/users", "/api/v1/users"),
            ("/users/17/orders/0199d8a2-7b54-7c3e-8f00-0123456789ab", "/users/{id}/orders/{id}"),
            ("/blobs/sha256/9f86d081884c7d659a2feaa0c55ad015", "/blobs/sha256/{id}"),
            ("/face/decade", "/face/decade"),
            ("/t/AbCd1234efGh5678IjKl/x/", "/t/{id}/x/"),
            ("/a/b/c/d/e/f/g/h/i/j/k/l/m", "/a/b/c/d/e/f/g/h/i/j/k/l/…"),
        ] {
            assert_eq!(grouped(path), name);
        }
        assert!(grouped(&format!("/{}", "é".repeat(1_000))).chars().count() <= 1 + PART_CHARS_MAX);
    }

    #[test]
    fn urls_as_they_are_recorded() {
        let read = |text| {
            let url = url(text);
            (url.authority.to_owned(), url.path.to_owned())
        };
        assert_eq!(read("http://a:80/b/c?d=/e"), ("a:80".into(), "/b/c".into()));
        assert_eq!(read("http://a"), ("a".into(), String::new()));
        assert_eq!(read("http://a?x"), ("a".into(), String::new()));
        assert_eq!(read("db:443"), ("db:443".into(), String::new()));
        assert_eq!(read(""), (String::new(), String::new()));
    }
}
