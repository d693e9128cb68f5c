//! Every rule's page shows a bad and a good example. They must be what they are called.

use kiln_dockerfile::lint::{RULES, Rule};
use kiln_dockerfile::{BuildOptions, Resolved, ResolvedImage, Wanted, lower, parse, plan};
use kiln_oci::Platform;

/// Returns the names of the rules that find something.
fn findings(text: &str) -> Vec<&'static str> {
    let file = parse("Dockerfile", text.as_bytes()).unwrap();
    let options = BuildOptions {
        ignore_patterns: vec!["*.tmp".to_owned()],
        // Without it the bad example of InvalidDefaultArgInFrom is an error as well.
        build_args: [("TAG".to_owned(), "1".to_owned())].into(),
        target_platform: Some(Platform::new("linux", "amd64", "")),
        ..BuildOptions::default()
    };
    let mut resolved = Resolved::default();
    for _ in 0..8 {
        let plan = plan(&file, &options, &resolved).unwrap();
        if plan.wanted.is_empty() {
            let lowered = lower(&file, &plan, &options, &resolved).unwrap();
            return lowered.warnings.iter().map(|w| w.rule).collect();
        }
        for wanted in &plan.wanted {
            let Wanted::Image(image) = wanted else { panic!("{wanted:?}") };
            let config = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;
            let found = ResolvedImage { reference: image.reference.clone(), digest: None, config: config.to_vec() };
            resolved.add_image(image, found);
        }
    }
    panic!("the bases lead nowhere");
}

fn check(rule: &Rule) {
    assert_eq!(findings(rule.bad), [rule.name], "bad example of {}", rule.name);
    assert_eq!(findings(rule.good), [""; 0], "good example of {}", rule.name);
}

#[test]
fn examples_are_what_they_are_called() {
    for rule in RULES {
        check(rule);
        assert!(rule.why.len() > 80, "{} says too little", rule.name);
    }
}
