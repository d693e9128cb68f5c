//! Mutated Dockerfiles from fixed seeds: whatever comes in, the compiler answers and does not panic.

use kiln_dockerfile::advice::{self, ContextView};
use kiln_dockerfile::{BuildOptions, MainContext, Resolved, ResolvedImage, Wanted, lower, parse, plan, render};

const SEED: &str = "# syntax=x\n# escape=\\\n# check=experimental=all\nARG B=debian:12 C=${B%:*}\n# a first\nFROM --platform=$BUILDPLATFORM ${B:-x} AS a\n\
ARG V=1\nENV A=${V:+x} \"K\"='v' P=${A//b/c}\nRUN --mount=type=cache,target=/c,sharing=locked,uid=1 --network=none echo $A \\\n  more\n\
RUN <<-EOF cat\n\tx $A\n\tEOF\nCOPY --from=b --chown=1:2 --chmod=u+x --parents x/./y* ./z/\nCOPY <<\"Q\" /q\nq\nQ\n\
ADD --checksum=sha256:00 https://h.test/a.git?tag=1#x /y\nHEALTHCHECK --interval=1m5s --retries=2 CMD [\"a\"]\n\
FROM a AS b\nONBUILD RUN x <<E\ny\nE\nEXPOSE 80-90/tcp 1:2:3\nVOLUME [\"/a\"] \nSTOPSIGNAL RTMIN+3\nUSER u\nWORKDIR ../w\n\
RUN apt-get update && apt-get install -y gcc \\\n && rm -rf /var/lib/apt/lists/*\nCOPY . .\nRUN npm ci && npm run build\nADD x y\nARG TOKEN\n\
SHELL [\"s\"]\nLABEL l m\nCMD x\nENTRYPOINT [\"e\"]\nMAINTAINER m\nCOPY --link --exclude=*.x a b c/\n";

const TOKENS: [&str; 40] = [
    "${",
    "}",
    "$",
    "\\",
    "`",
    "\"",
    "'",
    "<<",
    "<<-EOF",
    "EOF",
    "\n",
    "\r\n",
    "\t",
    " ",
    "--",
    "=",
    ",",
    "[",
    "]",
    "\"a\"",
    "FROM ",
    "AS b",
    "RUN ",
    "COPY ",
    "--from=",
    "--mount=",
    "type=secret",
    "#",
    ":",
    "/",
    "../",
    "0",
    "-1",
    "99999999999",
    "é",
    "\u{0}",
    "\u{feff}",
    "ONBUILD ",
    "%%",
    "*",
];

/// A small generator of numbers, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below.max(1)
    }
}

fn mutate(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=random.next(6) {
        let at = random.next(data.len() + 1);
        let end = (at + random.next(12)).min(data.len());
        match random.next(5) {
            0 => drop(data.drain(at..end)),
            1 => drop(data.splice(at..at, TOKENS[random.next(TOKENS.len())].bytes())),
            2 => {
                let piece = data[at..end].to_vec();
                let to = random.next(data.len() + 1);
                data.splice(to..to, piece);
            }
            3 if at < data.len() => data[at] = random.next(256) as u8,
            _ => drop(data.splice(at..end, TOKENS[random.next(TOKENS.len())].bytes())),
        }
    }
    data
}

fn compile(data: &[u8]) -> bool {
    let file = match parse("Dockerfile", data) {
        Ok(file) => file,
        Err(error) => {
            assert!(!error.diagnostics.is_empty());
            let source = kiln_dockerfile::source::SourceFile { name: "f".into(), data: data.to_vec() };
            for diagnostic in &error.diagnostics {
                assert!(!render::diagnostic(&source, diagnostic).is_empty());
            }
            return false;
        }
    };
    let context = ContextView { known: data.len() % 2 == 1, ..ContextView::default() };
    for piece in advice::advise(&file, &context) {
        let drawn = advice::diff(&file.source, &context, &piece.edits);
        assert!(piece.edits.is_empty() || !piece.ready || !drawn.is_empty(), "{piece:?}");
    }
    let _ = advice::propose(&file.source, &context);
    let options = BuildOptions {
        main_context: MainContext::default(),
        ignore_patterns: vec!["*.log".into()],
        all_stages: data.len().is_multiple_of(2),
        ..BuildOptions::default()
    };
    let mut resolved = Resolved::default();
    for _ in 0..50 {
        let Ok(plan) = plan(&file, &options, &resolved) else { return false };
        if plan.wanted.is_empty() {
            return lower(&file, &plan, &options, &resolved).is_ok();
        }
        for wanted in &plan.wanted {
            match wanted {
                Wanted::Image(image) => {
                    let config = br#"{"os":"linux","architecture":"amd64","config":{"OnBuild":["COPY --from=b x y","RUN z"]},"history":[{"created_by":"x"}]}"#;
                    let found =
                        ResolvedImage { reference: image.reference.clone(), digest: None, config: config.to_vec() };
                    resolved.add_image(image, found);
                }
                Wanted::IgnoreFile(file) => resolved.add_ignore_file(file, Vec::new()),
                Wanted::Time(time) => resolved.add_time(time, Some(1)),
            }
        }
    }
    panic!("the plan never ends: {:?}", String::from_utf8_lossy(data));
}

#[test]
fn mutated_files_never_panic() {
    let mut built = 0;
    for seed in 0..600 {
        let mut random = Random(seed);
        // Every third run begins with a file that is smaller and so is more often valid.
        let small = SEED.lines().take(6 + random.next(12)).collect::<Vec<_>>().join("\n");
        let base = if seed % 3 == 0 { SEED.as_bytes() } else { small.as_bytes() };
        built += usize::from(compile(&mutate(&mut random, base)));
    }
    assert!(built > 10, "only {built} mutations built: the mutations are too coarse to reach the lowering");
}

#[test]
fn noise_never_panics() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let length = random.next(200);
        let mut data = b"FROM scratch\nRUN ".to_vec();
        for _ in 0..length {
            match random.next(4) {
                0 => data.push(random.next(256) as u8),
                _ => data.extend_from_slice(TOKENS[random.next(TOKENS.len())].as_bytes()),
            }
        }
        compile(&data);
        compile(&data[random.next(data.len())..]);
    }
}

#[test]
fn large_files_end() {
    let lines = "RUN true\n".repeat(50_000);
    assert!(compile(format!("FROM scratch AS x\n{lines}").as_bytes()));
    // A graph has a limit, and a file that goes beyond it an error.
    assert!(!compile(format!("FROM scratch AS x\n{lines}{lines}RUN true\n").as_bytes()));
    let stages: String = (0..10_000).map(|i| format!("FROM scratch AS s{i}\nCOPY a /\n")).collect();
    assert!(compile(stages.as_bytes()));
    let chain: String = (1..10_000).map(|i| format!("FROM s{} AS s{i}\n", i - 1)).collect();
    assert!(compile(format!("FROM scratch AS s0\n{chain}").as_bytes()));
    assert!(compile(format!("FROM scratch\nRUN {}\n", "x".repeat(65_000)).as_bytes()));
    assert!(!compile(format!("FROM scratch\nRUN {}\n", "x".repeat(66_000)).as_bytes()));
    assert!(compile(b"ARG A=${A}${A}\nARG B=${B:-$A}\nFROM ${A:-scratch}\nARG C=$C$C\nENV C=$C$C\n"));
    assert!(!compile(b"FROM a AS b\nCOPY --from=c / /\nFROM b AS c\nCOPY --from=b / /\n"));
    assert!(!compile("COPI a\n".repeat(20_000).as_bytes()));
}
