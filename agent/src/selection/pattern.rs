//! Paths of executables as rules give them: exact, or with wildcards.

use serde::{Deserialize, Serialize};

/// Longest pattern, bytes: a path can be no longer.
const PATTERN_BYTES_MAX: usize = 4096;

/// `/usr/bin/psql`; `/opt/*/bin/node`; `/srv/**/claude`.
///
/// `*` stands for any characters of one component, `**` for any characters at all, `?` for one byte of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct PathPattern {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Within,
    /// `**`
    Across,
}

impl PathPattern {
    /// Takes time in proportion to both lengths, whatever stands in them.
    pub(super) fn matches(&self, path: &str) -> bool {
        // reached[n]: the tokens so far match the first n bytes.
        let path = path.as_bytes();
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; path.len() + 1];
            match token {
                Token::Byte(_) | Token::One => {
                    for (at, byte) in path.iter().enumerate() {
                        next[at + 1] = reached[at]
                            && match token {
                                Token::Byte(wanted) => byte == wanted,
                                _ => *byte != b'/',
                            };
                    }
                }
                Token::Within | Token::Across => {
                    let mut inside = false;
                    for at in 0..=path.len() {
                        let stops = at > 0 && *token == Token::Within && path[at - 1] == b'/';
                        inside = reached[at] || (inside && !stops);
                        next[at] = inside;
                    }
                }
            }
            reached = next;
        }
        reached[path.len()]
    }
}

impl TryFrom<String> for PathPattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if !text.starts_with('/') && !text.starts_with("**/") {
            return Err(format!("{text:?} is not an absolute path, nor begins with \"**/\""));
        }
        if text.len() > PATTERN_BYTES_MAX {
            return Err(format!("a pattern of {} bytes, at most {PATTERN_BYTES_MAX} are taken", text.len()));
        }
        let mut tokens: Vec<Token> = Vec::new();
        for byte in text.bytes() {
            match (byte, tokens.last()) {
                (b'*', Some(Token::Within | Token::Across)) => {
                    tokens.pop();
                    tokens.push(Token::Across);
                }
                (b'*', _) => tokens.push(Token::Within),
                (b'?', _) => tokens.push(Token::One),
                _ => tokens.push(Token::Byte(byte)),
            }
        }
        Ok(Self { text, tokens })
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn exact_paths_and_wildcards() {
        for (text, matching, others) in [
            (
                "/usr/bin/psql",
                vec!["/usr/bin/psql"],
                vec!["/usr/bin/psql2", "/usr/bin", "x/usr/bin/psql", ""],
            ),
            (
                "/opt/*/bin/node",
                vec!["/opt/a/bin/node", "/opt//bin/node"],
                vec!["/opt/a/b/bin/node", "/opt/bin/node"],
            ),
            (
                "/srv/**/claude",
                vec!["/srv/a/claude", "/srv/a/b/claude"],
                vec!["/srv/claude2", "/srv/a/Claude"],
            ),
            ("**/claude", vec!["/x/claude", "/claude"], vec!["/x/claude/y"]),
            (
                "/usr/bin/python3.1?",
                vec!["/usr/bin/python3.11"],
                vec!["/usr/bin/python3.1", "/usr/bin/python3.1/"],
            ),
            ("/a*b*", vec!["/ab", "/axxbxx", "/abb"], vec!["/a/b", "/ba"]),
            ("/**", vec!["/", "/a/b"], vec![""]),
            ("/a.b", vec!["/a.b"], vec!["/axb"]),
        ] {
            for path in matching {
                assert!(pattern(text).matches(path), "{text} {path}");
            }
            for path in others {
                assert!(!pattern(text).matches(path), "{text} {path}");
            }
        }
    }

    #[test]
    fn a_pattern_that_could_never_match_is_refused() {
        for wrong in ["psql", "", "*/psql", "./psql"] {
            assert!(PathPattern::try_from(wrong.to_owned()).unwrap_err().contains("absolute"), "{wrong}");
        }
        assert!(PathPattern::try_from("/".repeat(PATTERN_BYTES_MAX + 1)).is_err());
    }

    proptest! {
        /// The plain definition, in exponential time.
        #[test]
        fn agrees_with_the_definition(text in "/[a/*?]{0,7}", path in "/[ab/]{0,7}") {
            fn plain(tokens: &[Token], path: &[u8]) -> bool {
                match tokens.split_first() {
                    None => path.is_empty(),
                    Some((Token::Byte(wanted), rest)) => path.first() == Some(wanted) && plain(rest, &path[1..]),
                    Some((Token::One, rest)) => path.first().is_some_and(|byte| *byte != b'/') && plain(rest, &path[1..]),
                    Some((star, rest)) => {
                        plain(rest, path)
                            || path.first().is_some_and(|byte| *star == Token::Across || *byte != b'/')
                                && plain(tokens, &path[1..])
                    }
                }
            }
            let pattern = pattern(&text);
            prop_assert_eq!(pattern.matches(&path), plain(&pattern.tokens, path.as_bytes()));
        }

        #[test]
        fn a_pattern_survives_the_way_to_text_and_back(text in "/[a-z/*?]{0,20}") {
            prop_assert_eq!(String::from(pattern(&text)), text);
        }
    }
}
