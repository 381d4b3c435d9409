//! One secret planted in every form that the data file and the scanner know.

use bytes::Bytes;

use crate::mask::MaskPlan;

/// `§` is where the secret goes.
const SQL: &[&str] = &[
    "ALTER ROLE bob PASSWORD '§'",
    "alter role bob password'§'",
    "ALTER ROLE bob WITH ENCRYPTED PASSWORD  '§' VALID UNTIL 'infinity'",
    "CREATE USER bob PASSWORD E'§\\'x'",
    "CREATE USER bob PASSWORD e'\\\\§'",
    "CREATE USER bob PASSWORD U&'§' UESCAPE '!'",
    "CREATE USER bob PASSWORD N'§'",
    "CREATE USER bob PASSWORD $$§$$",
    "CREATE USER bob PASSWORD $körper_1$a$§$b$$körper_1$",
    "CREATE USER bob PASSWORD 'it''s §'",
    "CREATE USER bob PASSWORD '''§'''",
    "CREATE USER bob PASSWORD 'a' '§'",
    "CREATE USER bob PASSWORD 'a'\n  '§'",
    "CREATE USER bob PASSWORD /* it's /* nested */ here */ '§'",
    "CREATE USER bob PASSWORD -- it's here\n '§'",
    "CREATE USER bob PASSWORD # it's here\n '§'",
    "CREATE USER bob PASSWORD/**/'§'",
    "CREATE USER bob PASSWORD--x\n'§'",
    "CREATE USER bob PASSWORD 'never closed §",
    "SET PASSWORD = '§'",
    "SET PASSWORD = /* x */ '§'",
    "SET PASSWORD FOR 'bob'@'localhost' = '§'",
    "SET PASSWORD FOR 'bob'@'localhost' = PASSWORD('§')",
    "SET PASSWORD FOR bob TO '§'",
    "CREATE USER bob IDENTIFIED BY '§'",
    "CREATE USER bob IDENTIFIED BY \"§\"",
    "CREATE USER bob IDENTIFIED BY § DEFAULT TABLESPACE x",
    "CREATE USER bob IDENTIFIED BY PASSWORD '§'",
    "CREATE USER bob IDENTIFIED WITH caching_sha2_password BY '§'",
    "CREATE USER bob IDENTIFIED WITH mysql_native_password AS '§'",
    "CREATE USER bob IDENTIFIED VIA ed25519 USING PASSWORD('§')",
    "ALTER USER bob IDENTIFIED BY 'new' REPLACE '§'",
    "ALTER LOGIN bob WITH PASSWORD = N'§'",
    "ALTER LOGIN bob WITH PASSWORD = 'new' OLD_PASSWORD = '§'",
    "CREATE LOGIN bob WITH PASSWORD = 0x§ HASHED",
    "UPDATE users SET password = '§' WHERE id = 1",
    "UPDATE users SET password_hash = crypt('§', gen_salt('bf'))",
    "UPDATE users SET password = crypt( '§', gen_salt('bf'))",
    "SELECT * FROM users WHERE password <> '§'",
    "SELECT * FROM users WHERE \"password\" = '§'",
    "CREATE USER MAPPING FOR bob SERVER s OPTIONS (user 'bob', password '§')",
    "ALTER USER MAPPING FOR bob SERVER s OPTIONS (SET password '§')",
    "CREATE USER MAPPING FOR bob SERVER s OPTIONS (user 'bob', \"password\" '§')",
    "SELECT dblink_connect('host=db user=bob password=§')",
    "SELECT dblink_connect('host=db user=bob password=''a § b'' dbname=x')",
    "SELECT dblink_connect('host=db password = § user=bob')",
    "SELECT dblink_connect('host=db password=a\\ § user=bob')",
    "SELECT dblink_connect('host=db password=it''§ user=bob')",
    "SELECT dblink_connect($x$host=db password='it\\'§'$x$)",
    "SELECT dblink('postgresql://bob:§@db/x', 'select 1')",
    "CREATE SUBSCRIPTION s CONNECTION 'host=db password=§' PUBLICATION p",
    "ALTER SYSTEM SET primary_conninfo = 'host=db sslpassword=§ port=5432'",
    "DO $$ BEGIN EXECUTE 'ALTER ROLE bob PASSWORD ''§'''; END $$",
    "DO $$ BEGIN ALTER ROLE bob PASSWORD '§'; END $$",
    "DO 'BEGIN EXECUTE ''ALTER ROLE bob PASSWORD ''''§''''''; END'",
    "SELECT '{\"password\": \"§\"}'::jsonb",
    "ALTER ROLE bob PASSWORD 'SCRAM-SHA-256$4096:§'",
    "ALTER ROLE bob PASSWORD 'md5§'",
    "SELECT 'SCRAM-SHA-256$4096:c2FsdHNhbHQ=$§'",
    "COPY users FROM PROGRAM 'curl -H \"Authorization: Bearer §\" https://x'",
];

const BYTES: &[&str] = &[
    "postgres://bob:§@db:5432/x",
    "postgresql://bob:a%20§@db1:5432,db2:5433/x?sslmode=require",
    "redis://:§@cache/0",
    "amqp://bob:p/§@mq",
    "amqp://bob:§",
    "https://§@git.example/x",
    "{\"url\":\"https:\\/\\/§@git.example\\/\"}",
    "{\"url\":\"https:\\/\\/bob:§@host\\/\"}",
    "jdbc:postgresql://db/x?user=bob&password=§&ssl=true",
    "jdbc:sqlserver://db;user=bob;password=a b §;encrypt=true",
    "Server=db;Uid=bob;Pwd=§;",
    "Server=db;Uid=bob;Pwd={a;b}}'§};",
    "mysql://db/x?PASSWORD=§",
    "PGPASSWORD=§",
    "OPENAI_API_KEY=§",
    "aws_secret_access_key = §",
    "{\"password\":\"§\"}",
    "{\"password\" : \"a\\\"§\"}",
    "{\\\"password\\\":\\\"§\\\"}",
    "{\"access_token\":\"§\",\"expires_in\":3600}",
    "{\"clientSecret\": \"§\"}",
    "{\"password\":§,\"x\":1}",
    "{'password': '§'}",
    "password: §\n",
    "user[password]=§&x=1",
    "POST / HTTP/1.1\r\n\r\npassword=§",
    "GET /?key=§&x=1 HTTP/1.1",
    "GET /?x=1&key=§ HTTP/1.1",
    "GET /?access_token=§ HTTP/1.1",
    "GET /blob?sv=1&sig=§&se=2 HTTP/1.1",
    "GET /?X-Amz-Algorithm=AWS4&X-Amz-Signature=§ HTTP/1.1",
    "GET /?X-Amz-Security-Token=§ HTTP/1.1",
    "Authorization: Bearer §\r\n",
    "authorization:§\r\n",
    "Authorization: Basic\r\n §\r\n",
    "Authorization: Digest username=\"bob\", response=\"§\"\r\n",
    "Proxy-Authorization: Basic §\r\n",
    "Cookie: a=b; session=§\r\n",
    "Set-Cookie: session=§; HttpOnly\r\n",
    "x-api-key: §\r\n",
    "api-key: §\r\n",
    "X-Goog-Api-Key: §\r\n",
    "X-Amz-Security-Token: §\r\n",
    "X-Vault-Token: §\r\n",
    "PRIVATE-TOKEN: §\r\n",
    "{\"Authorization\": \"Bearer §\"}",
    "authorization=Bearer §",
    "Sec-WebSocket-Protocol: v5.channel.k8s.io,base64url.bearer.authorization.k8s.io.§\r\n",
    "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.§, v4.channel.k8s.io\r\n",
    "token ghp_0123456789abcdef§",
    "xoxb-0123456789abcdef-§",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIn0.§",
    "\0\0\0Bbob\0\0\0\0ASCRAM-SHA-256$4096:§",
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n§\n-----END RSA PRIVATE KEY-----",
    "D\0\0\0\x41Authorization: Bearer §\r\n",
    "D\0\0\0\x41pwd=§",
    "\x03CREATE USER bob IDENTIFIED BY '§'",
    "\0\0\0\x41IDENTIFIED BY '§'",
];

/// Long enough to be a token, and to be found in the output without doubt.
const SECRET: &str = "hunter2hunter2hunter2";

fn plant(form: &str) -> Bytes {
    Bytes::from(form.replace('§', SECRET))
}

fn assert_absent(form: &str, shown: &[u8]) {
    let shown = shown.escape_ascii().to_string();
    assert!(!shown.contains("hunter"), "{form}\n  shows {shown}");
}

#[test]
fn no_planted_secret_is_seen() {
    let plan = MaskPlan::standard();
    for form in SQL {
        let planted = plant(form);
        assert_absent(form, plan.text(&planted).bytes());
        assert_absent(form, plan.bytes(&planted).bytes());
    }
    for form in BYTES {
        assert_absent(form, plan.bytes(&plant(form)).bytes());
        assert_absent(form, plan.text(&plant(form)).bytes());
    }
}

#[test]
fn nor_in_any_case_or_neighbourhood() {
    let plan = MaskPlan::standard();
    for form in SQL.iter().chain(BYTES) {
        let around = ["SELECT 1; ", "x = 'it''s'; ", "\r\n", "\0\0\0\x07"];
        for before in around {
            let planted = Bytes::from([before, &form.replace('§', SECRET), "\0\0\0\x05"].concat());
            assert_absent(form, plan.bytes(&planted).bytes());
        }
    }
    for form in &SQL[..20] {
        let planted = Bytes::from(form.to_uppercase().replace('§', SECRET));
        assert_absent(form, plan.text(&planted).bytes());
    }
}

#[test]
fn nor_a_token_that_is_a_whole_userinfo_however_long() {
    let plan = MaskPlan::standard();
    for times in [1, 20, 30, 500] {
        let token = SECRET.repeat(times);
        let shown = plan.bytes(&Bytes::from(format!("x https://{token}@git.example/x y")));
        assert_absent("https://§@git.example/x", shown.bytes());
        assert!(shown.bytes().ends_with(b" y"), "{times}: {shown:?}");
    }
}

#[test]
fn nor_byte_by_byte() {
    use crate::mask::Syntax;
    for form in SQL.iter().chain(BYTES) {
        for syntax in [Syntax::Sql, Syntax::Bytes] {
            let mut stream = MaskPlan::standard().stream(syntax);
            let mut shown = Vec::new();
            for byte in plant(form) {
                shown.extend_from_slice(stream.push(Bytes::copy_from_slice(&[byte])).bytes());
            }
            shown.extend_from_slice(stream.finish().bytes());
            assert_absent(form, &shown);
        }
    }
}
