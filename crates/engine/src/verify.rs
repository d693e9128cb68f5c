//! Compares the platforms that were asked for with those that a frontend gave.

use std::collections::BTreeSet;

use kiln_oci::Platform;

use crate::bridge::{FrontendResult, ResultRefs};

/// Returns a warning where the platforms of a result are not those of the option `platform`.
///
/// `given` are the result's platforms, which an empty result need not have.
pub fn platforms(wanted: &str, result: &FrontendResult, given: &[Platform]) -> Option<String> {
    let single = matches!(result.refs, ResultRefs::Single(_));
    let named = result.metadata.contains_key("refs.platforms");
    if !named && result.refs.all().is_empty() {
        return None;
    }
    let usual = Platform::host().short();
    let wanted = if wanted.is_empty() { usual.as_str() } else { wanted };
    let mut asked = BTreeSet::new();
    let mut problems = Vec::new();
    for text in wanted.split(',') {
        match Platform::parse(text.trim()) {
            Ok(platform) if !asked.insert(platform.clone().normalize().to_string()) => {
                problems.push(format!("Duplicate platform result requested {text:?}"));
            }
            Ok(_) => {}
            Err(e) => problems.push(format!("Invalid platform result requested {text:?}: {e}")),
        }
    }
    if let Some(problem) = problems.into_iter().next() {
        return Some(problem);
    }
    let host = [Platform::host()];
    let given = if given.is_empty() { &host[..] } else { given };
    let given: BTreeSet<String> = given.iter().map(|p| p.clone().normalize().to_string()).collect();
    if single && asked.len() > 1 {
        return Some("Multiple platforms requested but result is not multi-platform".to_owned());
    }
    if asked == given {
        return None;
    }
    let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(",");
    Some(match (asked.len(), given.len()) {
        (1, 1) => format!("Requested platform {wanted:?} does not match result platform {:?}", list(&given)),
        _ => format!("Requested platforms {} do not match result platforms {}", list(&asked), list(&given)),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn map(names: &[&str]) -> (FrontendResult, Vec<Platform>) {
        let refs = names.iter().map(|n| ((*n).to_owned(), None)).collect();
        let metadata = BTreeMap::from([("refs.platforms".to_owned(), b"{}".to_vec())]);
        let result = FrontendResult { refs: ResultRefs::Map(refs), metadata, ..FrontendResult::default() };
        (result, names.iter().map(|n| Platform::parse(n).unwrap()).collect())
    }

    #[test]
    fn differences_are_told() {
        let warn = |wanted: &str, names: &[&str]| {
            let (result, given) = map(names);
            platforms(wanted, &result, &given)
        };
        assert_eq!(warn("linux/amd64,linux/arm64", &["linux/arm64", "linux/amd64"]), None);
        assert!(warn("linux/amd64", &["linux/s390x"]).unwrap().contains("does not match result platform"));
        assert!(warn("linux/amd64,linux/arm64", &["linux/amd64"]).unwrap().contains("do not match result platforms"));
        assert!(warn("linux/amd64,linux/amd64", &["linux/amd64"]).unwrap().contains("Duplicate platform"));
        let host = Platform::host().short();
        assert_eq!(warn("", &[host.as_str()]), None);
        assert!(warn("", &["linux/s390x", "linux/riscv64"]).unwrap().contains("linux/riscv64,linux/s390x"));
    }

    #[test]
    fn one_result_for_several_platforms_is_told() {
        let metadata = BTreeMap::from([("refs.platforms".to_owned(), b"{}".to_vec())]);
        let result = FrontendResult { metadata, ..FrontendResult::default() };
        let warning = platforms("linux/amd64,linux/arm64", &result, &[]).unwrap();
        assert!(warning.starts_with("Multiple platforms requested"), "{warning}");
    }
}
