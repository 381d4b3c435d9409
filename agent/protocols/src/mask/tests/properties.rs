//! What holds for all bytes, cut in all ways.

use bytes::Bytes;
use proptest::prelude::*;

use crate::mask::{MaskPlan, Masked, Syntax};

/// Pieces that mean something to the scanner, and bytes that do not.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let words = proptest::sample::select(vec![
        "password",
        "PASSWORD ",
        "passw",
        "identified",
        " by ",
        "pwd",
        "token",
        "key",
        "sig",
        "cookie",
        "Authorization",
        "Bearer ",
        "x-api-key",
        "=",
        ":",
        "::",
        "://",
        "'",
        "''",
        "\"",
        "`",
        "\\",
        "\\\\",
        "$$",
        "$a$",
        "$",
        "/*",
        "*/",
        "--",
        "#",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\r\n ",
        "\0",
        "@",
        ";",
        "&",
        "?",
        ",",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "}}",
        "E",
        "U&",
        "_utf8",
        "crypt(",
        "ghp_",
        "sk-",
        "eyJ",
        "md5",
        "SCRAM-SHA-256$",
        "PRIVATE KEY-----",
        "-----END",
        "u:p@h",
        "https",
        "0123456789abcdef0123456789abcdef",
        "abc",
        "for",
        "to",
        "replace",
        "*",
        "***",
    ])
    .prop_map(|word| word.as_bytes().to_vec());
    let other = proptest::collection::vec(any::<u8>(), 1..4);
    let long = (any::<u8>(), 1_usize..700).prop_map(|(byte, length)| vec![byte; length]);
    proptest::collection::vec(prop_oneof![20 => words, 2 => other, 1 => long], 0..60)
        .prop_map(|parts| parts.concat())
}

fn whole(bytes: &[u8], syntax: Syntax) -> Masked {
    let bytes = Bytes::copy_from_slice(bytes);
    match syntax {
        Syntax::Sql => MaskPlan::standard().text(&bytes),
        Syntax::Bytes => MaskPlan::standard().bytes(&bytes),
    }
}

/// The output in pieces, and the bytes that its marks cover.
fn streamed(bytes: &[u8], syntax: Syntax, cuts: &[usize]) -> (Vec<u8>, Vec<(usize, &'static str)>) {
    let mut stream = MaskPlan::standard().stream(syntax);
    let (mut shown, mut marked, mut rest, mut pushed) = (Vec::new(), Vec::new(), bytes, 0);
    let mut take = |masked: Masked| {
        for mark in masked.marks() {
            let start = shown.len() + mark.offset as usize;
            marked.extend((start..start + mark.length as usize).map(|at| (at, mark.rule)));
        }
        shown.extend_from_slice(masked.bytes());
        shown.len()
    };
    for cut in cuts.iter().cycle() {
        let (chunk, later) = rest.split_at((*cut).min(rest.len()));
        rest = later;
        pushed += chunk.len();
        let out = take(stream.push(Bytes::copy_from_slice(chunk)));
        assert!(pushed - out <= 1024, "held {}", pushed - out);
        if rest.is_empty() {
            break;
        }
    }
    take(stream.finish());
    (shown, marked)
}

fn syntax() -> impl Strategy<Value = Syntax> {
    prop_oneof![Just(Syntax::Sql), Just(Syntax::Bytes)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_cuts_do_not_matter(bytes in bytes(), syntax in syntax(), cuts in proptest::collection::vec(1_usize..40, 1..5)) {
        let masked = whole(&bytes, syntax);
        let marked: Vec<_> = masked.marks().iter().flat_map(|mark| {
            (mark.offset as usize..(mark.offset + mark.length) as usize).map(|at| (at, mark.rule))
        }).collect();
        prop_assert_eq!(streamed(&bytes, syntax, &cuts), (masked.bytes().to_vec(), marked));
    }

    #[test]
    fn only_marked_bytes_change(bytes in bytes(), syntax in syntax()) {
        let masked = whole(&bytes, syntax);
        let mut expected = bytes.clone();
        for mark in masked.marks() {
            expected[mark.offset as usize..(mark.offset + mark.length) as usize].fill(b'*');
        }
        prop_assert_eq!(&masked.bytes()[..], &expected[..]);
    }
}

/// Frames with a length before each field, as DataRow has them.
fn framed(fields: &[Vec<u8>]) -> (Vec<u8>, Vec<std::ops::Range<usize>>) {
    let (mut frames, mut ranges) = (Vec::new(), Vec::new());
    for field in fields {
        frames.push(b'D');
        frames.extend_from_slice(&(field.len() as u32).to_be_bytes());
        ranges.push(frames.len()..frames.len() + field.len());
        frames.extend_from_slice(field);
    }
    (frames, ranges)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// A run of frames in which nothing is found has no field in which something would be.
    #[test]
    fn a_run_hides_no_field(fields in proptest::collection::vec(bytes(), 1..4)) {
        let (frames, ranges) = framed(&fields);
        let plan = MaskPlan::standard();
        let masked = plan.fields(&Bytes::from(frames.clone()), || ranges.clone());
        for (field, range) in fields.iter().zip(ranges) {
            let alone = whole(field, Syntax::Bytes);
            prop_assert_eq!(
                masked.bytes()[range].escape_ascii().to_string(),
                alone.bytes().escape_ascii().to_string()
            );
        }
    }

    /// Pieces of what bodies consist of reach deeper than random bytes.
    #[test]
    fn the_fuzz_entry_holds_for_bodies(
        cut in any::<u8>(),
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            "--b", "\r\n--b\r\n", "\r\n--b", "\r\n\r\n", "Content-Disposition: form-data; name=\"password\"", "<Password>",
            "<a:Token x='y'", ">", "</Password>", "<![CDATA[", "]]>", "<", "p%61ssword=", "token%3D", "&", "=x", "%", "%2", "+",
            "\"password\":\"", "\"", "abc", "scheme://u:", "@h", "\n",
        ]), 0..40),
    ) {
        crate::mask::fuzz(&[&[cut % 24][..], pieces.concat().as_bytes()].concat());
    }

    #[test]
    fn the_fuzz_entry_holds(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        crate::mask::fuzz(&bytes);
    }
}

/// Twice the input is at most about twice the work, on what is worst for the scanner.
#[test]
fn the_work_is_linear() {
    for worst in [
        "=",
        ":",
        "token=",
        "password",
        "password ",
        "''",
        "'",
        "\\",
        "://",
        "x://u:",
        "$a",
        "/*",
        "PASSWORD/*",
        "identified ",
        "md5",
        "ghp_",
        "wwww",
        "{\"token\":\"",
        "authorization:\n ",
        "password='",
        "password=a ",
        "password $$x$$ ",
    ] {
        let steps = |bytes: usize| {
            let input = worst.repeat(bytes / worst.len());
            super::super::scan::steps(input.as_bytes())
        };
        let (once, twice) = (steps(100_000), steps(200_000));
        assert!(twice <= 2 * once + 1000, "{worst}: {once} {twice}");
        assert!(once <= 200_000, "{worst}: {once}");
    }
}
