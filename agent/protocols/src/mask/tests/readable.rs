//! Masking more than needed is allowed, but a record in which nothing can be read helps nobody.

use bytes::Bytes;

use crate::mask::{Mark, MaskPlan};

fn text(sql: &str) -> String {
    MaskPlan::standard().text(&Bytes::copy_from_slice(sql.as_bytes())).to_text()
}

fn raw(bytes: &[u8]) -> String {
    MaskPlan::standard().bytes(&Bytes::copy_from_slice(bytes)).bytes().escape_ascii().to_string()
}

#[test]
fn only_the_value_is_masked() {
    assert_eq!(
        text("ALTER ROLE bob PASSWORD 'abc' VALID UNTIL '2030'"),
        "ALTER ROLE bob PASSWORD '***' VALID UNTIL '2030'"
    );
    assert_eq!(text("CREATE USER a PASSWORD 'x'; SELECT 'y'"), "CREATE USER a PASSWORD '*'; SELECT 'y'");
    assert_eq!(
        text("OPTIONS (user 'bob', password 'abc', x 'y')"),
        "OPTIONS (user 'bob', password '***', x 'y')"
    );
    assert_eq!(
        text("SELECT dblink('host=db password=abc user=bob', 'select 1')"),
        "SELECT dblink('host=db password=*** user=bob', 'select 1')"
    );
    assert_eq!(
        text("SELECT dblink('host=db password=abc', 'select 1')"),
        "SELECT dblink('host=db password=***', 'select 1')"
    );
    assert_eq!(text("SELECT dblink('postgres://u:p@h/d', 'x')"), "SELECT dblink('postgres://u:*@h/d', 'x')");
    assert_eq!(
        raw(b"GET /?key=abc&page=2 HTTP/1.1\r\nHost: x\r\n"),
        "GET /?key=***&page=2 HTTP/1.1\\r\\nHost: x\\r\\n"
    );
    assert_eq!(raw(b"Cookie: abc\r\nHost: x\r\n\r\n"), "Cookie: ***\\r\\nHost: x\\r\\n\\r\\n");
    assert_eq!(raw(b"{\"token\":\"abc\",\"x\":\"y\"}"), "{\\\"token\\\":\\\"***\\\",\\\"x\\\":\\\"y\\\"}");
    assert_eq!(raw(b"Uid=;Pwd=;Database=x"), "Uid=;Pwd=;Database=x");
}

#[test]
fn what_only_speaks_of_secrets_stays() {
    for plain in [
        "SELECT password, 'abc' FROM users WHERE name = 'bob'",
        "SELECT id FROM users WHERE password IS NOT NULL AND name = 'bob'",
        "SELECT 1 WHERE kind = 'password' AND x = 'abc'",
        "INSERT INTO users (name, password) VALUES ($1, $2)",
        "ALTER ROLE bob PASSWORD NULL VALID UNTIL 'infinity'",
        "SELECT password::text || 'x' FROM t",
        "SELECT token::text, 'x' FROM t",
        "CREATE TABLE t (password text, name text DEFAULT 'bob')",
        "SELECT identifier = 'x' FROM t",
        "SELECT '12:34:56'::time, 'http://host:8080/path', 'a://[::1]:5432/x@y'",
        "SELECT max_tokens = 5, primary_key = 'x', key = 'y', 'monkey=1' FROM t",
        "GET /path?page=2&keys=1 HTTP/1.1\r\nHost: example.com:8080\r\nAccept: */*\r\n",
        "task-force desk-0123456789012345678901234567890",
        "postgres://bob@db:5432/x",
        "ssh://git@forge.example.com/x.git",
        "https://registry.example.com/a/image@sha256:0123456789abcdef",
        "postgres://db1:5432,db2:5433/x?user=me@y",
    ] {
        assert_eq!(text(plain), plain);
        assert_eq!(raw(plain.as_bytes()), plain.as_bytes().escape_ascii().to_string());
    }
}

#[test]
fn nothing_found_is_nothing_copied() {
    let plain = Bytes::from(vec![b'x'; 4096]);
    let masked = MaskPlan::standard().bytes(&plain);
    assert_eq!(masked.bytes().as_ptr(), plain.as_ptr());
}

#[test]
fn marks_say_where_and_why() {
    let masked = MaskPlan::standard().bytes(&Bytes::from_static(b"pwd=abc x://u:de@h"));
    let marks =
        [Mark { offset: 4, length: 3, rule: "password" }, Mark { offset: 14, length: 2, rule: "url" }];
    assert_eq!(masked.marks(), marks);
}

#[test]
fn ranges_are_withheld() {
    let message = Bytes::from_static(b"p\0\0\0\x0asecret\0");
    let masked = MaskPlan::standard().withheld(&message, &[5..11, 90..99], "postgres-password");
    assert_eq!(&masked.bytes()[..], b"p\0\0\0\x0a******\0");
    assert_eq!(masked.marks(), [Mark { offset: 5, length: 6, rule: "postgres-password" }]);
}

#[test]
fn a_mask_stays_in_its_field() {
    let frames = Bytes::from_static(b"D\0\0\0\x0fpassword=abcDEFG");
    let masked = MaskPlan::standard().fields(&frames, || Some(5..17));
    assert_eq!(&masked.bytes()[..], b"D\0\0\0\x0fpassword=***DEFG");
    let plain = Bytes::from_static(b"D\0\0\0\x0fnothing to hide");
    let masked = MaskPlan::standard()
        .fields(&plain, || -> Option<std::ops::Range<usize>> { panic!("asked for nothing") });
    assert_eq!(masked.bytes(), &plain);
}
