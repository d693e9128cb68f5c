//! A rough reading of Rust source: enough to measure functions and find words outside of strings, without a parser.

/// A function that was found in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Line of the `fn`, from 1.
    pub line: usize,
    /// Lines from `fn` to the closing brace.
    pub length: usize,
}

/// Returns the functions of `text`. It relies on rustfmt: a body closes with a brace at the indentation of its `fn`.
pub fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let Some(name) = function_name(code) else { continue };
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[index..].iter().position(|l| {
            *l == close || (l.len() - l.trim_start().len() == indent && l.trim_end().ends_with("}") && l.contains("{}"))
        });
        let signature_only = lines[index..].iter().take(12).position(|l| l.trim_end().ends_with(';'));
        let Some(end) = end else { continue };
        if signature_only.is_some_and(|s| s < end && !lines[index..=index + s].iter().any(|l| l.contains('{'))) {
            continue;
        }
        found.push(Function { name, line: index + 1, length: end + 1 });
    }
    found
}

fn function_name(code: &str) -> Option<String> {
    let mut rest = code;
    for prefix in ["pub(crate) ", "pub(super) ", "pub ", "default ", "const ", "async ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let name: String = rest.strip_prefix("fn ")?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_functions() {
        let text = "impl X {\n    pub async fn a(&self) {\n        if b {\n        }\n    }\n}\nfn c();\nfn d() {\n}\n";
        let got: Vec<_> = functions(text).into_iter().map(|f| (f.name, f.line, f.length)).collect();
        assert_eq!(got, [("a".to_owned(), 2, 4), ("d".to_owned(), 8, 2)]);
    }
}
