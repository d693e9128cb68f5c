//! Output by template: the part of Go's templates that is used for it (`{{json .}}`, `{{.Field}}`, `range`, `if`), over
//! values that know both of their names.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::error::CliError;

/// A value that can be shown.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: a list, map or pointer that is not there.
    Nil,
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
    Record(Vec<Field>),
}

/// A field of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name in templates.
    pub name: &'static str,
    /// Its name in JSON.
    pub json: &'static str,
    /// Whether JSON leaves it out when it is empty.
    pub optional: bool,
    pub value: Value,
}

impl Field {
    /// Returns a field that is always shown.
    pub fn new(name: &'static str, json: &'static str, value: Value) -> Self {
        Self { name, json, optional: false, value }
    }

    /// Returns a field that JSON leaves out when it is empty.
    pub fn optional(name: &'static str, json: &'static str, value: Value) -> Self {
        Self { name, json, optional: true, value }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&BTreeMap<String, String>> for Value {
    fn from(map: &BTreeMap<String, String>) -> Self {
        if map.is_empty() {
            return Self::Nil;
        }
        Self::Map(map.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect())
    }
}

impl From<&[String]> for Value {
    fn from(list: &[String]) -> Self {
        if list.is_empty() { Self::Nil } else { Self::List(list.iter().map(|t| t.as_str().into()).collect()) }
    }
}

impl Value {
    /// Returns whether a condition does not hold for it.
    fn is_empty(&self) -> bool {
        match self {
            Self::Nil => true,
            Self::Bool(value) => !value,
            Self::Int(value) => *value == 0,
            Self::Text(text) => text.is_empty(),
            Self::List(list) => list.is_empty(),
            Self::Map(map) => map.is_empty(),
            Self::Record(_) => false,
        }
    }

    /// Returns the value as JSON on one line, fields in their order.
    pub fn json(&self) -> String {
        match self {
            Self::Nil => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Text(text) => Json::from(text.as_str()).to_string(),
            Self::List(list) => format!("[{}]", join(list.iter().map(Self::json))),
            Self::Map(map) => {
                format!("{{{}}}", join(map.iter().map(|(k, v)| format!("{}:{}", Json::from(k.as_str()), v.json()))))
            }
            Self::Record(fields) => {
                let shown = fields.iter().filter(|f| !(f.optional && f.value.is_empty()));
                format!("{{{}}}", join(shown.map(|f| format!("\"{}\":{}", f.json, f.value.json()))))
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Nil => "<nil>".to_owned(),
            Self::Text(text) => text.clone(),
            Self::List(list) => format!("[{}]", list.iter().map(Self::text).collect::<Vec<_>>().join(" ")),
            Self::Map(map) => {
                let entries: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", v.text())).collect();
                format!("map[{}]", entries.join(" "))
            }
            Self::Record(fields) => {
                format!("{{{}}}", fields.iter().map(|f| f.value.text()).collect::<Vec<_>>().join(" "))
            }
            other => other.json(),
        }
    }

    fn get(&self, path: &str) -> Result<Value, CliError> {
        let mut value = self;
        for name in path.trim_start_matches('.').split('.').filter(|name| !name.is_empty()) {
            let found = match value {
                Self::Record(fields) => fields.iter().find(|f| f.name == name).map(|f| &f.value),
                Self::Map(map) => Some(map.get(name).unwrap_or(&Self::Nil)),
                _ => None,
            };
            value = found.ok_or_else(|| CliError::user(format!("template: no field {name:?} in {path:?}")))?;
        }
        Ok(value.clone())
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// A template.
#[derive(Debug, PartialEq)]
pub struct Template(Vec<Node>);

#[derive(Debug, PartialEq)]
enum Node {
    Text(String),
    Show { path: String, json: bool },
    Range { path: String, body: Vec<Node> },
    If { path: String, body: Vec<Node> },
}

impl Template {
    /// Reads a template; `json` alone stands for `{{json .}}`.
    ///
    /// # Errors
    /// It is malformed, or uses what is not known here.
    pub fn parse(text: &str) -> Result<Self, CliError> {
        let text = if text == "json" { "{{json .}}" } else { text };
        let mut rest = text;
        let nodes = parse(&mut rest, false)?;
        Ok(Self(nodes))
    }

    /// Fills the template in.
    ///
    /// # Errors
    /// It names a field that the value does not have.
    pub fn fill(&self, value: &Value) -> Result<String, CliError> {
        let mut out = String::new();
        fill(&self.0, value, &mut out)?;
        Ok(out)
    }
}

fn parse(rest: &mut &str, inside: bool) -> Result<Vec<Node>, CliError> {
    let bad = |what: &str| CliError::user(format!("template: {what}"));
    let mut nodes = Vec::new();
    while let Some(at) = rest.find("{{") {
        if at > 0 {
            nodes.push(Node::Text(rest[..at].to_owned()));
        }
        let end = rest[at..].find("}}").ok_or_else(|| bad("unclosed action"))? + at;
        let action = rest[at + 2..end].trim().to_owned();
        *rest = &rest[end + 2..];
        let (word, argument) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        let path = argument.trim().to_owned();
        match word {
            "end" if inside => return Ok(nodes),
            "json" if path.starts_with('.') => nodes.push(Node::Show { path, json: true }),
            "range" if path.starts_with('.') => nodes.push(Node::Range { path, body: parse(rest, true)? }),
            "if" if path.starts_with('.') => nodes.push(Node::If { path, body: parse(rest, true)? }),
            word if word.starts_with('.') && path.is_empty() => {
                nodes.push(Node::Show { path: word.to_owned(), json: false });
            }
            _ => return Err(bad(&format!("unexpected {action:?}, use json, range, if or a field"))),
        }
    }
    if inside {
        return Err(bad("a range or if has no end"));
    }
    if !rest.is_empty() {
        nodes.push(Node::Text((*rest).to_owned()));
        *rest = "";
    }
    Ok(nodes)
}

fn fill(nodes: &[Node], value: &Value, out: &mut String) -> Result<(), CliError> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Show { path, json: true } => out.push_str(&value.get(path)?.json()),
            Node::Show { path, json: false } => out.push_str(&value.get(path)?.text()),
            Node::If { path, body } => {
                if !value.get(path)?.is_empty() {
                    fill(body, value, out)?;
                }
            }
            Node::Range { path, body } => match value.get(path)? {
                Value::List(list) => list.iter().try_for_each(|item| fill(body, item, out))?,
                Value::Map(map) => map.values().try_for_each(|item| fill(body, item, out))?,
                Value::Nil => {}
                _ => return Err(CliError::user(format!("template: {path:?} is no list"))),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Value {
        let record = |id: &str, parents: &[String]| {
            Value::Record(vec![
                Field::new("ID", "id", id.into()),
                Field::optional("Size", "size", Value::Int(0)),
                Field::new("Parents", "parents", parents.into()),
            ])
        };
        Value::List(vec![record("a<b", &[]), record("c", &["d".to_owned()])])
    }

    #[test]
    fn json_has_the_fields_in_order() {
        let text = Template::parse("json").unwrap().fill(&records()).unwrap();
        assert_eq!(text, r#"[{"id":"a<b","parents":null},{"id":"c","parents":["d"]}]"#);
    }

    #[test]
    fn fields_ranges_and_conditions() {
        let template = "{{range .}}{{ .ID }}{{if .Parents}} of {{.Parents}}{{end}};{{end}}!";
        assert_eq!(Template::parse(template).unwrap().fill(&records()).unwrap(), "a<b;c of [d];!");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in ["{{", "{{range .}}x", "{{printf \"%s\" .}}", "{{end}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
        assert!(Template::parse("{{.Nope}}").unwrap().fill(&records()).is_err());
    }
}
