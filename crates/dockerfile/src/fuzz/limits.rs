//! Files far larger or stranger than anybody writes: each ends in a result or an error. `benches/limits.py` times them.

use super::lowering::build;
use crate::{BuildOptions, parse};

/// Compiles a file; returns the first error.
fn compile(text: &str) -> Result<(), String> {
    let options = BuildOptions { all_stages: true, ..BuildOptions::default() };
    let result = parse("Dockerfile", text.as_bytes()).and_then(|file| build(&file, &options, b"{}"));
    result.map(drop).map_err(|e| e.to_string())
}

#[track_caller]
fn fails(text: &str, with: &str) {
    let error = compile(text).expect_err("it was built");
    assert!(error.contains(with), "{}", &error[error.len().saturating_sub(200)..]);
}

#[test]
fn many_lines_end() {
    let lines = "RUN true\n".repeat(30_000);
    assert_eq!(compile(&format!("FROM scratch AS x\n{lines}")), Ok(()));
    // A graph has a limit, and a file that goes beyond it an error.
    let lines = "WORKDIR /a\n".repeat(kiln_stdx::limits::LLB_OPS + 1);
    fails(&format!("FROM scratch AS x\n{lines}"), "more than 32768 operations");
    assert!(compile(&"COPI a\n".repeat(20_000)).is_err());
    let names = |kind: &str| (0..20_000).map(|i| format!("{kind} V{i}=x\n")).collect::<String>();
    for kind in ["ARG", "ENV", "LABEL"] {
        assert_eq!(compile(&format!("FROM scratch\n{}", names(kind))), Ok(()), "{kind}");
    }
}

#[test]
fn many_stages_end() {
    let stages: String = (0..10_000).map(|i| format!("FROM scratch AS s{i}\nCOPY a /\n")).collect();
    assert_eq!(compile(&stages), Ok(()));
    let chain: String = (1..10_000).map(|i| format!("FROM s{} AS s{i}\n", i - 1)).collect();
    assert_eq!(compile(&format!("FROM scratch AS s0\n{chain}")), Ok(()));
    let cycle: String =
        (0..5_000).map(|i| format!("FROM scratch AS s{i}\nCOPY --from=s{} / /\n", (i + 1) % 5_000)).collect();
    fails(&cycle, "circular dependency");
    fails("FROM a AS b\nCOPY --from=c / /\nFROM b AS c\nCOPY --from=b / /\n", "circular dependency");
}

#[test]
fn values_of_themselves_end() {
    assert_eq!(compile("ARG A=${A}${A}\nARG B=${B:-$A}\nFROM ${A:-scratch}\nARG C=$C$C\nENV C=$C$C\n"), Ok(()));
    let twice = "ENV A=$A$A\n".repeat(60);
    fails(&format!("FROM scratch\nENV A=xx\n{twice}"), "longer than");
    fails(&format!("ARG A=xx\n{}FROM scratch\n", twice.replace("ENV", "ARG")), "longer than");
    fails(&format!("FROM scratch\n{}", "WORKDIR aaaaaaaa\n".repeat(2_000)), "the working directory is longer");
    // What every step has of all variables above grows with the square of the lines.
    let pairs: String = (0..20_000).map(|i| format!("ENV V{i}=x\nRUN true\n")).collect();
    fails(&format!("FROM scratch\n{pairs}"), "MiB of values and variables");
    fails(&format!("FROM scratch\n{}", "EXPOSE 1-65535\n".repeat(100)), "MiB of values and variables");
}

#[test]
fn long_lines_and_deep_nests_end() {
    assert_eq!(compile(&format!("FROM scratch\nRUN {}\n", "x".repeat(65_000))), Ok(()));
    fails(&format!("FROM scratch\nRUN {}\n", "x".repeat(66_000)), "greater than max allowed size");
    fails(&format!("FROM scratch\nENV b={}\n", "${a:-".repeat(13_000)), "nested too deeply");
    assert_eq!(compile(&format!("FROM scratch\nCMD {}\n", "[".repeat(60_000))), Ok(()));
    let docs: String = (0..3_000).map(|i| format!(" <<E{i}")).collect();
    let ends: String = (0..3_000).map(|i| format!("E{i}\n")).collect();
    assert_eq!(compile(&format!("FROM scratch\nCOPY{docs} /x/\n{ends}")), Ok(()));
    let nine = "9".repeat(40);
    for line in ["EXPOSE N", "STOPSIGNAL N", "HEALTHCHECK --retries=N CMD x", "COPY --chmod=N a b"] {
        assert!(compile(&format!("FROM scratch\n{}\n", line.replace('N', &nine))).is_err(), "{line}");
    }
}
