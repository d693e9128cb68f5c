//! The registry gave an image for another platform than the one asked for.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "Base image platform does not match expected target platform",
    page: "",
    experimental: false,
};

use kiln_oci::Platform;

pub(crate) fn check(
    place: (&[String], crate::source::Lines),
    image: &str,
    expected: &Platform,
    actual: &Platform,
    linter: &mut super::Linter,
) {
    if expected.os != actual.os || expected.architecture != actual.architecture {
        let text = |p: &Platform| crate::gofmt::quote(&crate::names::format_platform(&p.clone().normalize()));
        let message = format!(
            "Base image {image} was pulled with platform {}, expected {} for current build",
            text(actual),
            text(expected)
        );
        linter.warn(&RULE, place.0, Some(place.1), message);
    }
}
