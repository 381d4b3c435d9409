//! Masking of program arguments: options know what their value is, and a shell's script has arguments in it.

use std::ops::Range;

use super::names::{SECRETS, Short, ShortValue};
use super::plan::Syntax;
use super::scan::Scanner;

/// How deep commands are read within commands: `sh -c "ssh host 'mysql -px'"`.
const DEPTH_MAX: usize = 3;

pub(super) fn masked(argv: &[String]) -> Vec<String> {
    let mut arguments = Arguments::default();
    let mask = |argument: &String| {
        let mut shown = argument.clone().into_bytes();
        arguments.read(argument.as_bytes(), &mut shown, 0);
        String::from_utf8(shown)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    };
    argv.iter().map(mask).collect()
}

/// One command, read argument by argument.
#[derive(Default)]
struct Arguments {
    /// Short options of the program that was named last.
    shorts: Vec<&'static Short>,
    expected: Expected,
}

/// What the last option says about the next argument.
#[derive(Clone, Copy, Default)]
enum Expected {
    #[default]
    Anything,
    Secret,
    /// `user:secret`
    Credentials,
}

impl Arguments {
    /// Masks in `shown` what authenticates in `argument`; both are the same bytes at first.
    fn read(&mut self, argument: &[u8], shown: &mut [u8], depth: usize) {
        scan(argument, shown);
        match std::mem::take(&mut self.expected) {
            Expected::Anything => {}
            Expected::Secret => shown.fill(b'*'),
            Expected::Credentials => mask_credentials(argument, shown),
        }
        if depth < DEPTH_MAX {
            read_commands(argument, shown, depth + 1);
        }
        // An argument that is taken for a value may be an option all the same: --password --token x.
        if argument.starts_with(b"-") {
            self.read_option(argument, shown);
        } else if let Some(name) = memchr::memchr(b'=', argument)
            && SECRETS.is_secret_name(&argument[..name])
        {
            shown[name + 1..].fill(b'*');
        } else {
            self.read_program(argument);
        }
    }

    fn read_option(&mut self, argument: &[u8], shown: &mut [u8]) {
        // What is attached to a short option is a text of its own: -HCookie: x.
        if let Some(attached) = argument.get(2..) {
            scan(attached, &mut shown[2..]);
        }
        let equals = memchr::memchr(b'=', argument);
        let option = &argument[..equals.unwrap_or(argument.len())];
        let value = equals.map(|equals| equals + 1);
        if is_secret_option(option) {
            self.expect(value, Expected::Secret, argument, shown);
        } else if is_one_of(&SECRETS.argv.credentials, option) {
            self.expect(value, Expected::Credentials, argument, shown);
        } else if SECRETS
            .argv
            .credentials
            .iter()
            .any(|short| short.len() == 2 && argument.starts_with(short.as_bytes()))
        {
            mask_credentials(&argument[2..], &mut shown[2..]);
        }
        for short in &self.shorts {
            match argument.strip_prefix(short.option.as_bytes()) {
                Some([]) if short.value == ShortValue::Either => self.expected = Expected::Secret,
                Some(_) => shown[short.option.len()..].fill(b'*'),
                None => {}
            }
        }
    }

    /// The value is part of the option, or the next argument.
    fn expect(&mut self, value: Option<usize>, expected: Expected, argument: &[u8], shown: &mut [u8]) {
        match (value, expected) {
            (None, _) => self.expected = expected,
            (Some(_), Expected::Anything) => {}
            (Some(value), Expected::Secret) => shown[value..].fill(b'*'),
            (Some(value), Expected::Credentials) => mask_credentials(&argument[value..], &mut shown[value..]),
        }
    }

    fn read_program(&mut self, argument: &[u8]) {
        let name = &argument[memchr::memrchr(b'/', argument).map_or(0, |slash| slash + 1)..];
        let is_named =
            |short: &&Short| short.programs.iter().any(|program| name.starts_with(program.as_bytes()));
        if SECRETS.argv.short.iter().any(|short| is_named(&short)) {
            self.shorts = SECRETS.argv.short.iter().filter(is_named).collect();
        }
    }
}

fn scan(argument: &[u8], shown: &mut [u8]) {
    let mut hits = Vec::new();
    Scanner::new(Syntax::Bytes).scan(argument, true, &mut hits);
    for (range, _) in hits {
        shown[range].fill(b'*');
    }
}

/// An argument of several words may be a command itself; a quoted one, too.
fn read_commands(argument: &[u8], shown: &mut [u8], depth: usize) {
    if let [quote @ (b'\'' | b'"'), inner @ .., end] = argument
        && quote == end
    {
        let inner_shown = 1..1 + inner.len();
        return read_commands(inner, &mut shown[inner_shown], depth);
    }
    if !argument.iter().any(u8::is_ascii_whitespace) {
        return;
    }
    let mut arguments = Arguments::default();
    for word in words(argument) {
        arguments.read(&argument[word.clone()], &mut shown[word], depth);
    }
}

/// Words as a shell cuts them: blanks within quotes and after a backslash do not cut.
fn words(command: &[u8]) -> Vec<Range<usize>> {
    let (mut words, mut start, mut quote, mut escaped) = (Vec::new(), None, None, false);
    for (at, byte) in command.iter().copied().enumerate() {
        let cuts = quote.is_none() && !escaped && (byte.is_ascii_whitespace() || b";|&()".contains(&byte));
        match (cuts, start) {
            (true, Some(from)) => {
                words.push(from..at);
                start = None;
            }
            (false, None) => start = Some(at),
            _ => {}
        }
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' if quote != Some(b'\'') => escaped = true,
            b'\'' | b'"' if quote == Some(byte) => quote = None,
            b'\'' | b'"' if quote.is_none() => quote = Some(byte),
            _ => {}
        }
    }
    words.extend(start.map(|from| from..command.len()));
    words
}

fn is_secret_option(option: &[u8]) -> bool {
    let name = &option[option.iter().take_while(|byte| **byte == b'-').count()..];
    // A file's name is no secret.
    let is_file = name.ends_with(b"-file") || name.ends_with(b"-path");
    (SECRETS.is_secret_name(name) && !is_file) || is_one_of(&SECRETS.argv.options, option)
}

fn is_one_of(options: &[String], option: &[u8]) -> bool {
    options.iter().any(|known| known.as_bytes() == option)
}

fn mask_credentials(value: &[u8], shown: &mut [u8]) {
    if let Some(separator) = memchr::memchr2(b':', b'%', value) {
        shown[separator + 1..].fill(b'*');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(command: &[&str]) -> String {
        let argv: Vec<_> = command.iter().map(|argument| (*argument).to_owned()).collect();
        masked(&argv).join(" ")
    }

    #[test]
    fn values_of_options_are_masked() {
        for (command, expected) in [
            (&["x", "--token", "abc", "y"][..], "x --token *** y"),
            (&["x", "--token=abc", "y"], "x --token=*** y"),
            (&["x", "--api-key", "abc"], "x --api-key ***"),
            (&["x", "-api-key=a b"], "x -api-key=***"),
            (&["x", "--key", "abc"], "x --key ***"),
            (&["x", "--password", "a b c"], "x --password *****"),
            (&["x", "--db-password=abc", "y"], "x --db-password=*** y"),
            (&["x", "--accessToken", "abc"], "x --accessToken ***"),
            (&["x", "--password", "--token", "abc"], "x --password ******* ***"),
            (&["psql", "--password-file", "/x"], "psql --password-file /x"),
            (&["mysql", "-pabc", "-u", "bob", "db"], "mysql -p*** -u bob db"),
            (&["mysql", "-p", "db"], "mysql -p db"),
            (&["/usr/bin/mysqldump", "-pabc"], "/usr/bin/mysqldump -p***"),
            (&["sudo", "mysql", "-pabc"], "sudo mysql -p***"),
            (&["ssh", "-p22", "-p", "22"], "ssh -p22 -p 22"),
            (&["sshpass", "-p", "abc", "ssh", "x"], "sshpass -p *** ssh x"),
            (&["docker", "login", "-u", "bob", "-p", "abc"], "docker login -u bob -p ***"),
            (&["docker", "run", "-p", "80:80"], "docker run -p 80:80"),
            (&["redis-cli", "-a", "abc"], "redis-cli -a ***"),
            (&["curl", "-u", "bob:abc"], "curl -u bob:***"),
            (&["curl", "-ubob:abc"], "curl -ubob:***"),
            (&["curl", "--user=bob:abc"], "curl --user=bob:***"),
        ] {
            assert_eq!(shown(command), expected);
        }
    }

    #[test]
    fn texts_in_arguments_are_masked() {
        for (command, expected) in [
            (&["env", "PGPASSWORD=a b", "psql"][..], "env PGPASSWORD=*** psql"),
            (&["MYSQL_PWD=abc"], "MYSQL_PWD=***"),
            (&["curl", "-H", "Authorization: Bearer abc"], "curl -H Authorization: **********"),
            (&["curl", "-H", "X-Vault-Token: abc"], "curl -H X-Vault-Token: ***"),
            (&["curl", "-HCookie: abc"], "curl -HCookie: ***"),
            (&["curl", "https://bob:abc@x/?key=de&x=1"], "curl https://bob:***@x/?key=**&x=1"),
            (&["curl", "https://x/?access_token=abc"], "curl https://x/?access_token=***"),
            (
                &["curl", "https://x/?sig=abc&X-Amz-Signature=de"],
                "curl https://x/?sig=***&X-Amz-Signature=**",
            ),
            (&["psql", "host=x password=abc user=y"], "psql host=x password=*** user=y"),
            (&["psql", "-c", "ALTER ROLE x PASSWORD 'abc'"], "psql -c ALTER ROLE x PASSWORD '***'"),
        ] {
            assert_eq!(shown(command), expected);
        }
    }

    #[test]
    fn commands_in_arguments_are_read() {
        for (command, expected) in [
            (&["sh", "-c", "cd /x && mysql -pabc db"][..], "sh -c cd /x && mysql -p*** db"),
            (&["sh", "-c", "x --token 'a b c' y"], "sh -c x --token ******* y"),
            (&["sh", "-c", "ssh h 'mysql -pabc'"], "sh -c ssh h 'mysql -p***'"),
            (&["sh", "-c", "PGPASSWORD='a b' psql"], "sh -c PGPASSWORD=**********"),
            (&["sh", "-c", "curl -u bob:abc https://x"], "sh -c curl -u bob:*** https://x"),
        ] {
            assert_eq!(shown(command), expected);
        }
    }

    proptest! {
        #[test]
        fn lengths_stay(argv in proptest::collection::vec("[ -~é'\"\\\\=:]{0,40}|--token|-u|mysql|-p", 0..8)) {
            for (before, after) in argv.iter().zip(masked(&argv)) {
                prop_assert!(after.contains(char::REPLACEMENT_CHARACTER) || after.len() == before.len());
            }
        }
    }
}
