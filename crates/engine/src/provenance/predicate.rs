//! The predicates: SLSA provenance in its versions 1 and 0.2, with BuildKit's fields.

use std::time::SystemTime;

use kiln_oci::Platform;
use serde_json::{Map, Value, json};

use super::capture::Capture;
use super::materials::materials;
use super::options::{Mode, Options};
use super::request::{Described, redacted};

/// The version of the Dockerfile language that the built-in frontend implements.
pub const DOCKERFILE_VERSION: &str = "1.20.0";
const BUILD_TYPE: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_02: &str = "https://mobyproject.org/buildkit@v1";

/// Everything that a predicate is made of.
pub struct Told<'a> {
    pub capture: &'a Capture,
    pub request: Described,
    /// The request that this one came of, where it is another one.
    pub root: Option<Described>,
    pub started: SystemTime,
    pub finished: SystemTime,
    pub id: &'a str,
    /// `llbDefinition` and `digestMapping`.
    pub config: Option<Value>,
    /// `source` and `layers`.
    pub details: Map<String, Value>,
    /// What whoever runs the engine adds.
    pub environment: &'a Map<String, Value>,
    /// Level of the exporters.
    pub compatibility: u32,
}

impl Told<'_> {
    /// Returns the predicate in the version that is wanted.
    pub fn predicate(mut self, options: &Options) -> Value {
        let complete = !self.capture.incomplete && self.capture.locals.is_empty();
        let mut request_complete = !self.request.frontend.is_empty();
        let vcs = vcs(&mut self.request);
        if let Some(root) = &mut self.root {
            self::vcs(root);
        }
        if options.mode == Mode::Min {
            let hid = hide(&mut self.request) | self.root.as_mut().is_some_and(hide);
            request_complete &= !hid;
        }
        if !vcs.is_empty() {
            self.details.insert("vcs".into(), Value::Object(vcs));
        }
        let hermetic = complete && !self.capture.network;
        let parameters = self.parameters(options);
        let environment = self.environment();
        if options.is_02 {
            return self.old(options, &parameters, environment, (request_complete, complete, hermetic));
        }
        let mut predicate = json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": { "configSource": self.request.config, "request": parameters },
                "resolvedDependencies": materials(self.capture),
            },
            "runDetails": {
                "builder": { "id": options.builder_id },
                "metadata": {
                    "invocationId": self.id,
                    "startedOn": time(self.started),
                    "finishedOn": time(self.finished),
                    "buildkit_hermetic": hermetic,
                    "buildkit_completeness": { "request": request_complete, "resolvedDependencies": complete },
                    "buildkit_reproducible": options.reproducible,
                },
            },
        });
        // What has every step in it is moved: the macro copies.
        predicate["buildDefinition"]["internalParameters"] = Value::Object(environment);
        predicate["runDetails"]["metadata"]["buildkit_metadata"] = Value::Object(self.details);
        predicate
    }

    fn old(
        self,
        options: &Options,
        parameters: &Value,
        mut environment: Map<String, Value>,
        (request, complete, hermetic): (bool, bool, bool),
    ) -> Value {
        let mut source = self.request.config.clone();
        if let Some(path) = source.remove("path") {
            source.insert("entryPoint".into(), path);
        }
        let config = environment.remove("buildConfig");
        let platform = environment.remove("builderPlatform");
        environment.insert("platform".into(), json!(platform));
        let mut predicate = json!({
            "builder": { "id": options.builder_id },
            "buildType": BUILD_TYPE_02,
            "materials": materials(self.capture),
            "invocation": { "configSource": source, "parameters": parameters, "environment": environment },
            "metadata": {
                "buildInvocationID": self.id,
                "buildStartedOn": time(self.started),
                "buildFinishedOn": time(self.finished),
                "completeness": { "parameters": request, "environment": true, "materials": complete },
                "reproducible": options.reproducible,
                "https://mobyproject.org/buildkit@v1#hermetic": hermetic,
            },
        });
        predicate["metadata"]["https://mobyproject.org/buildkit@v1#metadata"] = Value::Object(self.details);
        if let Some(config) = config {
            predicate["buildConfig"] = config;
        }
        predicate
    }

    fn parameters(&self, options: &Options) -> Value {
        let mut request = self.request.request();
        let list = |all: &std::collections::BTreeMap<String, bool>| -> Vec<Value> {
            all.iter().map(|(id, optional)| json!({ "id": id, "optional": optional })).collect()
        };
        if options.mode == Mode::Max {
            if !self.capture.secrets.is_empty() {
                request.insert("secrets".into(), json!(list(&self.capture.secrets)));
            }
            if !self.capture.agents.is_empty() {
                request.insert("ssh".into(), json!(list(&self.capture.agents)));
            }
        }
        if !self.capture.locals.is_empty() {
            let locals: Vec<Value> = self.capture.locals.iter().map(|name| json!({ "name": name })).collect();
            request.insert("locals".into(), json!(locals));
        }
        if let Some(root) = self.root.as_ref().filter(|root| **root != self.request) {
            request.insert("root".into(), root.to_json());
        }
        request.insert("compatibilityVersion".into(), json!(self.compatibility));
        Value::Object(request)
    }

    fn environment(&mut self) -> Map<String, Value> {
        let mut environment = self.environment.clone();
        environment.insert("builderPlatform".into(), json!(Platform::host().normalize().to_string()));
        if self.request.frontend == "dockerfile.v0" {
            environment.insert("dockerfileVersion".into(), json!(DOCKERFILE_VERSION));
        }
        if let Some(config) = self.config.take() {
            environment.insert("buildConfig".into(), config);
        }
        environment
    }
}

/// Takes what a client says of its repository out of the options.
fn vcs(request: &mut Described) -> Map<String, Value> {
    let mut found = Map::new();
    request.args.retain(|key, value| {
        let Some(name) = key.strip_prefix("vcs:") else { return true };
        if !value.is_empty() {
            found.insert(name.to_owned(), json!(if name == "source" { redacted(value) } else { value.clone() }));
        }
        false
    });
    found
}

/// Takes out what may be private; tells whether there was something.
fn hide(request: &mut Described) -> bool {
    let before = request.args.len();
    request.args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
    let mut hid = request.args.len() < before;
    for input in request.inputs.values_mut() {
        hid |= hide_json(input);
    }
    hid
}

fn hide_json(described: &mut Value) -> bool {
    let Some(request) = described.get_mut("request").and_then(Value::as_object_mut) else { return false };
    let mut hid = false;
    if let Some(args) = request.get_mut("args").and_then(Value::as_object_mut) {
        let before = args.len();
        args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
        hid |= args.len() < before;
    }
    if let Some(inputs) = request.get_mut("inputs").and_then(Value::as_object_mut) {
        hid |= inputs.values_mut().fold(false, |hid, input| hide_json(input) | hid);
    }
    hid
}

/// Returns a time as RFC 3339 has it, in UTC, in whole seconds.
pub fn seconds(at: SystemTime) -> String {
    let text = time(at);
    format!("{}Z", text.split('.').next().unwrap_or(&text))
}

/// Returns a time as RFC 3339 has it, in UTC, with nanoseconds.
pub fn time(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    format!("{time:.9}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn told<'a>(capture: &'a Capture, environment: &'a Map<String, Value>) -> Told<'a> {
        let args = [("build-arg:A", "1"), ("vcs:source", "https://u:p@h/r"), ("target", "t")];
        let args: BTreeMap<String, String> = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Told {
            capture,
            request: Described { frontend: "dockerfile.v0".into(), args, ..Described::default() },
            root: None,
            started: SystemTime::UNIX_EPOCH,
            finished: SystemTime::UNIX_EPOCH + Duration::from_nanos(1),
            id: "b1",
            config: None,
            details: Map::new(),
            environment,
            compatibility: 30,
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_795_252_186, "2026-11-21T09:09:46.000000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
            let short = super::seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(short, text.replace(".000000000", ""));
        }
    }

    #[test]
    fn the_short_form_keeps_private_things_to_itself() {
        let mut capture = Capture { network: true, ..Capture::default() };
        capture.secrets.insert("s".into(), false);
        let environment = Map::from_iter([("site".to_owned(), json!("here"))]);
        let min = told(&capture, &environment).predicate(&Options { mode: Mode::Min, ..Options::default() });
        let parameters = &min["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(parameters["args"], json!({ "target": "t" }));
        assert_eq!(parameters.get("secrets"), None);
        assert_eq!(min["runDetails"]["metadata"]["buildkit_completeness"]["request"], json!(false));
        let max = told(&capture, &environment).predicate(&Options::default());
        assert_eq!(max["buildDefinition"]["externalParameters"]["request"]["secrets"][0]["id"], json!("s"));
        assert_eq!(
            max["runDetails"]["metadata"]["buildkit_metadata"]["vcs"]["source"],
            json!("https://xxxxx:xxxxx@h/r")
        );
        assert_eq!(max["buildDefinition"]["internalParameters"]["site"], json!("here"));
        assert_eq!(max["runDetails"]["metadata"]["buildkit_hermetic"], json!(false));
    }

    #[test]
    fn both_versions_say_the_same() {
        let (capture, environment) = (Capture::default(), Map::new());
        let old = told(&capture, &environment).predicate(&Options { is_02: true, ..Options::default() });
        assert_eq!(old["buildType"], json!(BUILD_TYPE_02));
        assert_eq!(old["invocation"]["parameters"]["frontend"], json!("dockerfile.v0"));
        assert_eq!(old["invocation"]["environment"]["dockerfileVersion"], json!(DOCKERFILE_VERSION));
        assert_eq!(old["metadata"]["completeness"]["materials"], json!(true));
    }
}
