//! What `secrets.toml` says, compiled once per process into what the scanner looks up.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;

use super::form::decoded;

/// How far a name is looked back for from the separator behind it, bytes.
pub(super) const LOOK_BACK_BYTES_MAX: usize = 96;
/// Most entries of `[[keyword]]`: each costs one search of its own.
pub(super) const KEYWORDS_MAX: usize = 4;

/// The names and shapes of the data file.
pub(super) static SECRETS: LazyLock<Secrets> = LazyLock::new(Secrets::compile);

#[derive(Debug)]
pub(super) struct Secrets {
    pub(super) keywords: Vec<Keyword>,
    pub(super) tokens: Vec<Token>,
    /// Finds the prefixes of `tokens`; a pattern's number is the token's index.
    pub(super) prefixes: AhoCorasick,
    pub(super) prefix_bytes_max: usize,
    pub(super) argv: Argv,
    bodies: Vec<BodyEntry>,
    names: Vec<Name>,
    /// By the last two bytes, which of `endings` has the names that end with them; 0 is empty. Rejects most separators at once.
    last_pairs: Vec<u16>,
    /// Places in `names`, in their order.
    endings: Vec<Vec<usize>>,
}

/// A word after which a literal is a secret.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keyword {
    pub(super) rule: String,
    /// Lower case. Its last byte is what the scanner looks for.
    pub(super) stem: String,
    #[serde(default)]
    pub(super) rest: String,
    pub(super) between: Vec<String>,
}

impl Keyword {
    pub(super) fn allows_between(&self, word: &[u8]) -> bool {
        self.any_between() || self.between.iter().any(|allowed| word.eq_ignore_ascii_case(allowed.as_bytes()))
    }

    pub(super) fn any_between(&self) -> bool {
        self.between.iter().any(|allowed| allowed == "*")
    }
}

/// A name with a value after it.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) rule: &'static str,
    pub(super) place: Place,
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The last part of a name.
    Suffix,
    /// A whole name.
    Word,
    /// A whole name at the beginning of a field of a query or a form.
    Field,
    /// A header field: its value goes to the end of the line.
    Header,
}

/// A secret known by its shape.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) rule: &'static str,
    pub(super) prefix: Vec<u8>,
    /// Fewer characters than this are no secret.
    pub(super) min: usize,
    pub(super) set: Set,
}

/// The bytes that a token may consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Set {
    Token,
    Hex,
    /// Anything up to five dashes.
    Pem,
}

impl Set {
    pub(super) fn contains(self, byte: u8) -> bool {
        match self {
            Set::Token => byte.is_ascii_alphanumeric() || b"-_.~+/=$:%".contains(&byte),
            Set::Hex => byte.is_ascii_hexdigit(),
            Set::Pem => true,
        }
    }
}

/// What authenticates in the arguments of programs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Argv {
    pub(super) options: Vec<String>,
    pub(super) credentials: Vec<String>,
    pub(super) short: Vec<Short>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Short {
    pub(super) programs: Vec<String>,
    pub(super) option: String,
    pub(super) value: ShortValue,
}

/// Where the value of a short option stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ShortValue {
    Attached,
    Either,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keyword: Vec<Keyword>,
    key: Vec<KeyEntry>,
    body: Vec<BodyEntry>,
    token: Vec<TokenEntry>,
    argv: Argv,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    rule: String,
    #[serde(default)]
    suffixes: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    headers: Vec<String>,
}

/// Bodies of HTTP that are not recorded.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyEntry {
    rule: String,
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    last: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    rule: String,
    prefixes: Vec<String>,
    min: usize,
    set: Set,
}

impl Secrets {
    #[expect(clippy::expect_used, reason = "the file is part of the program, and a test reads it")]
    fn compile() -> Self {
        let file: File = toml::from_str(include_str!("secrets.toml")).expect("secrets.toml is valid");
        let names: Vec<Name> = file.key.into_iter().flat_map(KeyEntry::names).collect();
        let tokens: Vec<Token> = file.token.into_iter().flat_map(TokenEntry::tokens).collect();
        let (mut last_pairs, mut endings) = (vec![0; 1 << 16], vec![Vec::new()]);
        for (place, name) in names.iter().enumerate() {
            if let Some(pair) = last_pair(&name.text) {
                if last_pairs[pair] == 0 {
                    last_pairs[pair] = endings.len() as u16;
                    endings.push(Vec::new());
                }
                endings[usize::from(last_pairs[pair])].push(place);
            }
        }
        let prefixes = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostFirst)
            .build(tokens.iter().map(|token| &token.prefix))
            .expect("a few short prefixes");
        let prefix_bytes_max = tokens.iter().map(|token| token.prefix.len()).max().unwrap_or(0);
        Self {
            keywords: file.keyword,
            tokens,
            prefixes,
            prefix_bytes_max,
            argv: file.argv,
            bodies: file.body,
            names,
            last_pairs,
            endings,
        }
    }

    /// Whether a value that is given this name is a secret, whatever the name stands in.
    pub(super) fn is_secret_name(&self, name: &[u8]) -> bool {
        let has_stem = |keyword: &Keyword| {
            let stem = keyword.stem.as_bytes();
            keyword.rest.is_empty() && name.windows(stem.len()).any(|part| part.eq_ignore_ascii_case(stem))
        };
        self.name(name, false).is_some() || self.keywords.iter().any(has_stem)
    }

    /// The rule by which the bodies of a request for this path of this host are withheld. The path counts as it is
    /// spelled and as a server may read it.
    pub(super) fn withheld_body(&self, host: &[u8], path: &[u8]) -> Option<&str> {
        let host = &host[..host.iter().rposition(|byte| *byte != b'.').map_or(0, |last| last + 1)];
        self.body(host, path).or_else(|| self.body(host, &plain_path(path)))
    }

    fn body(&self, host: &[u8], path: &[u8]) -> Option<&str> {
        let is = |known: &String, text: &[u8]| text.eq_ignore_ascii_case(known.as_bytes());
        let last = path.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty()).unwrap_or_default();
        let entry = self.bodies.iter().find(|entry| {
            entry.hosts.iter().any(|known| is(known, host))
                || entry.last.iter().any(|known| is(known, last))
                || entry.paths.iter().any(|known| {
                    path.len() >= known.len() && path.windows(known.len()).any(|part| is(known, part))
                })
        });
        entry.map(|entry| entry.rule.as_str())
    }

    /// Cheap and generous.
    pub(super) fn may_end_name(&self, bytes: &[u8]) -> bool {
        last_pair(bytes).is_none_or(|pair| self.last_pairs[pair] > 0)
    }

    /// Those that end as `bytes` do.
    fn names_ending(&self, bytes: &[u8]) -> impl Iterator<Item = &Name> {
        let ending = last_pair(bytes).map_or(0, |pair| self.last_pairs[pair]);
        self.endings[usize::from(ending)].iter().map(|place| &self.names[*place])
    }

    pub(super) fn ends_with_name(&self, bytes: &[u8]) -> bool {
        let ends_with = |name: &Name| {
            let start = bytes.len().checked_sub(name.text.len());
            start.is_some_and(|start| bytes[start..].eq_ignore_ascii_case(&name.text))
        };
        self.names_ending(bytes).any(ends_with)
    }

    /// The name that `word` is. With `glued`, its first byte may belong to what stands before it.
    pub(super) fn name(&self, word: &[u8], glued: bool) -> Option<&Name> {
        self.names_ending(word)
            .find(|name| name.is(word) || (glued && !word.is_empty() && name.is(&word[1..])))
    }
}

/// Without escapes, parameters (`;x=y`), empty parts and dots; ends with a slash.
fn plain_path(path: &[u8]) -> Vec<u8> {
    let mut parts = Vec::new();
    let path = decoded(path);
    for part in path.split(|byte| *byte == b'/') {
        match part.split(|byte| *byte == b';').next().unwrap_or_default() {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut plain = vec![b'/'];
    for part in parts {
        plain.extend_from_slice(part);
        plain.push(b'/');
    }
    plain
}

fn last_pair(bytes: &[u8]) -> Option<usize> {
    let [.., first, second] = bytes else { return None };
    Some(usize::from(first.to_ascii_lowercase()) << 8 | usize::from(second.to_ascii_lowercase()))
}

impl Name {
    fn is(&self, word: &[u8]) -> bool {
        let Some(start) = word.len().checked_sub(self.text.len()) else { return false };
        if !word[start..].eq_ignore_ascii_case(&self.text) {
            return false;
        }
        let before = start.checked_sub(1).map(|at| word[at]);
        match (self.place, before) {
            (_, None) => true,
            (Place::Suffix, Some(before)) => {
                !before.is_ascii_alphanumeric()
                    || (before.is_ascii_lowercase() && word[start].is_ascii_uppercase())
            }
            // Of an option or an element, as in --pass=x.
            (Place::Word | Place::Field | Place::Header, Some(_)) => {
                word[..start].iter().all(|byte| b"-.".contains(byte))
            }
        }
    }
}

impl KeyEntry {
    fn names(self) -> impl Iterator<Item = Name> {
        let rule: &'static str = self.rule.leak();
        let places = [
            (Place::Header, self.headers),
            (Place::Suffix, self.suffixes),
            (Place::Word, self.names),
            (Place::Field, self.fields),
        ];
        places.into_iter().flat_map(move |(place, texts)| {
            texts.into_iter().map(move |text| Name { rule, place, text: text.into_bytes() })
        })
    }
}

impl TokenEntry {
    fn tokens(self) -> impl Iterator<Item = Token> {
        let rule: &'static str = self.rule.leak();
        let (min, set) = (self.min, self.set);
        self.prefixes.into_iter().map(move |prefix| Token { rule, prefix: prefix.into_bytes(), min, set })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_valid_and_its_prefixes_do_not_contain_each_other() {
        let prefixes: Vec<_> = SECRETS.tokens.iter().map(|token| &token.prefix).collect();
        for (at, one) in prefixes.iter().enumerate() {
            for (other_at, other) in prefixes.iter().enumerate() {
                let inside = other.windows(one.len()).any(|part| part == one.as_slice());
                assert!(at == other_at || !inside, "{} {}", one.escape_ascii(), other.escape_ascii());
            }
        }
        assert!(
            SECRETS.keywords.len() <= KEYWORDS_MAX && SECRETS.names.iter().all(|name| name.text.len() > 1)
        );
        assert!(SECRETS.keywords.iter().all(|keyword| keyword.stem == keyword.stem.to_lowercase()));
    }

    #[test]
    fn names_are_found_at_the_end_of_longer_names() {
        for word in
            ["token", "GITHUB_TOKEN", "accessToken", "x-vault-token", "--token", "OPENAI_API_KEY", "a.secret"]
        {
            assert!(SECRETS.name(word.as_bytes(), false).is_some(), "{word}");
        }
        for word in ["tokens", "max_tokens", "monkey", "primary_key", "secretary", "Atoken", "xkey"] {
            assert!(SECRETS.name(word.as_bytes(), false).is_none(), "{word}");
        }
        assert!(SECRETS.name(b"Atoken", true).is_some());
    }
}
