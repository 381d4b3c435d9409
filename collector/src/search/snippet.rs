//! The piece of a text that answers, and what in it does. Only texts that are in the index come here, and those are
//! masked.

use super::query::Text;

/// Longest snippet, characters.
pub const SNIPPET_CHARS_MAX: usize = 160;
/// Characters kept before the first hit.
const BEFORE_CHARS: usize = 40;
/// Hits told in one snippet.
const HITS_MAX: usize = 32;

/// A piece of a text. Places are in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    pub text: String,
    /// (start, length), in order, not overlapping.
    pub hits: Vec<(usize, usize)>,
    /// Text was left out before, after it.
    pub cut: (bool, bool),
}

/// `None`: none of the texts is in it.
pub fn snippet(text: &str, sought: &[&Text]) -> Option<Snippet> {
    let chars: Vec<char> = text.chars().collect();
    let words = split(&chars);
    let mut hits: Vec<(usize, usize)> = Vec::new();
    for sought in sought {
        let wanted_chars: Vec<char> = sought.words.chars().collect();
        let wanted: Vec<String> = split(&wanted_chars).into_iter().map(|word| word.folded).collect();
        if wanted.is_empty() {
            continue;
        }
        for run in words.windows(wanted.len()) {
            if hits.len() >= HITS_MAX {
                break;
            }
            if matches(run, &wanted, sought.prefix) {
                let end = run.last().map_or(0, |word| word.end);
                hits.push((run[0].start, end));
            }
        }
    }
    hits.sort_unstable();
    let first = hits.first()?.0;
    let start = first.saturating_sub(BEFORE_CHARS);
    let end = (start + SNIPPET_CHARS_MAX).min(chars.len());
    let mut shown: Vec<(usize, usize)> = Vec::new();
    for (from, to) in hits {
        let (from, to) = (from.max(start), to.min(end));
        match shown.last_mut() {
            _ if from >= to => {}
            Some(last) if from < last.1 => last.1 = last.1.max(to),
            _ => shown.push((from, to)),
        }
    }
    Some(Snippet {
        text: chars[start..end].iter().collect(),
        hits: shown.into_iter().map(|(from, to)| (from - start, to - from)).collect(),
        cut: (start > 0, end < chars.len()),
    })
}

struct Word {
    start: usize,
    end: usize,
    folded: String,
}

/// Letters and digits that stand together, as the index splits them.
fn split(chars: &[char]) -> Vec<Word> {
    let mut words = Vec::new();
    let mut start = None;
    for at in 0..=chars.len() {
        let inside = chars.get(at).is_some_and(|c| c.is_alphanumeric());
        match (start, inside) {
            (None, true) => start = Some(at),
            (Some(from), false) => {
                let folded = chars[from..at].iter().flat_map(|c| c.to_lowercase()).collect();
                words.push(Word { start: from, end: at, folded });
                start = None;
            }
            _ => {}
        }
    }
    words
}

fn matches(run: &[Word], wanted: &[String], prefix: bool) -> bool {
    let last = wanted.len() - 1;
    run.iter().zip(wanted).enumerate().all(|(at, (word, wanted))| match prefix && at == last {
        true => word.folded.starts_with(wanted.as_str()),
        false => word.folded == *wanted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::query::Within;

    fn text(words: &str, prefix: bool) -> Text {
        Text { words: words.into(), prefix, within: Within::Everything }
    }

    #[test]
    fn what_answers_is_marked() {
        let (drop, cust) = (text("drop table", false), text("cust", true));
        let found = snippet("-- x\nDROP  TABLE Customers; drop view v", &[&drop, &cust]).unwrap();
        assert_eq!(found.hits, [(5, 11), (17, 9)]);
        assert_eq!(found.cut, (false, false));
        assert_eq!(snippet("drop a table", &[&drop]), None);
        assert_eq!(snippet("drop table", &[&text("***", false)]), None);
        let overlap = snippet("a b c", &[&text("a b", false), &text("b c", false)]).unwrap();
        assert_eq!(overlap.hits, [(0, 5)]);
    }

    #[test]
    fn a_long_text_is_cut_around_the_first_hit() {
        let long = format!("{} é needle {}", "x ".repeat(500), "y ".repeat(500));
        let found = snippet(&long, &[&text("needle", false)]).unwrap();
        assert_eq!(found.text.chars().count(), SNIPPET_CHARS_MAX);
        assert_eq!(found.cut, (true, true));
        let (at, len) = found.hits[0];
        assert_eq!(found.text.chars().skip(at).take(len).collect::<String>(), "needle");
    }

    proptest::proptest! {
        #[test]
        fn hits_lie_inside_in_order(body in "\\PC{0,400}", words in "[a-z0-9 ]{1,4}", prefix: bool) {
            if let Some(found) = snippet(&body, &[&text(&words, prefix)]) {
                let len = found.text.chars().count();
                assert!(len <= SNIPPET_CHARS_MAX);
                let mut last = 0;
                for (at, hit) in found.hits {
                    assert!(at >= last && at + hit <= len && hit > 0);
                    last = at + hit;
                }
            }
        }
    }
}
