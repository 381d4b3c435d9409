//! Bytes of no known form: text where they are text, else escapes.

use std::fmt::Write as _;

/// Text as it is, line ends and other bytes as escapes: `GET / HTTP/1.1\r\n`, `\x16\x03\x01`.
pub fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    let mut utf8 = [0; 4];
                    for byte in c.encode_utf8(&mut utf8).bytes() {
                        let _ = write!(out, "\\x{byte:02x}");
                    }
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn nothing_reaches_a_terminal_as_a_control() {
        assert_eq!(escaped(b"a\r\n\t\\"), "a\\r\\n\\t\\\\");
        assert_eq!(escaped(b"\x1b[31m\x00"), "\\x1b[31m\\x00");
        assert_eq!(escaped("grün\u{9b}".as_bytes()), "grün\\xc2\\x9b");
        assert_eq!(escaped(b"\xff\xfe"), "\\xff\\xfe");
    }
}
