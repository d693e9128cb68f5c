//! What happens to an engine and its builds besides damage: each kind gets an equal share of the rounds.

use std::fs;

use kiln_testkit::Run;
use rustix::process::Signal;

use crate::choices::Choices;
use crate::client::Client;
use crate::processes::engines;
use crate::project::{HELD, HOLD, Job, Project};

/// The kinds of trouble; what happens before the damage, after it, or during the build that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing but the damage.
    Nothing,
    /// The build after the damage exports to a remote cache.
    Export,
    /// It imports what was exported before, into a store without results.
    Import,
    /// It exports, and an empty root imports that.
    Fresh,
    /// `kiln prune` between damage and build.
    Prune,
    /// `kiln prune` while it builds.
    PruneBeside,
    /// The engine has a budget that holds next to nothing.
    Collect,
    /// A build before the damage was cancelled.
    Cancel,
    /// Another build at the same time, which is cancelled now and then.
    Beside,
    /// A build before the damage ran into a fault, which most often killed the engine.
    Fault,
}

impl Trouble {
    pub const ALL: [Self; 10] = [
        Self::Nothing,
        Self::Export,
        Self::Import,
        Self::Fresh,
        Self::Prune,
        Self::PruneBeside,
        Self::Collect,
        Self::Cancel,
        Self::Beside,
        Self::Fault,
    ];
}

/// Most lines that a build prints, about.
const LINES: usize = 110;

/// Places where a build can be hit, and how often they are passed at most in a build in which everything runs.
const HOOKS: [(&str, usize); 21] = [
    ("store.lazy.rename", 2),
    ("store.blob.write", 8),
    ("store.blob.rename", 8),
    ("store.blob.renamed", 8),
    ("store.unpack.start", 2),
    ("store.unpack.fs", 2),
    ("store.unpack.manifest", 2),
    ("store.layer.manifest", 8),
    ("store.layer.info", 8),
    ("store.layer.rename", 8),
    ("store.layer.renamed", 8),
    ("store.mount.rename", 1),
    ("store.db.commit", 30),
    ("store.image.blob", 4),
    ("store.image.index", 1),
    ("engine.step.start", 5),
    ("engine.step.end", 5),
    ("engine.export.start", 1),
    ("engine.export.built", 1),
    ("engine.export.done", 2),
    ("exporter.archive.entry", 8),
];

/// Returns how the client is asked to prune.
pub fn prune_arguments(choices: &mut Choices) -> Vec<&'static str> {
    let all: [&[&str]; 10] = [
        &["-f"],
        &["-af"],
        &["-f", "--filter", "type=regular"],
        &["-af", "--filter", "type=exec.cachemount"],
        &["-f", "--filter", "type=source.local"],
        &["-f", "--filter", "until=1h"],
        &["-f", "--filter", "unused-for=0s"],
        &["-af", "--max-used-space", "1MB"],
        &["-f", "--keep-storage", "2MB"],
        &["-af", "--reserved-space", "500kB", "--max-used-space", "3MB"],
    ];
    std::iter::once("prune").chain(choices.pick(&all).copied().unwrap_or(&["-f"]).iter().copied()).collect()
}

/// Prunes, which always works.
///
/// # Errors
/// It does not.
pub fn prune(project: &Project, arguments: &[&str]) -> Result<(), String> {
    let done = project.kiln(arguments).finish();
    if done.code == Some(0) { Ok(()) } else { Err(format!("{}\n{}", done.report(), project.engine_log())) }
}

/// Gives engines that start from now on a budget, and says which.
pub fn budget(project: &mut Project, choices: &mut Choices) -> String {
    let text = match choices.below(4) {
        0 => "[worker.oci]\ngc = true\nmaxUsedSpace = \"1MB\"\n",
        1 => "[worker.oci]\ngc = true\nreservedSpace = \"1MB\"\nmaxUsedSpace = \"4MB\"\n",
        2 => "[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = \"2MB\"\n",
        _ => {
            "[[worker.oci.gcpolicy]]\nfilters = [\"type==regular\"]\n[[worker.oci.gcpolicy]]\nmaxUsedSpace = \"1MB\"\n"
        }
    };
    let file = project.env.path().join("budget.toml");
    let written = fs::write(&file, text);
    project.variables.push(("KILN_CONFIG", file.display().to_string()));
    format!("{}{}", text.replace('\n', " "), written.err().map(|e| e.to_string()).unwrap_or_default())
}

/// Builds and cancels that somewhere.
///
/// # Errors
/// The client hangs or does not say that it has failed.
pub fn cancelled(project: &Project, job: &Job, choices: &mut Choices) -> Result<String, String> {
    if choices.below(2) == 0 {
        project.set_seed("data", HOLD);
    }
    let (lines, signal) = (choices.below(LINES), signal(choices));
    let mut client = Client::start(project.run(job));
    client.wait(|client| client.said.len() >= lines || client.said(HELD))?;
    let said = client.said.len();
    client.signal(signal);
    client.finish()?;
    project.set_seed("data", "let go");
    // A client that has said nothing yet may not listen to signals yet.
    told(&client, signal == Signal::KILL || said == 0)?;
    Ok(format!("a build is cancelled by {signal:?} after {said} lines, exit {:?}", client.code))
}

fn signal(choices: &mut Choices) -> Signal {
    *choices.pick(&[Signal::INT, Signal::TERM, Signal::KILL]).unwrap_or(&Signal::INT)
}

/// Checks that a client which did not end well said why.
fn told(client: &Client, killed: bool) -> Result<(), String> {
    let good = client.code.flatten() == Some(0) || killed || client.said.iter().any(|line| line.starts_with("ERROR: "));
    if good { Ok(()) } else { Err(format!("the client ends with {:?} and no error\n{}", client.code, client.text())) }
}

/// Builds with an engine that fails or dies at a hook.
///
/// # Errors
/// The client hangs or does not say that it has failed.
pub fn faulted(project: &mut Project, job: &Job, choices: &mut Choices) -> Result<String, String> {
    if choices.below(2) == 0 {
        project.stop()
    } else {
        project.kill()
    }
    let Some(&(hook, most)) = choices.pick(&HOOKS) else { return Ok(String::new()) };
    let action = ["kill", "kill", "kill", "error", "enospc"][choices.below(5)];
    // Not everything has to run again, so the first passings are the likelier ones.
    let last = 1 + choices.below(most);
    let nth = 1 + choices.below(last);
    let fault = format!("{hook}:{action}:{nth}");
    let mut client = Client::start(project.run(job).env("KILN_FAULT", &fault));
    client.finish()?;
    told(&client, false)?;
    let alive = !engines(project.env.root()).is_empty();
    // What was not met must not strike later.
    project.kill();
    Ok(format!("a build with {fault}, exit {:?}, engine alive {alive}", client.code))
}

/// Builds, and prunes when it has come some way.
///
/// # Errors
/// Either hangs, pruning fails, or the result is another than the cold one.
pub fn pruned_beside(project: &Project, job: &Job, choices: &mut Choices) -> Result<String, String> {
    let (lines, times) = (choices.below(LINES), 1 + choices.below(3));
    let mut client = Client::start(project.run(job));
    client.wait(|client| client.said.len() >= lines)?;
    let mut said = format!("after {} lines:", client.said.len());
    for _ in 0..times {
        let arguments = prune_arguments(choices);
        prune(project, &arguments)?;
        said.push_str(&format!(" {}", arguments.join(" ")));
    }
    client.finish()?;
    project.judge(job, client.code.flatten(), &client.text()).map_err(|text| format!("{said}\n{text}"))?;
    Ok(said)
}

/// Builds, and builds again beside it: the same, or with other seeds, or something that is cancelled.
///
/// # Errors
/// One hangs, or has another result than the cold one.
pub fn beside(project: &Project, job: &Job, choices: &mut Choices) -> Result<String, String> {
    let mut second = project.second(job.packing);
    let other = choices.below(2) == 0;
    if other {
        second.context = project.other_context(&choices.next().to_string());
    }
    let (lines, cancel) = (choices.below(LINES), (choices.below(3) == 0).then(|| choices.below(LINES)));
    let mut clients = [Client::start(project.run(job)), Client::start(Run::new("true"))];
    clients[0].wait(|client| client.said.len() >= lines)?;
    clients[1] = Client::start(project.run(&second));
    let what = if other { "other seeds" } else { "the same" };
    let mut said = format!("another build ({what}) after {} lines", clients[0].said.len());
    if let Some(lines) = cancel {
        let signal = signal(choices);
        clients[1].wait(|client| client.said.len() >= lines)?;
        clients[1].signal(signal);
        said.push_str(&format!(", cancelled by {signal:?} after {} lines", clients[1].said.len()));
    }
    let wrap = |text: String| format!("{said}\n{text}");
    for client in &mut clients {
        client.finish().map_err(wrap)?;
    }
    project.judge(job, clients[0].code.flatten(), &clients[0].text()).map_err(wrap)?;
    match cancel {
        None => project.judge(&second, clients[1].code.flatten(), &clients[1].text()).map_err(wrap)?,
        Some(_) => told(&clients[1], true)?,
    }
    Ok(said)
}
