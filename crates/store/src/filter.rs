//! Filters of usage records: `field==value`, `!=`, `~=` (regular expression) or a bare field (present); conditions
//! joined by commas must all hold, of several filters one.

use regex::Regex;

use crate::error::{Result, StoreError};
use crate::usage::UsageRecord;

/// A list of filters; an empty one lets everything pass.
#[derive(Debug, Default)]
pub struct Filters(Vec<Vec<Condition>>);

#[derive(Debug)]
struct Condition {
    field: String,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Parses filters.
    ///
    /// # Errors
    /// A malformed one, or a bad regular expression.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self> {
        filters.iter().map(|f| parse(f.as_ref())).collect::<Result<_>>().map(Self)
    }

    /// Tells whether a record passes.
    pub fn matches(&self, record: &UsageRecord) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|condition| condition.holds(record)))
    }
}

impl Condition {
    fn holds(&self, record: &UsageRecord) -> bool {
        let (value, present) = field(record, &self.field);
        match &self.test {
            Test::Present => present,
            Test::Equal(wanted) => present && value == *wanted,
            Test::NotEqual(other) => value != *other,
            Test::Matches(regex) => present && regex.is_match(&value),
        }
    }
}

fn field(record: &UsageRecord, name: &str) -> (String, bool) {
    let flag = |set: bool| (String::new(), set);
    match name {
        "id" => (record.id.clone(), !record.id.is_empty()),
        "parents" => (record.parents.join(";"), !record.parents.is_empty()),
        "description" => (record.description.clone(), !record.description.is_empty()),
        "inuse" => flag(record.in_use),
        "mutable" => flag(record.mutable),
        "immutable" => flag(!record.mutable),
        "type" => (record.record_type.as_str().to_owned(), true),
        "shared" => flag(record.shared),
        "private" => flag(!record.shared),
        _ => flag(false),
    }
}

/// One filter's text while it is read.
struct Reader<'a> {
    whole: &'a str,
    rest: &'a str,
}

impl Reader<'_> {
    fn bad(&self, what: &str) -> StoreError {
        StoreError::Invalid(format!("filter `{}`: {what}", self.whole))
    }

    fn field(&mut self) -> Result<String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c))).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.bad("a field name is missing"));
        }
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn value(&mut self) -> Result<String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let (value, rest) = self.rest.split_at(self.rest.find(',').unwrap_or(self.rest.len()));
        self.rest = rest;
        Ok(value.to_owned())
    }

    fn quoted(&mut self) -> Result<String> {
        let mut out = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(out);
                }
                '\\' => out.push(chars.next().ok_or_else(|| self.bad("the quote is not closed"))?.1),
                c => out.push(c),
            }
        }
        Err(self.bad("the quote is not closed"))
    }
}

fn parse(filter: &str) -> Result<Vec<Condition>> {
    let mut reader = Reader { whole: filter, rest: filter };
    let mut conditions = Vec::new();
    while !reader.rest.is_empty() {
        let field = reader.field()?;
        let operator = ["==", "!=", "~="].into_iter().find(|op| reader.rest.starts_with(op));
        let test = match operator {
            None => Test::Present,
            Some(op) => {
                reader.rest = &reader.rest[2..];
                // An operator is as long as it can be: a value that begins like one has to be quoted.
                if reader.rest.starts_with(['=', '!', '~']) {
                    return Err(reader.bad("no such operator"));
                }
                let value = reader.value()?;
                match op {
                    "==" => Test::Equal(value),
                    "!=" => Test::NotEqual(value),
                    _ => Test::Matches(Regex::new(&value).map_err(|e| reader.bad(&e.to_string()))?),
                }
            }
        };
        conditions.push(Condition { field, test });
        match reader.rest.strip_prefix(',') {
            Some(rest) if !rest.is_empty() => reader.rest = rest,
            None if reader.rest.is_empty() => {}
            _ => return Err(reader.bad("`,` or the end is expected")),
        }
    }
    Ok(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordType;

    fn record() -> UsageRecord {
        UsageRecord {
            id: "abc".into(),
            description: "mount / from exec, twice".into(),
            record_type: RecordType::ExecCacheMount,
            mutable: true,
            ..UsageRecord::default()
        }
    }

    #[test]
    fn table() {
        let cases: &[(&[&str], bool)] = &[
            (&[], true),
            (&["id==abc"], true),
            (&["id==ab"], false),
            (&["id!=ab"], true),
            (&["id~=^a.c$"], true),
            (&["type==exec.cachemount,mutable"], true),
            (&["type==exec.cachemount,inuse"], false),
            (&["type==regular", "id==abc"], true),
            (&["private"], true),
            (&["shared"], false),
            (&["immutable"], false),
            (&["description==\"mount / from exec, twice\""], true),
            (&["parents"], false),
            (&["unknown"], false),
        ];
        for (filters, want) in cases {
            assert_eq!(Filters::parse(filters).unwrap().matches(&record()), *want, "{filters:?}");
        }
        for bad in ["==x", "id=x", "id~=(", "id==a,", "\"id", "id==\"a", "id===a"] {
            assert!(Filters::parse(&[bad]).is_err(), "{bad}");
        }
    }
}
