//! Finds the command inside the sandbox and becomes it. Texts are those that Go's runtimes print, which people search for.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::PermissionsExt;

use crate::StartFailure;
use crate::wire::{Failure, WireSpec};

/// Replaces this process by the command of `spec`; returns only when that fails.
pub(super) fn execute(spec: &WireSpec, home: &str) -> Failure {
    let env = environment(spec, home);
    let path = env.iter().rev().find(|(name, _)| *name == "PATH").map_or("", |(_, value)| *value);
    let Some(name) = spec.args.first() else {
        return Failure::InvalidSpec("no command given".to_owned());
    };
    let program = match find(name, path) {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let args: Result<Vec<CString>, _> = spec.args.iter().map(|arg| CString::new(arg.as_str())).collect();
    let vars: Result<Vec<CString>, _> =
        env.iter().map(|(name, value)| CString::new(format!("{name}={value}"))).collect();
    let (Ok(args), Ok(vars), Ok(file)) = (args, vars, CString::new(program.as_str())) else {
        return Failure::InvalidSpec("an argument or variable contains a NUL character".to_owned());
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&vars));
    // SAFETY: both arrays end with null and their strings live through the call.
    unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    refused(&program, &io::Error::last_os_error())
}

/// Returns the environment with the last value of each name, and `HOME` where the step has none.
fn environment<'a>(spec: &'a WireSpec, home: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut env: Vec<(&str, &str)> = Vec::with_capacity(spec.env.len() + 1);
    for (name, value) in &spec.env {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    }
    match env.iter_mut().find(|(name, _)| *name == "HOME") {
        Some((_, value)) if value.is_empty() => *value = home,
        Some(_) => {}
        None => env.push(("HOME", home)),
    }
    env
}

fn find(name: &str, path: &str) -> Result<String, Failure> {
    let failure = |reason, text: &str| Failure::NotStarted { reason, message: format!("exec: {name:?}: {text}") };
    if name.contains('/') {
        return match check(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(failure(StartFailure::NotFound, &format!("stat {name}: no such file or directory")))
            }
            Err(error) => Err(failure(StartFailure::NotExecutable, &text(&error))),
        };
    }
    let mut denied = false;
    for dir in path.split(':').filter(|_| !name.is_empty()) {
        let file = if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(error) => denied |= error.raw_os_error() == Some(libc::EACCES),
        }
    }
    if denied {
        return Err(failure(StartFailure::NotExecutable, "permission denied"));
    }
    Err(failure(StartFailure::NotFound, "executable file not found in $PATH"))
}

fn check(file: &str) -> io::Result<()> {
    let found = std::fs::metadata(file)?;
    if found.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if found.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

fn refused(program: &str, error: &io::Error) -> Failure {
    let (reason, note) = match error.raw_os_error() {
        Some(libc::ENOENT) => (
            StartFailure::NotFound,
            " (the file is there: the interpreter in its first line, or the loader it is linked for, is not)",
        ),
        Some(libc::ENOEXEC) => (StartFailure::Format, ""),
        _ => (StartFailure::NotExecutable, ""),
    };
    Failure::NotStarted { reason, message: format!("exec {program}: {}{note}", text(error)) }
}

/// Returns the C library's text in lower case, as Go prints it.
fn text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(failure: Failure) -> (StartFailure, String) {
        match failure {
            Failure::NotStarted { reason, message } => (reason, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn missing_commands_are_told_as_runtimes_do() {
        let (reason, text) = message(find("no-such-tool", "/usr/bin:/bin").unwrap_err());
        assert_eq!(reason, StartFailure::NotFound);
        assert_eq!(text, "exec: \"no-such-tool\": executable file not found in $PATH");
        let (reason, text) = message(find("/no/such", "").unwrap_err());
        assert_eq!(reason, StartFailure::NotFound);
        assert_eq!(text, "exec: \"/no/such\": stat /no/such: no such file or directory");
        let (reason, text) = message(find("/etc/passwd", "").unwrap_err());
        assert_eq!(reason, StartFailure::NotExecutable);
        assert_eq!(text, "exec: \"/etc/passwd\": permission denied");
    }

    #[test]
    fn the_first_directory_with_the_program_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for dir in [&a, &b] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("tool"), "").unwrap();
        }
        let path = format!("{}:{}", a.display(), b.display());
        assert_eq!(message(find("tool", &path).unwrap_err()).0, StartFailure::NotExecutable);
        std::fs::set_permissions(b.join("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("tool", &path).unwrap(), b.join("tool").display().to_string());
    }
}
