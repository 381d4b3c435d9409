//! What authenticates is never recorded: in heads, in URLs, in bodies of every form, however it is cut.

use proptest::prelude::*;

use super::playbook::Playbook;
use crate::coding::Coding;
use crate::coding::tests::gzip;
use crate::note::Outcome;
use crate::seam::Side::{Client, Upstream};

const SECRET: &str = "Zq7-pl4nted.s3cret";

/// No part of it is in the record, however the wire is cut. Gives the record of the request's side.
fn stays_out(client: &[u8], server: &[u8]) -> String {
    let mut recorded = String::new();
    for cut in [usize::MAX, 1, 3, 7, 50] {
        let mut play = Playbook::new();
        client.chunks(cut).for_each(|part| {
            play.client(part);
        });
        assert_eq!(play.take_server(), client, "the server gets all of it");
        server.chunks(cut).for_each(|part| {
            play.server(part);
        });
        play.end(Upstream);
        let all = play.all_recorded();
        for part in SECRET.as_bytes().windows(6) {
            let found = memchr::memmem::find(&all, part);
            assert!(found.is_none(), "cut {cut}: {}", all.escape_ascii());
        }
        recorded = play.recorded(1, Client);
        assert_eq!(recorded.chars().count(), client.len(), "lengths stay");
        assert_eq!(play.recorded(1, Upstream).chars().count(), server.len(), "lengths stay");
    }
    recorded
}

fn ok(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{fields}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn get(target: &str, fields: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n").into_bytes()
}

fn post(path: &str, media_type: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn fields_of_heads() {
    for field in [
        format!("Authorization: Basic {SECRET}"),
        format!("aUTHORIZATION:Bearer {SECRET}"),
        format!("Proxy-Authorization: Digest username=\"a\", response=\"{SECRET}\""),
        format!("Cookie: a=b; session={SECRET}; c=\"{SECRET}\""),
        format!("X-API-Key:  {SECRET}\t"),
        format!("X-Vault-Token: {SECRET}"),
        format!("X-My-Service-Secret: {SECRET}"),
        format!("X-Registry-Auth: {SECRET}"),
        format!("Referer: https://user:{SECRET}@shop/x"),
        format!("Referer: https://shop/x?a=b&access_token={SECRET}#c"),
        format!("Referer: https://shop/login?next=%2Fcb%3Fpassword%3D{SECRET}"),
    ] {
        let recorded = stays_out(&get("/", &format!("{field}\r\nAccept: */*\r\n")), &ok("", b"x"));
        assert!(
            recorded.ends_with("\r\nAccept: */*\r\n\r\n"),
            "no mask reaches into the next field: {recorded:?}"
        );
    }
    for field in [
        format!("Set-Cookie: id={SECRET}; HttpOnly"),
        format!("Location: https://shop/cb?code={SECRET}&state=1"),
        format!("X-Subject-Token: {SECRET}"),
    ] {
        stays_out(&get("/", ""), &ok(&format!("{field}\r\n"), b"x"));
    }
}

/// The mask of a line must not be taken for one that goes on in the next.
#[test]
fn fields_whose_places_touch() {
    for blanks in 0..80 {
        let pad = "x".repeat(blanks);
        let fields = format!(
            "A: token={SECRET}\r\nReferer: http://h/{pad}?token={SECRET}\r\nB: {pad} token={SECRET}\r\n"
        );
        stays_out(&get("/", &fields), &ok("", b"x"));
    }
}

#[test]
fn urls() {
    for target in [
        format!("/x?a=b&token={SECRET}&c=d"),
        format!("/x?sig={SECRET}"),
        format!("/x?X-Amz-Signature={SECRET}"),
        format!("/x?p%61ssword={SECRET}"),
        format!("/x?u=https%3a%2f%2fada%3A{SECRET}%40host%2f"),
    ] {
        stays_out(&get(&target, ""), &ok("", b"x"));
    }
    // It is refused, and on record nevertheless.
    let mut play = Playbook::new();
    play.client(get(&format!("http://ada:{SECRET}@shop/x"), "")).reaches_server("").answered(400, true);
    let recorded = play.all_recorded();
    for part in SECRET.as_bytes().windows(6) {
        assert!(memchr::memmem::find(&recorded, part).is_none(), "{}", recorded.escape_ascii());
    }
    assert!(play.recorded(1, Client).starts_with("GET http://ada:"), "{}", play.recorded(1, Client));
    play.ended(1, Outcome::Denied, "400", "the request target names a user");
    let mut play = Playbook::new();
    play.client(get("/x?page=2&sort=price%20up&max_tokens=5", ""));
    assert_eq!(play.records[0].1.text.to_text(), "http://shop/x?page=2&sort=price%20up&max_tokens=5");
}

#[test]
fn forms_json_and_parts() {
    let form = format!("user=ada&password={SECRET}&p%61sswd={SECRET}&client_secret={SECRET}&a=b");
    let recorded =
        stays_out(&post("/login", "application/x-www-form-urlencoded; charset=utf-8", &form), &ok("", b"x"));
    assert!(recorded.contains("user=ada&") && recorded.ends_with("&a=b"), "{recorded}");
    let json = format!(
        "{{\"user\":\"ada\",\"password\": \"{SECRET}\",\"n\":{{\"apiKey\":\"{SECRET}\"}},\"z\":[1]}}"
    );
    let recorded = stays_out(&post("/x", "application/json", &json), &ok("", json.as_bytes()));
    assert!(recorded.ends_with(",\"z\":[1]}"), "{recorded}");
    let part = |name: &str, value: &str| {
        format!("--X-y\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n")
    };
    let parts = part("\"user\"", "ada")
        + &part("\"password\"", SECRET)
        + &part("api_key; x=y", SECRET)
        + &part("\"user[api_key]\"", SECRET)
        + &part("\"login[0][pass]\"", SECRET)
        + &part("\"tokens[token][]\"; filename=\"a\"", SECRET)
        + &part("\"user%5Bapi_key%5D\"", SECRET)
        + &part(
            "\"secret\"; filename=\"a.pem\"\r\nContent-Type: application/octet-stream",
            &format!("\r\n{SECRET}\r\n--X\r\n"),
        )
        + &part("\"after\"", "shown")
        + "--X-y--\r\n";
    let recorded = stays_out(&post("/x", "multipart/form-data; boundary=X-y", &parts), &ok("", b"x"));
    assert!(
        recorded.contains("\r\n\r\nada\r\n--X-y") && recorded.ends_with("\r\n\r\nshown\r\n--X-y--\r\n"),
        "{recorded}"
    );
}

#[test]
fn elements() {
    let xml = format!(
        "<?xml version=\"1.0\"?><a:R xmlns:a='x'><AccessKeyId>shown</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
         <SessionToken\n type=\"b\">\n{SECRET}\n</SessionToken><wsse:Password>p<![CDATA[{SECRET}]]>{SECRET}</wsse:Password>\
         <Token/><after password=\"{SECRET}\">shown, too</after><Password></Password></a:R>"
    );
    let recorded = stays_out(
        &post("/x", "application/soap+xml; charset=utf-8", &xml),
        &ok("Content-Type: text/xml\r\n", xml.as_bytes()),
    );
    assert!(recorded.contains("<AccessKeyId>shown</AccessKeyId><SecretAccessKey>***"), "{recorded}");
    assert!(recorded.ends_with(">shown, too</after><Password></Password></a:R>"), "{recorded}");
}

#[test]
fn what_is_given_for_a_credential_is_withheld_whole() {
    let answer = format!("{{\"access_token\":\"{SECRET}\"}} or {SECRET} alone");
    for path in
        ["/oauth2/v1/token", "/login/oauth/access_token", "/api/Token/?x=y", "/latest/meta-data/iam/x"]
    {
        let request = post(path, "text/plain", SECRET);
        let recorded = stays_out(&request, &ok("", answer.as_bytes()));
        assert!(recorded.contains("Content-Type: text/plain"), "heads are not withheld");
    }
    for host in ["169.254.169.254", "Metadata.Google.Internal", "169.254.170.2:80"] {
        let request = format!("GET /any HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stays_out(request.as_bytes(), &ok("", answer.as_bytes()));
    }
    for path in [
        "/oauth/%74oken",
        "/oauth/token;x=1",
        "/oauth/token//",
        "/oauth/token/.",
        "/oauth%2Ftoken",
        "/latest//user-data",
        "/latest/./user%2Ddata",
        "/x/../latest;a/meta-data//iam/x",
    ] {
        stays_out(&post(path, "text/plain", SECRET), &ok("", answer.as_bytes()));
    }
    for host in ["169.254.169.254.", "METADATA.google.internal.:80"] {
        let request = format!("GET /any HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stays_out(request.as_bytes(), &ok("", answer.as_bytes()));
    }
    let mut play = Playbook::new();
    play.client(get("/tokens", "")).server(ok("", b"plain"));
    assert!(play.recorded(1, Upstream).ends_with("plain"));
}

#[test]
fn chunks_cut_nothing_in_two() {
    let json = format!("{{\"a\":\"b\",\"password\":\"{SECRET}\",\"c\":\"d\"}}");
    for size in [1, 2, 5, 16] {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in json.as_bytes().chunks(size) {
            answer.extend(format!("{:x};name=value\r\n", chunk.len()).into_bytes());
            answer.extend_from_slice(chunk);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend(format!("0\r\nX-Auth-Token: {SECRET}\r\n\r\n").into_bytes());
        stays_out(&get("/", ""), &answer);
    }
    let extension =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;token={SECRET}\r\nx\r\n0\r\n\r\n");
    stays_out(&get("/", ""), extension.as_bytes());
}

#[test]
fn coded_bodies_are_recorded_as_far_as_they_hold_none() {
    // Stored, not compressed: the secret would stand there in the plain.
    let mut stored = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    std::io::Write::write_all(&mut stored, format!("{} password={SECRET}", "x ".repeat(9000)).as_bytes())
        .unwrap();
    let stored = stored.finish().unwrap();
    stays_out(&get("/", ""), &ok("Content-Encoding: gzip\r\n", &stored));
    stays_out(&get("/", ""), &ok("Content-Encoding: gzip, br\r\n", SECRET.as_bytes()));
    stays_out(&get("/", ""), &ok("Content-Encoding: zstd\r\n", format!("no zstd {SECRET}").as_bytes()));
    let plain = gzip("nothing to hide ".repeat(2000).as_bytes());
    let mut play = Playbook::new();
    let answer = ok("Content-Encoding: gzip\r\n", &plain);
    play.client(get("/", "")).server(&answer);
    assert_eq!(play.recorded(1, Upstream).chars().count(), answer.len());
    assert!(!play.recorded(1, Upstream).contains("****"));
}

/// Stored, not compressed: what is recorded would show it.
fn stored(coding: Coding, plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let none = flate2::Compression::none();
    match coding {
        Coding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), none);
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Coding::Deflate => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), none);
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        // The plain meta-block of RFC 7932, 9.2: a window of 22, MLEN - 1 in 16 bits, then an empty last one.
        Coding::Brotli => {
            let header = 0x0b_u32 & 0xf | ((plain.len() as u32 - 1) << 7) | 1 << 23;
            [&header.to_le_bytes()[..3], plain, &[3]].concat()
        }
        Coding::Zstd => zstd::encode_all(plain, 1).unwrap(),
    }
}

/// The coding hides nothing of the body's form: names of elements, of parts, of escaped fields.
#[test]
fn coded_bodies_are_read_as_their_media_type_says() {
    let pad = "x".repeat(9000);
    let xml = format!("<a><b>{pad}</b><SecretAccessKey>{SECRET}</SecretAccessKey></a>");
    let parts =
        format!("--B\r\nContent-Disposition: form-data; name=\"api_key\"\r\n\r\n{SECRET}\r\n--B--\r\n{pad}");
    let form = format!("user={pad}&p%61ssword={SECRET}&a=b");
    for (media_type, body) in [
        ("text/xml", xml),
        ("multipart/form-data; boundary=B", parts),
        ("application/x-www-form-urlencoded", form),
    ] {
        for (name, coding) in [
            ("gzip", Coding::Gzip),
            ("deflate", Coding::Deflate),
            ("br", Coding::Brotli),
            ("zstd", Coding::Zstd),
        ] {
            let fields = format!("Content-Encoding: {name}\r\nContent-Type: {media_type}\r\n");
            let coded = stored(coding, body.as_bytes());
            stays_out(&get("/", ""), &ok(&fields, &coded));
            let mut play = Playbook::new();
            play.client(get("/", "")).server(ok(&fields, &coded));
            assert!(play.recorded(1, Upstream).ends_with("**"), "{name} {media_type} is not withheld");
        }
    }
    for media_type in ["text/xml", "multipart/form-data; boundary=B", "application/x-www-form-urlencoded"] {
        let fields = format!("Content-Encoding: gzip\r\nContent-Type: {media_type}\r\n");
        let mut play = Playbook::new();
        play.client(get("/", "")).server(ok(&fields, &gzip(pad.as_bytes())));
        assert!(!play.recorded(1, Upstream).contains("**"), "{media_type} holds nothing");
    }
}

#[test]
fn a_session_tells_its_host_and_agents_masked() {
    let agent = format!("User-Agent: bot (token={SECRET})\r\n");
    let server = format!("Server: x password={SECRET}\r\n");
    stays_out(&get("/", &agent), &ok(&server, b"x"));
}

proptest! {
    /// Between random texts, in random chunks, in random reads.
    #[test]
    fn planted_values_stay_out(
        before in "[ -~]{0,40}", after in "[ -~]{0,40}", chunk in 1_usize..60, cut in 1_usize..60, coded in any::<bool>(),
    ) {
        let body = format!("{before}\n\"password\": \"{SECRET}\"\n{after}").into_bytes();
        let (body, field) = if coded { (gzip(&body), "Content-Encoding: gzip\r\n") } else { (body, "") };
        let mut answer = format!("HTTP/1.1 200 OK\r\n{field}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        for part in body.chunks(chunk) {
            answer.extend(format!("{:x}\r\n", part.len()).into_bytes());
            answer.extend_from_slice(part);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
        let mut play = Playbook::new();
        play.client(get("/", ""));
        for part in answer.chunks(cut) {
            play.server(part);
        }
        let recorded = play.recorded(1, Upstream);
        prop_assert_eq!(recorded.chars().count(), answer.len());
        prop_assert!(memchr::memmem::find(&play.all_recorded(), &SECRET.as_bytes()[..8]).is_none());
    }
}
