//! The whole way from text to graph, with options and base images that fit more or less.

use super::corpus;
use super::parser::check_diagnostic;
use super::random::{Random, TOKENS};
use crate::source::SourceFile;
use crate::{
    BuildOptions, DockerfileError, Lowered, MainContext, NoCache, Resolved, ResolvedImage, Wanted, lower, parse, plan,
    subrequest,
};

/// A base image whose triggers want further images.
const CONFIG: &[u8] = br#"{"os":"linux","architecture":"amd64","config":{"Env":["PATH=/bin","A=b"],"User":"u","WorkingDir":"/w",
"OnBuild":["COPY --from=b x y","RUN z","ENV c=$A"]},"history":[{"created_by":"x"},{"created_by":"y","empty_layer":true}]}"#;

fn options(random: &mut Random) -> BuildOptions {
    let mut options = BuildOptions {
        main_context: match random.below(4) {
            0 => MainContext::detect("https://h.test/r.git#a:b").ok().flatten().unwrap_or_default(),
            _ => MainContext::default(),
        },
        ignore_patterns: vec!["*.log".into(), "!kept.log".into()],
        all_stages: random.chance(2),
        merge_op: !random.chance(4),
        multi_platform: random.chance(3),
        allow_devices: random.chance(2),
        local_id: "fuzz".into(),
        ..BuildOptions::default()
    };
    if random.chance(4) {
        options.no_cache = NoCache::Stages(vec!["a".into(), "b".into()]);
    }
    for name in ["A", "V", "SOURCE_DATE_EPOCH", "BUILDKIT_SBOM_SCAN_STAGE", "TARGETPLATFORM", "HTTP_PROXY"] {
        if random.chance(6) {
            options.build_args.insert(name.into(), random.pieces(&TOKENS, 4));
        }
    }
    let contexts = [
        "local:b",
        "docker-image://x",
        "oci-layout://s@sha256:0",
        "https://h.test/x.git",
        "target:a",
        "docker-image://scratch",
    ];
    for name in ["base", "a", "b::linux/arm64", "context"] {
        if random.chance(8) {
            options.contexts.insert(name.into(), random.pick(&contexts).to_owned());
        }
    }
    if random.chance(6) {
        options.target = Some(random.pick(&["a", "b", "0", "1", "nowhere", "A"]).to_owned());
    }
    if random.chance(5) {
        options.target_platform =
            kiln_oci::Platform::parse(random.pick(&["linux/arm/v7", "windows/amd64", "linux/riscv64"])).ok();
    }
    options
}

/// Plans until nothing is wanted, then lowers.
pub fn build(file: &crate::ast::Dockerfile, options: &BuildOptions, config: &[u8]) -> Result<Lowered, DockerfileError> {
    let mut resolved = Resolved::default();
    for _ in 0..60 {
        let plan = plan(file, options, &resolved)?;
        if plan.wanted.is_empty() {
            return lower(file, &plan, options, &resolved);
        }
        for wanted in &plan.wanted {
            match wanted {
                Wanted::Image(image) => {
                    let found =
                        ResolvedImage { reference: image.reference.clone(), digest: None, config: config.to_vec() };
                    resolved.add_image(image, found);
                }
                Wanted::IgnoreFile(file) => resolved.add_ignore_file(file, b"*.o\n!x\n".to_vec()),
                Wanted::Time(time) => resolved.add_time(time, Some(1)),
            }
        }
    }
    panic!("the plan never ends");
}

fn body(random: &mut Random) -> bool {
    let data = corpus::mutated(random);
    let Ok(file) = parse("Dockerfile", &data) else { return false };
    let source = SourceFile { name: "Dockerfile".into(), data };
    let options = options(random);
    let mut config = CONFIG.to_vec();
    if random.chance(10) {
        config = super::random::mutate_bytes(random, &config);
    }
    let result = build(&file, &options, &config);
    let _ = subrequest::lint(&source, result.as_ref());
    match result {
        Ok(lowered) => {
            assert!(kiln_oci::ImageConfig::from_json(&lowered.config_json).is_ok());
            if !lowered.definition.is_empty() {
                let loaded = kiln_llb::Graph::load(&lowered.definition, &kiln_llb::LoadOptions::default());
                assert!(loaded.is_ok(), "{:?}", loaded.err());
            }
            for warning in &lowered.warnings {
                check_diagnostic(&source, warning);
            }
            true
        }
        Err(error) => {
            assert!(!error.diagnostics.is_empty());
            for diagnostic in error.diagnostics.iter().chain(&error.warnings) {
                check_diagnostic(&source, diagnostic);
            }
            false
        }
    }
}

#[test]
fn lowering_never_fails_badly() {
    let built = std::cell::Cell::new((0_u32, 0_u32));
    super::campaign("lowering", 600, |random| {
        let (yes, all) = built.get();
        built.set((yes + u32::from(body(random)), all + 1));
    });
    let (yes, all) = built.get();
    assert!(all < 300 || yes > all / 10, "only {yes} of {all} mutations built: too coarse to reach the lowering");
}
