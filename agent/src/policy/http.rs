//! `[[target.http]]`: rules for HTTP requests inside a target, as they stand in the configuration, and matching.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::readings::{Path, Readings};
use super::targets::Mode;

/// Longest pattern in a rule, bytes.
const PATTERN_BYTES_MAX: usize = 512;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpRule {
    /// Shown as `TARGET/NAME`; without one as `TARGET/http#N`.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// Empty = any.
    #[serde(default)]
    hosts: Vec<HostPattern>,
    /// Empty = any.
    #[serde(default)]
    methods: Vec<Method>,
    /// Empty = any.
    #[serde(default)]
    paths: Vec<PathPattern>,
    pub(crate) access: HttpAccess,
    /// Told to the client and recorded when this rule denies.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// Without one the target's holds.
    #[serde(default)]
    pub(crate) mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HttpAccess {
    Allow,
    Deny,
}

impl HttpRule {
    /// How much there is to compare a request with.
    pub(super) fn patterns(&self) -> usize {
        self.hosts.len() + self.methods.len() + self.paths.len()
    }

    /// Every request.
    pub(super) fn covers_all(&self) -> bool {
        self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty()
    }

    /// A deny rule matches a request that anybody could read as forbidden, an allow rule one that everybody reads as allowed.
    pub(super) fn matches(&self, request: &Readings) -> bool {
        match self.access {
            HttpAccess::Deny => self.forbids(request),
            HttpAccess::Allow => self.permits(request),
        }
    }

    fn forbids(&self, request: &Readings) -> bool {
        let method =
            self.methods.iter().any(|method| method.0.as_bytes().eq_ignore_ascii_case(&request.method));
        // Which host a request without one reaches is the server's choice.
        let host = request.hosts.is_empty()
            || self.hosts.iter().any(|host| request.hosts.iter().any(|read| host.matches(read)));
        let path = request.paths.is_empty()
            || self
                .paths
                .iter()
                .any(|path| request.paths.iter().any(|read| path.matches(read, Case::Ignored)));
        (self.methods.is_empty() || method)
            && (self.hosts.is_empty() || host)
            && (self.paths.is_empty() || path)
    }

    fn permits(&self, request: &Readings) -> bool {
        let method = self.methods.iter().any(|method| method.0.as_bytes() == request.method);
        let host = !request.hosts.is_empty()
            && request.hosts.iter().all(|read| self.hosts.iter().any(|host| host.matches(read)));
        let path = request.is_rooted
            && !request.paths.is_empty()
            && request.paths.iter().all(|read| self.paths.iter().any(|path| path.matches(read, Case::Kept)));
        (self.methods.is_empty() || method)
            && (self.hosts.is_empty() || host)
            && (self.paths.is_empty() || path)
    }
}

/// `api.example.com`, or `*.example.com` for every name below it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct HostPattern {
    text: String,
    /// In lower case; with its first dot where it is a suffix.
    name: Vec<u8>,
    is_suffix: bool,
}

impl TryFrom<String> for HostPattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bare = text.strip_suffix('.').unwrap_or(&text);
        let (name, is_suffix) = match bare.strip_prefix("*.") {
            Some(below) => (below, true),
            None => (bare, false),
        };
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let is_address =
            !is_suffix && address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        let is_name = !name.is_empty() && name.bytes().all(fits) && !name.starts_with('.');
        if text.len() > PATTERN_BYTES_MAX || !(is_address || is_name) {
            return Err(format!(
                "{text:?} is neither a host name such as \"api.example.com\" nor \"*.example.com\", which means every name \
                 below it; ports belong in the target's `ports`, other alphabets are written as xn--"
            ));
        }
        let name =
            if is_suffix { format!(".{name}") } else { name.to_owned() }.to_ascii_lowercase().into_bytes();
        Ok(Self { text, name, is_suffix })
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> String {
        pattern.text
    }
}

impl HostPattern {
    fn matches(&self, host: &[u8]) -> bool {
        if self.is_suffix {
            host.len() > self.name.len() && host.ends_with(&self.name)
        } else {
            host == self.name
        }
    }
}

/// A method's name. They are case-sensitive (RFC 9110, 9.1).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Method(String);

impl TryFrom<String> for Method {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let fits =
            |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX || !text.bytes().all(fits) {
            return Err(format!("{text:?} is not a method in capital letters such as \"POST\""));
        }
        Ok(Self(text))
    }
}

impl From<Method> for String {
    fn from(method: Method) -> String {
        method.0
    }
}

/// `/a/*/c`: `*` stands for any text within a segment; `**` as a whole segment for any number of segments, also none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct PathPattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// `**`
    Any,
    Text(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Kept,
    Ignored,
}

impl TryFrom<String> for PathPattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("path {text:?}: {why}"));
        let Some(path) = text.strip_prefix('/') else { return wrong("begin it with a slash") };
        if text.len() > PATTERN_BYTES_MAX {
            return wrong("it is longer than 512 bytes");
        }
        if path.bytes().any(|byte| matches!(byte, b'?' | b'#' | b';' | b'\\' | 0..=b' ' | 0x7f)) {
            return wrong("rules match the path alone: no query, fragment, parameters, backslash or blanks");
        }
        if path.contains('%') {
            return wrong("write the character itself; requests are compared decoded too");
        }
        if path.is_empty() {
            return Ok(Self { text, segments: Vec::new() });
        }
        let mut segments = Vec::new();
        for segment in path.split('/') {
            segments.push(match segment {
                "" => {
                    return wrong(
                        "no doubled slash, and none at the end: /a is /a/ too, all below it is /a/**",
                    );
                }
                "." | ".." => return wrong("no dot segments: requests are compared without them"),
                "**" => Segment::Any,
                _ if segment.contains("**") => return wrong("** stands alone between slashes"),
                _ => Segment::Text(segment.as_bytes().to_vec()),
            });
        }
        segments.dedup_by(|next, before| *next == Segment::Any && *before == Segment::Any);
        Ok(Self { text, segments })
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> String {
        pattern.text
    }
}

impl PathPattern {
    fn matches(&self, path: &Path, case: Case) -> bool {
        let is_same = |segment: &Segment, part: &Range<usize>| match segment {
            Segment::Any => false,
            Segment::Text(text) => wildcard(
                text,
                path.segment(part),
                |byte| *byte == b'*',
                |byte, read| byte == read || (case == Case::Ignored && byte.eq_ignore_ascii_case(read)),
            ),
        };
        wildcard(&self.segments, path.segments(), |segment| *segment == Segment::Any, is_same)
    }
}

/// Does the pattern cover all of the text? Only the last star ever has to be reconsidered: an earlier one that took less
/// leaves no less to the later ones. So the time is the product of the lengths at worst.
fn wildcard<P, T>(
    pattern: &[P],
    text: &[T],
    is_star: impl Fn(&P) -> bool,
    is_same: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut read) = (0, 0);
    // The last star, and where the text stood when it had taken nothing more than it had to.
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(part) if is_star(part) => {
                star = Some((at, read));
                at += 1;
            }
            Some(part) if is_same(part, &text[read]) => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((before, taken)) = star else { return false };
                star = Some((before, taken + 1));
                at = before + 1;
                read = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(is_star)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocols::operation::Http;

    fn rule(text: &str) -> HttpRule {
        toml::from_str(text).unwrap()
    }

    fn request(method: &str, host: &str, path: &str) -> Readings {
        let bytes = |text: &str| text.as_bytes().to_vec().into();
        Readings::of(&Http {
            method: bytes(method),
            host: bytes(host),
            port: None,
            path: bytes(path),
            query: None,
        })
    }

    fn get(path: &str) -> Readings {
        request("GET", "web.example", path)
    }

    #[test]
    fn paths_match_by_segments() {
        let matches = |pattern: &str, path: &str| {
            rule(&format!("access = 'allow'\npaths = ['{pattern}']")).matches(&get(path))
        };
        for (pattern, path) in [
            ("/", "/"),
            ("/**", "/"),
            ("/**", "/a/b"),
            ("/a", "/a"),
            ("/a", "/a/"),
            ("/a/*", "/a/b"),
            ("/a/**", "/a"),
            ("/a/**", "/a/b/c"),
            ("/a/**/z", "/a/z"),
            ("/a/**/z", "/a/b/z/c/z"),
            ("/**/b/**/d", "/a/b/c/b/x/d"),
            ("/a/v*.j*n", "/a/v1.x.json"),
            ("/a*a", "/aXaYa"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/", "/a"),
            ("/a", "/A"),
            ("/a/*", "/a"),
            ("/a/*", "/a/b/c"),
            ("/a/**", "/ab"),
            ("/a/**/z", "/a/b"),
            ("/a/v*.json", "/a/v1.json.bak"),
            ("/a*a", "/a"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn no_spelling_passes_a_deny_rule() {
        let admin =
            rule("access = 'deny'\nhosts = ['web.example', '*.inner.example']\npaths = ['/admin/**']");
        for path in [
            "/admin",
            "/admin/",
            "//admin",
            "/%61dmin",
            "/%2561dmin",
            "/x/../admin",
            "/x/%2e%2e/admin/y",
            "/admin%2f..",
            "/admin%2F%2e%2e",
            "/ADMIN/users",
            "/admin;params",
            "/x/..;/admin",
            "/x\\..\\admin",
            "/a\\b/../admin",
            "/a%5cb/%2e%2e/admin",
            "/a%3F/%2e%2e;/admin",
            "/a%23/..;/admin",
            "/a%2fb/%2e%2e/admin",
            "/admin%00",
            "/admin#x",
        ] {
            assert!(admin.matches(&get(path)), "{path}");
        }
        for host in
            ["WEB.example", "web.example.", "a.inner.example", "a.b.inner.example.", "u@web.example", ""]
        {
            assert!(admin.matches(&request("GET", host, "/admin")), "{host}");
        }
        assert!(admin.matches(&get(&format!("/{}", "x".repeat(5000)))), "what is not read may be anything");
        for path in ["/", "/administrator", "/x/admin", "/x%2fadmin"] {
            assert!(!admin.matches(&get(path)), "{path}");
        }
        for host in ["inner.example", "xinner.example", "web.example.org", "other"] {
            assert!(!admin.matches(&request("GET", host, "/admin")), "{host}");
        }
    }

    #[test]
    fn an_allow_rule_wants_every_reading_allowed() {
        let api = rule("access = 'allow'\nmethods = ['GET']\nhosts = ['web.example']\npaths = ['/api/**']");
        for path in ["/api", "/api/x", "/api/a%20b", "/api/x/../y", "/api/caf%c3%a9"] {
            assert!(api.matches(&get(path)), "{path}");
        }
        for path in [
            "/API",
            "/api/../admin",
            "/api/%2e%2e/admin",
            "/api/..;/admin",
            "/api%2f..%2fadmin",
            "/x/../api",
            "/",
            "",
            "/api/..\\..\\admin",
            "/api/a\\b/../../admin",
            "/api/%23/%2e%2e;/%2e%2e;/admin",
            "/api/a%20b/../c",
        ] {
            assert!(!api.matches(&get(path)), "{path}");
        }
        assert!(!api.matches(&get(&format!("/api/{}", "x".repeat(5000)))), "what is not read is not allowed");
        assert!(!api.matches(&request("get", "web.example", "/api")), "methods are case-sensitive");
        assert!(!api.matches(&request("GET", "", "/api")));
        assert!(!api.matches(&request("GET", "user@web.example", "/api")));
    }

    #[test]
    fn methods_of_deny_rules_are_read_in_any_case() {
        let writes = rule("access = 'deny'\nmethods = ['POST', 'DELETE']");
        assert!(writes.matches(&request("post", "x", "/")) && writes.matches(&request("DELETE", "x", "/")));
        assert!(!writes.matches(&get("/")));
    }

    #[test]
    fn mistakes_are_refused_with_what_is_wrong() {
        for (text, needle) in [
            ("paths = ['admin']", "slash"),
            ("paths = ['/admin/']", "/a/**"),
            ("paths = ['/a//b']", "doubled"),
            ("paths = ['/%61']", "decoded"),
            ("paths = ['/a?b=1']", "query"),
            ("paths = ['/a/../b']", "dot segments"),
            ("paths = ['/a**']", "alone"),
            ("hosts = ['example.com:80']", "ports"),
            ("hosts = ['*']", "host name"),
            ("hosts = ['a.*.com']", "host name"),
            ("methods = ['get']", "capital"),
            ("mode = 'maybe'", "maybe"),
            ("path = ['/a']", "path"),
        ] {
            let error =
                toml::from_str::<HttpRule>(&format!("access = 'deny'\n{text}")).unwrap_err().to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
        assert!(toml::from_str::<HttpRule>("paths = ['/a']").unwrap_err().to_string().contains("access"));
    }

    proptest::proptest! {
        /// What an allow rule lets through, no deny rule of the same pattern would have missed.
        #[test]
        fn what_is_allowed_would_have_been_denied(path in "/[/a.%2eEfF;\\\\#? b]{0,40}", pattern in "(/(a|\\*|\\*\\*|b\\*)){1,4}") {
            let [allow, deny] = ["allow", "deny"].map(|access| rule(&format!("access = '{access}'\npaths = ['{pattern}']")));
            let request = get(&path);
            proptest::prop_assert!(!allow.matches(&request) || deny.matches(&request));
        }
    }
}
