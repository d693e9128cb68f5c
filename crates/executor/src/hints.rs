//! Known causes of failed steps, and what to do about them.

use crate::Exit;

/// How much of the end of a log is looked at, in bytes.
const TAIL: usize = 16 << 10;

/// A cause that is known to people who have seen it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The shell did not find a command.
    CommandNotFound,
    /// A file was found but cannot be executed.
    NotExecutable,
    /// A C header is missing.
    HeaderMissing,
    /// There is no compiler or linker.
    CompilerMissing,
    /// A name could not be resolved.
    NameResolution,
    /// A certificate was not trusted.
    Certificate,
    /// An SSH server is not known.
    SshHostKey,
    /// Memory ran out.
    OutOfMemory,
    /// The disk is full.
    DiskFull,
}

/// A cause and a way out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// What went wrong.
    pub cause: Cause,
    /// One line: what is known, and what to do.
    pub text: String,
}

/// One row of the table: any of `signs` in the log (lower case) means `cause`.
struct Rule {
    cause: Cause,
    signs: &'static [&'static str],
    advice: &'static str,
}

/// Looked through from the top: what explains most comes first, since one cause often drags others after it.
const RULES: &[Rule] = &[
    Rule {
        cause: Cause::DiskFull,
        signs: &["no space left on device", "enospc", "disk quota exceeded", "you don't have enough free space"],
        advice: "the disk is full; free space with `kiln prune`, or lower the cache's budget",
    },
    Rule {
        cause: Cause::OutOfMemory,
        signs: &[
            "cannot allocate memory",
            "virtual memory exhausted",
            "javascript heap out of memory",
            "java.lang.outofmemoryerror",
            "fatal error: out of memory",
            "std::bad_alloc",
            "memoryerror",
        ],
        advice: "memory ran out; raise the step's or the machine's limit, or run fewer jobs at once",
    },
    Rule {
        cause: Cause::SshHostKey,
        signs: &["host key verification failed", "no ed25519 host key is known", "no rsa host key is known"],
        advice: "the SSH server is unknown; add its key first: `RUN mkdir -p -m 0700 ~/.ssh && ssh-keyscan HOST >> ~/.ssh/known_hosts`",
    },
    Rule {
        cause: Cause::Certificate,
        signs: &[
            "certificate verify failed",
            "certificate_verify_failed",
            "unable to get local issuer certificate",
            "self-signed certificate",
            "self signed certificate",
            "self_signed_cert_in_chain",
            "unable_to_get_issuer_cert_locally",
            "certificate signed by unknown authority",
            "ssl certificate problem",
            "server certificate verification failed",
            "invalid peer certificate",
            "sslerror",
            "pkix path building failed",
            "the certificate is not trusted",
        ],
        advice: "a server's certificate is not trusted inside the step; install `ca-certificates`, or pass the host's extra \
                 authorities with `--build-ca=auto`",
    },
    Rule {
        cause: Cause::NameResolution,
        signs: &[
            "could not resolve host",
            "temporary failure in name resolution",
            "temporary failure resolving",
            "name or service not known",
            "getaddrinfo eai_again",
            "getaddrinfo enotfound",
            "no such host",
            "nodename nor servname provided",
            "failed to lookup address information",
            "dns error",
        ],
        advice: "a host name could not be resolved inside the step; check the network, `--network` and the proxy build \
                 arguments (`HTTP_PROXY`, `HTTPS_PROXY`)",
    },
    Rule {
        cause: Cause::CompilerMissing,
        signs: &[
            "linker `cc` not found",
            "gcc: not found",
            "cc: not found",
            "g++: not found",
            "c++: not found",
            "make: not found",
            "gcc: command not found",
            "cc: command not found",
            "g++: command not found",
            "make: command not found",
            "command 'gcc' failed: no such file or directory",
            "error: command 'gcc' failed",
            "no acceptable c compiler found",
            "no c compiler",
            "exec: \"gcc\": executable file not found",
            "unable to execute 'gcc'",
            "not found: make",
            "cmake_c_compiler not set",
        ],
        advice: "the image has no compiler; install one in an earlier step (Debian: `build-essential`, Alpine: `build-base`)",
    },
];

/// Returns the known cause of a failed step, if it is one.
///
/// `argv` is the command, `log_tail` the end of what it printed.
pub fn explain(argv: &[String], exit: &Exit, log_tail: &str) -> Option<Hint> {
    if exit.code == 0 {
        return None;
    }
    let tail = last(log_tail);
    let lower = tail.to_lowercase();
    if exit.oom {
        return Some(hint(
            Cause::OutOfMemory,
            "the step was killed for using more memory than it may; raise the limit",
        ));
    }
    if let Some(header) = missing_header(tail) {
        let text = format!(
            "the C header `{header}` is missing; install the development package that has it (Debian: `apt-file search {header}`, \
             often `lib…-dev`; Alpine: `…-dev`)"
        );
        return Some(Hint { cause: Cause::HeaderMissing, text });
    }
    if let Some(rule) = RULES.iter().find(|rule| rule.signs.iter().any(|sign| lower.contains(sign))) {
        return Some(hint(rule.cause, rule.advice));
    }
    by_code(argv, exit, tail)
}

fn by_code(argv: &[String], exit: &Exit, tail: &str) -> Option<Hint> {
    match exit.code {
        127 => {
            let name = missing_command(tail).unwrap_or_else(|| argv.first().map_or("", String::as_str).to_owned());
            let text = format!(
                "`{name}` is not in the image or not in PATH; install it in an earlier step, or check its spelling and the shell"
            );
            Some(Hint { cause: Cause::CommandNotFound, text })
        }
        126 => Some(hint(
            Cause::NotExecutable,
            "a file was found but may not be executed; set its mode (`COPY --chmod=755`, `chmod +x`) and check that its first \
             line names a program of the image",
        )),
        137 => Some(hint(
            Cause::OutOfMemory,
            "the step was killed (signal 9), most often because the machine ran out of memory; run fewer jobs at once or give \
             the machine more",
        )),
        _ => None,
    }
}

fn hint(cause: Cause, text: &str) -> Hint {
    Hint { cause, text: text.to_owned() }
}

/// Returns the end of the log, cut at a character.
fn last(log: &str) -> &str {
    let start = (log.len().saturating_sub(TAIL)..=log.len()).find(|&at| log.is_char_boundary(at));
    &log[start.unwrap_or(0)..]
}

/// Finds `fatal error: X.h: No such file or directory` (GCC) and `fatal error: 'X.h' file not found` (Clang).
fn missing_header(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| {
        let rest = line.split_once("fatal error: ")?.1;
        let name = rest.strip_suffix(": No such file or directory").or_else(|| rest.strip_suffix(" file not found"))?;
        let name = name.trim_matches(['\'', '"', '`']);
        let is_header = [".h", ".hpp", ".hh", ".hxx"].iter().any(|end| name.ends_with(end));
        (is_header && !name.contains(char::is_whitespace)).then_some(name)
    })
}

/// Finds the command in `sh: 1: X: not found`, `bash: line 1: X: command not found` and `exec: "X": executable file not found`.
fn missing_command(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let line = line.trim();
        if let Some((before, _)) = line.split_once(": executable file not found") {
            return Some(before.rsplit(": ").next()?.trim_matches('"').to_owned());
        }
        let before = line.strip_suffix(": command not found").or_else(|| line.strip_suffix(": not found"))?;
        before.rsplit(": ").next().map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> Exit {
        Exit { code, signal: None, oom: false, usage: crate::Usage::default() }
    }

    fn cause(code: i32, log: &str) -> Option<Cause> {
        explain(&["/bin/sh".to_owned(), "-c".to_owned(), "x".to_owned()], &exit(code), log).map(|hint| hint.cause)
    }

    #[test]
    fn texts_of_real_tools_are_recognised() {
        let table = [
            (127, "/bin/sh: 1: foo: not found", Some(Cause::CommandNotFound)),
            (127, "bash: line 1: foo: command not found", Some(Cause::CommandNotFound)),
            (127, "exec: \"foo\": executable file not found in $PATH", Some(Cause::CommandNotFound)),
            (126, "/bin/sh: 1: ./run.sh: Permission denied", Some(Cause::NotExecutable)),
            (
                2,
                "x.c:1:10: fatal error: zlib.h: No such file or directory\ncompilation terminated.",
                Some(Cause::HeaderMissing),
            ),
            (1, "x.c:1:10: fatal error: 'openssl/ssl.h' file not found", Some(Cause::HeaderMissing)),
            (101, "error: linker `cc` not found\n  |\n  = note: No such file", Some(Cause::CompilerMissing)),
            (127, "/bin/sh: 1: gcc: not found", Some(Cause::CompilerMissing)),
            (1, "configure: error: no acceptable C compiler found in $PATH", Some(Cause::CompilerMissing)),
            (6, "curl: (6) Could not resolve host: example.test", Some(Cause::NameResolution)),
            (100, "W: Failed to fetch x  Temporary failure resolving 'deb.test'", Some(Cause::NameResolution)),
            (1, "npm ERR! request failed, reason: getaddrinfo EAI_AGAIN registry.test", Some(Cause::NameResolution)),
            (
                60,
                "curl: (60) SSL certificate problem: unable to get local issuer certificate",
                Some(Cause::Certificate),
            ),
            (1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed", Some(Cause::Certificate)),
            (1, "npm ERR! code SELF_SIGNED_CERT_IN_CHAIN", Some(Cause::Certificate)),
            (1, "x509: certificate signed by unknown authority", Some(Cause::Certificate)),
            (
                128,
                "Host key verification failed.\nfatal: Could not read from remote repository.",
                Some(Cause::SshHostKey),
            ),
            (1, "FATAL ERROR: Reached heap limit - JavaScript heap out of memory", Some(Cause::OutOfMemory)),
            (137, "", Some(Cause::OutOfMemory)),
            (1, "cp: error writing 'x': No space left on device", Some(Cause::DiskFull)),
            (1, "npm ERR! code ENOSPC", Some(Cause::DiskFull)),
            (1, "assertion failed", None),
            (2, "make: *** [all] Error 2", None),
            (0, "bash: foo: command not found", None),
        ];
        for (code, log, expected) in table {
            assert_eq!(cause(code, log), expected, "{code}: {log}");
        }
    }

    #[test]
    fn the_missing_thing_is_named() {
        let text = |code, log| explain(&["tool".to_owned()], &exit(code), log).unwrap().text;
        assert!(text(127, "/bin/sh: 1: jq: not found").contains("`jq`"));
        assert!(text(127, "").contains("`tool`"));
        assert!(text(1, "a.c:3: fatal error: pq/fe.h: No such file or directory").contains("`pq/fe.h`"));
    }

    #[test]
    fn the_kernel_knows_better_than_the_log() {
        let killed = Exit { oom: true, ..exit(1) };
        let hint = explain(&[], &killed, "gcc: command not found").unwrap();
        assert_eq!(hint.cause, Cause::OutOfMemory);
    }

    #[test]
    fn only_the_end_of_a_long_log_counts() {
        let log = format!("curl: Could not resolve host\n{}", "ü".repeat(TAIL));
        assert_eq!(cause(1, &log), None);
    }
}
