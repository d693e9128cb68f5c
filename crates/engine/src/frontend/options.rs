//! The frontend options of a request (BuildKit's `dockerfile.v0` names): the compiler reads them, here is what the engine
//! makes of them.

use std::collections::BTreeMap;

use kiln_dockerfile::{BuildOptions, FrontendOptions, MainContext};
use kiln_llb::Definition;
use kiln_oci::Platform;

use crate::bridge::Bridge;
use crate::error::{EngineError, Unsupported};
use crate::inspect;
use crate::request::FrontendRequest;

type Attrs = BTreeMap<String, String>;

/// What callers may rely on (`frontend.caps`).
const CAPS: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

/// Bytes of a remote context that tell what it is.
const PROBE: u64 = 1024;

/// Where Dockerfile and context come from.
pub struct Files {
    /// Session-local name of the Dockerfile's directory.
    pub dockerfile_local: String,
    pub session: String,
    /// Path of the Dockerfile in its directory.
    pub name: String,
    pub context: MainContext,
    /// Text of the ignore file beside the Dockerfile.
    pub own_ignore: Option<Vec<u8>>,
    /// The caller names the directory that the Dockerfile is in, so it is not looked for in a remote context.
    pub dockerfile_is_local: bool,
    dockerfile: Option<Definition>,
    /// Sessions of single directories, by the directory's name.
    sessions: Attrs,
}

impl Files {
    /// Finds out where the files of a request are that `parsed` was read from.
    ///
    /// # Errors
    /// A context address with bad parameters.
    pub fn new(request: &FrontendRequest, parsed: &FrontendOptions) -> Result<Self, EngineError> {
        let names = [&parsed.context_local, &parsed.dockerfile_local];
        if let Some(name) = names.into_iter().find(|name| is_nil(request.inputs.get(*name))) {
            let text = format!("input {name}: invalid nil input definition to definition op");
            return Err(EngineError::user(text));
        }
        let mut context = parsed.main_context().map_err(wrong)?;
        // A graph that the caller hands in stands for the directory of its name.
        if let (MainContext::Local { .. }, Some(definition)) = (&context, request.inputs.get(&parsed.context_local)) {
            context = MainContext::Graph { definition: definition.clone(), subdir: parsed.context_subdir.clone() };
        }
        Ok(Self {
            dockerfile: request.inputs.get(&parsed.dockerfile_local).cloned(),
            dockerfile_is_local: parsed.force_local_dockerfile,
            dockerfile_local: parsed.dockerfile_local.clone(),
            session: parsed.build.session.clone(),
            name: parsed.filename.clone(),
            context,
            own_ignore: None,
            sessions: parsed.build.local_sessions.clone(),
        })
    }

    /// Returns the compiler's options for one platform.
    pub fn options(&self, parsed: &FrontendOptions, platform: Option<&Platform>) -> BuildOptions {
        BuildOptions { main_context: self.context.clone(), ..parsed.for_platform(platform) }
    }

    /// Returns the session that gives a directory.
    pub fn session_of(&self, local: &str) -> &str {
        self.sessions.get(local).unwrap_or(&self.session)
    }

    /// Returns the graph to read the Dockerfile from, where it is not a directory of the client.
    pub fn dockerfile_graph(&self) -> Option<Definition> {
        self.dockerfile.clone()
    }

    /// Fetches a remote context far enough to know what it is, and returns the graph that holds all of it.
    ///
    /// # Errors
    /// The context cannot be fetched.
    pub async fn resolve_remote(&mut self, bridge: &Bridge) -> Result<Option<Definition>, EngineError> {
        let host = Platform::host();
        // Only an archive has directories in it.
        let unscoped = match &self.context {
            MainContext::Http { url, archive: false, .. } => {
                MainContext::Http { url: url.clone(), archive: false, subdir: None }
            }
            other => other.clone(),
        };
        let Some(definition) = unscoped.definition(&host).map_err(wrong)? else { return Ok(None) };
        let MainContext::Http { url, archive, subdir } = &self.context else { return Ok(Some(definition)) };
        if *archive {
            return Ok(Some(definition));
        }
        let reference = bridge.define(definition.clone()).await?;
        let reference = reference.ok_or_else(|| EngineError::user("the build context is empty"))?;
        let layers = bridge.files(&reference).await?;
        let range = inspect::Range { offset: 0, length: PROBE };
        let head = inspect::read_file(bridge.parts(), &layers, "context", Some(range)).await?;
        if kiln_dockerfile::context::is_archive(&head) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            self.context = MainContext::Http { url: url.clone(), archive: true, subdir: subdir.clone() };
            return self.context.definition(&host).map_err(wrong);
        }
        // The body is the Dockerfile itself, and there is no context beside it.
        self.name = "context".to_owned();
        self.dockerfile = Some(definition.clone());
        Ok(Some(definition))
    }
}

/// Reads the options of a request, and what it hands in.
///
/// # Errors
/// A malformed value, with the option's name; a capability that the frontend does not have.
pub fn parse(request: &FrontendRequest, session: &str) -> Result<FrontendOptions, EngineError> {
    let build_platforms = BuildOptions::default().build_platforms;
    let mut parsed = FrontendOptions::parse(&request.attrs, session, build_platforms).map_err(wrong)?;
    check_caps(&parsed.caps)?;
    parsed.add_inputs(request.inputs.clone());
    Ok(parsed)
}

fn wrong(error: kiln_dockerfile::DockerfileError) -> EngineError {
    EngineError::user(error.to_string())
}

/// Tells whether a graph was handed in that is none at all, which is not the same as an empty file system.
fn is_nil(input: Option<&Definition>) -> bool {
    input.is_some_and(|definition| definition.is_empty())
}

/// Checks that the frontend can do what the caller relies on. The error names the capability.
fn check_caps(caps: &[String]) -> Result<(), EngineError> {
    match caps.iter().find(|cap| !CAPS.contains(&cap.trim_end_matches("+forward"))) {
        Some(unknown) => Err(EngineError::unsupported(Unsupported::Capability(unknown.to_owned()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(list: &[(&str, &str)]) -> Attrs {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn files_of(request: FrontendRequest) -> Result<Files, EngineError> {
        Files::new(&request, &parse(&request, "s")?)
    }

    #[test]
    fn an_unknown_capability_is_named() {
        let check = |list: &str| {
            let request = FrontendRequest { attrs: attrs(&[("frontend.caps", list)]), ..FrontendRequest::default() };
            parse(&request, "s").map(drop)
        };
        check("moby.buildkit.frontend.contexts+forward").unwrap();
        let error = check("moby.buildkit.frontend.inputs,x.y").unwrap_err();
        let wanted = Unsupported::Capability("x.y".to_owned());
        assert_eq!(error.further().unwrap().unsupported, Some(wanted));
    }

    #[test]
    fn contexts_are_taken_as_the_options_say() {
        let files = |list: &[(&str, &str)]| {
            files_of(FrontendRequest { attrs: attrs(list), ..FrontendRequest::default() }).unwrap()
        };
        let git = files(&[
            ("context", "https://h.test/r.git"),
            ("contextsubdir", "sub"),
            ("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "1"),
            ("build-arg:SOURCE_DATE_EPOCH", "5"),
        ]);
        let MainContext::Git(git) = git.context else { panic!("{:?}", git.context) };
        assert_eq!((git.keep_git_dir, git.commit_mtime, git.scope.as_deref()), (true, true, Some("sub")));
        let http =
            files(&[("context", "https://h.test/r.tar"), ("contextsubdir", "sub"), ("dockerfilekey", "dockerfile")]);
        assert!(http.dockerfile_is_local);
        assert!(matches!(http.context, MainContext::Http { subdir: Some(dir), .. } if dir == "sub"));
        assert!(!files(&[]).dockerfile_is_local);
    }

    #[test]
    fn directories_have_sessions_of_their_own() {
        let request =
            FrontendRequest { attrs: attrs(&[("local-sessionid:context", "s2")]), ..FrontendRequest::default() };
        let files = files_of(request).unwrap();
        assert_eq!((files.session_of("context"), files.session_of("dockerfile")), ("s2", "s"));
        let inputs = BTreeMap::from([("context".to_owned(), Definition::default())]);
        let error = files_of(FrontendRequest { inputs, ..FrontendRequest::default() }).err().unwrap();
        assert!(error.to_string().contains("invalid nil input definition"), "{error}");
    }
}
