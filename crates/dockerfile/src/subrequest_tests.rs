//! Answers as tools read them.

use super::*;
use crate::{BuildOptions, Resolved, lower, parse, plan};

const FILE: &str = "# BASE where it starts\nARG BASE=scratch\nARG OTHER=x\n# build makes it\nFROM ${BASE} AS build\nARG OTHER\n# V the version\n\
ARG V=1\nRUN --mount=type=secret,id=tok,required --mount=type=ssh --mount=type=cache,target=/c x\nfrom build\nARG UNUSED\n";

fn text(answer: &Answer, key: &str) -> String {
    String::from_utf8(answer[key].clone()).unwrap()
}

fn lowered(file: &Dockerfile) -> Lowered {
    let options = BuildOptions::default();
    let plan = plan(file, &options, &Resolved::default()).unwrap();
    lower(file, &plan, &options, &Resolved::default()).unwrap()
}

#[test]
fn targets_are_listed() {
    let answer = targets(&parse("Dockerfile", FILE.as_bytes()).unwrap());
    assert_eq!(text(&answer, "result.txt"), "TARGET    DESCRIPTION\nbuild     makes it\n(default) \n");
    let json: serde_json::Value = serde_json::from_slice(&answer["result.json"]).unwrap();
    assert_eq!(json["targets"][0]["location"]["ranges"][0]["start"]["line"], 5);
    assert_eq!(json["targets"][1]["base"], "build");
    assert_eq!(json["targets"][1]["default"], true);
}

#[test]
fn outlines_say_what_a_target_takes() {
    let file = parse("Dockerfile", FILE.as_bytes()).unwrap();
    let answer = outline(&file, None, &lowered(&file));
    assert_eq!(
        text(&answer, "result.txt"),
        "BUILD ARG   VALUE     DESCRIPTION\nBASE        scratch   where it starts\nOTHER       x         \n\
         V           1         the version\nUNUSED                \n\nSECRET   REQUIRED\ntok      true\n\nSSH       REQUIRED\ndefault   \n\n"
    );
    let json: serde_json::Value = serde_json::from_slice(&answer["result.json"]).unwrap();
    assert_eq!(
        json["secrets"][0],
        serde_json::json!({"name": "tok", "required": true, "location": {"ranges": [{"start": {"line": 9}, "end": {"line": 9}}]}})
    );
    assert_eq!(json["cache"][0]["ID"], "/c");
}

#[test]
fn lint_results_hold_warnings_and_the_error() {
    let file = parse("Dockerfile", FILE.as_bytes()).unwrap();
    let answer = lint(&file.source, Ok(&lowered(&file)));
    assert_eq!(text(&answer, "result.statuscode"), "1");
    let shown = text(&answer, "result.txt");
    assert!(
        shown.starts_with(
            "\nWARNING: ConsistentInstructionCasing - https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/\n"
        ),
        "{shown}"
    );
    assert!(shown.contains("Dockerfile:10\n--------------------\n"), "{shown}");
    let broken = format!("{FILE}EXPOSE x\n");
    let file = parse("Dockerfile", broken.as_bytes()).unwrap();
    let options = BuildOptions::default();
    let plan = plan(&file, &options, &Resolved::default()).unwrap();
    let error = lower(&file, &plan, &options, &Resolved::default()).unwrap_err();
    let answer = lint(&file.source, Err(&error));
    let json: serde_json::Value = serde_json::from_slice(&answer["result.json"]).unwrap();
    assert_eq!(json["buildError"]["message"], "invalid containerPort: x");
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn clean_files_have_status_zero() {
    let file = parse("Dockerfile", b"FROM scratch\n").unwrap();
    assert_eq!(text(&lint(&file.source, Ok(&lowered(&file))), "result.statuscode"), "0");
}

#[test]
fn questions_are_described() {
    let answer = describe();
    let json: serde_json::Value = serde_json::from_slice(&answer["result.json"]).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert!(text(&answer, "result.txt").contains("outline"));
}
