//! `--call`: a question about the Dockerfile in place of a build.

use super::csv;
use crate::env::parse_bool;
use crate::error::CliError;

/// Questions that people can ask, by the name they use.
const NAMES: [&str; 4] = ["build", "check", "outline", "targets"];

/// A question, and how its answer is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name without `frontend.`: `lint`, `outline`, `targets`, `subrequests.describe`.
    pub name: String,
    /// Show the answer's JSON as it is.
    pub json: bool,
    /// Findings do not change the exit code.
    pub ignore_status: bool,
}

impl Call {
    /// Reads `NAME[,format=json|text][,ignorestatus=BOOL]`; none for a build.
    pub fn parse(text: &str) -> Result<Option<Call>, CliError> {
        let mut call = Call { name: String::new(), json: false, ignore_status: false };
        for field in csv::fields(text).map_err(|e| CliError::user(format!("invalid --call: {e}")))? {
            match field.split_once('=') {
                Some(("format", value)) => call.json = value == "json",
                Some(("ignorestatus", value)) => {
                    call.ignore_status = parse_bool(value)
                        .ok_or_else(|| CliError::user(format!("invalid ignorestatus print value: {value}")))?;
                }
                Some((key, _)) => {
                    return Err(CliError::user(format!("invalid print field: {field}")).nearest(
                        "field",
                        key,
                        ["format", "ignorestatus"].into_iter(),
                    ));
                }
                None if call.name.is_empty() => call.name.clone_from(&field),
                None => return Err(CliError::user(format!("invalid print value: {text}"))),
            }
        }
        match call.name.as_str() {
            "" | "build" => return Ok(None),
            "check" => "lint".clone_into(&mut call.name),
            "lint" | "outline" | "targets" | "subrequests.describe" => {}
            // A frontend of the user's own may know more; what looks like a slip is told of at once.
            other => {
                if let Some(near) = kiln_stdx::suggest::nearest(other, NAMES) {
                    return Err(CliError::user(format!("unknown method of --call: {other}"))
                        .hint(format!("did you mean `{near}`?")));
                }
            }
        }
        Ok(Some(call))
    }

    /// Returns the frontend's name of the question.
    pub fn request(&self) -> String {
        format!("frontend.{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let call = |name: &str, json, ignore_status| Ok(Some(Call { name: name.to_owned(), json, ignore_status }));
        let parse = |text| Call::parse(text).map_err(|e| e.message().to_owned());
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("build"), Ok(None));
        assert_eq!(parse("check"), call("lint", false, false));
        assert_eq!(parse("lint,format=json,ignorestatus=1"), call("lint", true, true));
        assert_eq!(parse("outline,format=text"), call("outline", false, false));
        assert_eq!(parse("my.own"), call("my.own", false, false));
        for (text, want) in [
            ("outline,targets", "invalid print value: outline,targets"),
            ("outline,color=1", "invalid print field: color=1"),
            ("outline,ignorestatus=maybe", "invalid ignorestatus print value: maybe"),
            ("outlines", "unknown method of --call: outlines"),
        ] {
            assert_eq!(parse(text), Err(want.to_owned()), "{text}");
        }
    }
}
