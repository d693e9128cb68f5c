//! Case files: a description, then cases, each of sections that begin with `==== `.
//!
//! `case <name>` begins a case. Its sections: `Dockerfile` (or `Dockerfile <path>`), `context` and `context <name>`
//! (entries of the main and of named directories), `image <name>` (a base image's config over busybox), `options`, and
//! last `expected`.

use std::path::{Path, PathBuf};

/// One file of cases.
pub struct CaseFile {
    pub path: PathBuf,
    /// What stands above the first case.
    head: String,
    pub cases: Vec<Case>,
}

/// One case.
pub struct Case {
    /// `<file>/<name>`
    pub name: String,
    /// Sections by title, without the expected one.
    pub sections: Vec<(String, String)>,
    pub expected: String,
}

impl CaseFile {
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut file = Self { path: path.to_owned(), head: String::new(), cases: Vec::new() };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut section = String::new();
        for line in text.split_inclusive('\n') {
            if let Some(title) = line.strip_prefix("==== ") {
                section = title.trim_end().to_owned();
                match (section.strip_prefix("case "), file.cases.last_mut()) {
                    (Some(name), _) => {
                        file.cases.push(Case {
                            name: format!("{stem}/{name}"),
                            sections: Vec::new(),
                            expected: String::new(),
                        });
                    }
                    (None, Some(case)) if section != "expected" => {
                        case.sections.push((section.clone(), String::new()));
                    }
                    _ => {}
                }
                continue;
            }
            match file.cases.last_mut() {
                None => file.head.push_str(line),
                Some(case) if section == "expected" => case.expected.push_str(line),
                Some(case) => match case.sections.last_mut() {
                    Some((_, body)) => body.push_str(line),
                    None => assert!(line.trim().is_empty(), "{}: {line:?} outside a section", path.display()),
                },
            }
        }
        for case in &mut file.cases {
            case.expected = case.expected.trim_end_matches('\n').to_owned();
            if !case.expected.is_empty() {
                case.expected.push('\n');
            }
        }
        file
    }

    /// Returns the file's text again.
    pub fn text(&self) -> String {
        let mut out = self.head.clone();
        for case in &self.cases {
            let (_, name) = case.name.split_once('/').unwrap_or_default();
            out.push_str(&format!("==== case {name}\n"));
            for (title, body) in &case.sections {
                out.push_str(&format!("==== {title}\n{body}"));
            }
            out.push_str(&format!("==== expected\n{}\n", case.expected));
        }
        out
    }
}

impl Case {
    /// Returns the sections whose title is `kind` or begins with it: what follows in the title, and the body.
    pub fn sections<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.sections.iter().filter_map(move |(title, body)| {
            let rest = title.strip_prefix(kind)?;
            (rest.is_empty() || rest.starts_with(' ')).then_some((rest.trim(), body.as_str()))
        })
    }

    /// Returns the options: key and value.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.sections("options").flat_map(|(_, body)| body.lines()).map(|l| l.split_once(' ').unwrap_or((l, "")))
    }
}
