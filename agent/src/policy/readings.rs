//! The ways in which servers read the same request. A rule that compares text must not be passed by another spelling of
//! what it forbids: `//admin`, `/%61dmin`, `/x/../admin`, `/admin;v=1` are all `/admin` to somebody.
//!
//! A deny rule matches if any reading does, an allow rule only if all do. Servers mix these ways: one takes `\` for a slash
//! and another for a letter, and so they differ on what a `..` behind it takes back. Such mixtures are too many to be gone
//! through: a path with a dot segment among characters of several meanings has no readings, and is taken for the worst.

use std::ops::Range;

use weir_protocols::operation::Http;

/// A longer path is not read for rules: no deny rule is passed by it, and no allow rule allows it.
pub(super) const PATH_BYTES_MAX: usize = 4096;
/// The same for hosts; no DNS name is longer.
pub(super) const HOST_BYTES_MAX: usize = 255;

/// One request, as different servers may take it.
pub(super) struct Readings {
    /// As sent.
    pub(super) method: Vec<u8>,
    /// In lower case. Empty: the request names none, or one that is not read.
    pub(super) hosts: Vec<Vec<u8>>,
    /// Empty: not read, because it is too long or could be too many.
    pub(super) paths: Vec<Path>,
    /// The path is one: it begins with a slash.
    pub(super) is_rooted: bool,
}

/// A path without its first slash and a last one, and where its segments are. Without any it is the root, or no path at all
/// (CONNECT, `OPTIONS *`).
pub(super) struct Path {
    text: Vec<u8>,
    segments: Vec<Range<usize>>,
}

impl Readings {
    pub(super) fn of(request: &Http) -> Self {
        Self {
            method: request.method.to_vec(),
            hosts: hosts(&request.host),
            paths: paths(&request.path).into_iter().map(Path::new).collect(),
            is_rooted: request.path.first() == Some(&b'/'),
        }
    }
}

impl Path {
    fn new(text: Vec<u8>) -> Self {
        let mut segments = Vec::new();
        let mut begins = 0;
        for part in text.split(|byte| *byte == b'/').filter(|_| !text.is_empty()) {
            segments.push(begins..begins + part.len());
            begins += part.len() + 1;
        }
        Self { text, segments }
    }

    pub(super) fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    pub(super) fn segment(&self, at: &Range<usize>) -> &[u8] {
        &self.text[at.clone()]
    }
}

fn hosts(host: &[u8]) -> Vec<Vec<u8>> {
    let mut readings = Vec::new();
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return readings;
    }
    for host in [host.to_vec(), decode(host)] {
        let after_user = host.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
        for host in [&host[..], after_user] {
            // `host.` is the same name, fully qualified.
            let bare = host.iter().rposition(|byte| *byte != b'.').map_or(&[][..], |last| &host[..=last]);
            add(&mut readings, bare.to_ascii_lowercase());
        }
    }
    readings
}

fn paths(path: &[u8]) -> Vec<Vec<u8>> {
    let mut readings = Vec::new();
    if path.len() > PATH_BYTES_MAX {
        return readings;
    }
    add(&mut readings, trimmed(path).to_vec());
    if is_plain(path) {
        return readings;
    }
    let once = decode(path);
    // A front end that decodes and hands on makes the server behind it decode again.
    let twice = decode(&once);
    let levels = [path, &once, &twice];
    if has_several_meanings(path) && levels.into_iter().any(has_dot_segment) {
        return Vec::new();
    }
    for decoded in levels {
        let slashed: Vec<u8> = decoded.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
        for text in [bared(&slashed), slashed] {
            let parts: Vec<&[u8]> = trimmed(&text).split(|byte| *byte == b'/').collect();
            let folded: Vec<&[u8]> = parts.iter().filter(|part| !part.is_empty()).copied().collect();
            add(&mut readings, resolved(&folded).join(&b'/'));
            // Dots before slashes: there `//..` takes back nothing but the empty segment.
            let mut late = resolved(&parts);
            late.retain(|part| !part.is_empty());
            add(&mut readings, late.join(&b'/'));
            add(&mut readings, folded.join(&b'/'));
        }
    }
    readings
}

/// Everybody reads it the same way.
fn is_plain(path: &[u8]) -> bool {
    let odd = |byte: &u8| matches!(byte, b'%' | b';' | b'\\' | b'#' | b'?' | 0..=b' ' | 0x7f);
    !path.iter().any(odd) && !path.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

/// It holds characters that some servers take for a separator, an end or another character, and others for themselves.
fn has_several_meanings(path: &[u8]) -> bool {
    path.iter().any(|byte| matches!(byte, b'%' | b';' | b'\\' | b'#' | b'?'))
}

/// Somebody may take one of its segments for `.` or `..`.
fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let bare = segment.split(|byte| matches!(byte, b';' | b'?' | b'#' | 0)).next().unwrap_or_default();
        matches!(bare.trim_ascii_end(), b"." | b"..")
    })
}

/// Without the root's slash and one at the end: `/a/` is `/a`.
fn trimmed(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path)
}

/// Without what some servers take off: what follows `?`, `#` or a NUL, parameters (`;...`) and blanks at the end of a segment.
fn bared(path: &[u8]) -> Vec<u8> {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#' | 0)).unwrap_or(path.len());
    let mut bare = Vec::with_capacity(end);
    for (at, segment) in path[..end].split(|byte| *byte == b'/').enumerate() {
        if at > 0 {
            bare.push(b'/');
        }
        let segment = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        bare.extend_from_slice(segment.trim_ascii_end());
    }
    bare
}

/// Without dot segments (RFC 3986, 5.2.4).
fn resolved<'a>(parts: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let mut kept = Vec::with_capacity(parts.len());
    for part in parts {
        match *part {
            b"." => {}
            b".." => {
                kept.pop();
            }
            kept_part => kept.push(kept_part),
        }
    }
    kept
}

/// Percent-decoded once; what is no escape stays as it is.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(nibble(*high) << 4 | nibble(*low));
                after
            }
            _ => {
                decoded.push(*first);
                after
            }
        };
    }
    decoded
}

/// Of a hex digit.
fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn add<T: PartialEq>(readings: &mut Vec<T>, reading: T) {
    if !readings.contains(&reading) {
        readings.push(reading);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Vec<String> {
        let shown = |path: Vec<u8>| format!("/{}", String::from_utf8_lossy(&path));
        paths(path.as_bytes()).into_iter().map(shown).collect()
    }

    #[test]
    fn an_ordinary_path_has_one_reading() {
        for path in ["/", "/a/b.c", "/a/b/", "", "/~user/x-y_z:1@2,3"] {
            assert_eq!(read(path).len(), 1, "{path}");
        }
        assert_eq!(read("/a/b/"), ["/a/b"], "a slash at the end is no difference");
    }

    #[test]
    fn odd_spellings_are_found_to_be_what_they_may_be() {
        for path in [
            "//admin",
            "/./admin",
            "/%61dmin",
            "/%2561dmin",
            "/x/../admin",
            "/admin;params=1",
            "/admin%3fq=1",
            "/admin#top",
            "/admin%23",
            "/admin%00.png",
            "/admin%20",
            "/%5cadmin",
            "/admin%2f",
            "/../../admin",
        ] {
            assert!(read(path).contains(&"/admin".to_owned()), "{path}: {:?}", read(path));
        }
        assert!(read("/admin//../x").contains(&"/admin/x".to_owned()), "dots before slashes");
        assert!(read("/admin//../x").contains(&"/x".to_owned()), "slashes before dots");
    }

    #[test]
    fn dot_segments_among_characters_of_several_meanings_are_not_read() {
        for path in [
            "/x/%2e%2e/admin",
            "/x/%252e%252e/admin",
            "/x/..;/admin",
            "/x/.;v=1/admin",
            "/x%2f..%2fadmin",
            "/x\\..\\admin",
            "/admin%2f..",
            "/x/..%20/admin",
            "/x/..%00/admin",
            "/x/..%3f/admin",
            "/a\\b/../admin",
        ] {
            assert_eq!(read(path), [""; 0], "{path}");
        }
        for path in ["/a/../admin", "/a/./b", "/a/..b/%20", "/a;..", "/a/b..;v=1", "/...%20/x"] {
            assert!(!read(path).is_empty(), "{path}");
        }
    }

    #[test]
    fn hosts_lose_case_user_and_final_dot() {
        let read = |host: &str| -> Vec<String> {
            hosts(host.as_bytes()).into_iter().map(|host| String::from_utf8(host).unwrap()).collect()
        };
        assert_eq!(read("API.example.com."), ["api.example.com"]);
        assert!(read("a@b.example").contains(&"b.example".to_owned()));
        assert!(read("%61pi.example").contains(&"api.example".to_owned()));
        assert!(read("").is_empty() && read(&"a".repeat(HOST_BYTES_MAX + 1)).is_empty());
    }

    #[test]
    fn hostile_paths_have_few_readings_and_long_ones_none() {
        let odd = "/%2e%2ex/..x;//%25%32%65x\\".repeat(PATH_BYTES_MAX / 28);
        assert!((2..=19).contains(&paths(odd.as_bytes()).len()));
        assert!(paths(&[b'/'; PATH_BYTES_MAX + 1]).is_empty());
    }
}
