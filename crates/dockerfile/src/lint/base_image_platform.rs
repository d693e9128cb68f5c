//! The registry gave an image for another platform than the one asked for.

use super::Rule;

/// See the module.
pub const RULE: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "Base image platform does not match expected target platform",
    page: "",
    experimental: false,
    why: "The image behind FROM was made for another processor or system than the one that is built for. Its programs then run emulated, or not at all, and the image's own description is wrong. It happens when an image exists for one platform only, or when a tag or digest names the image of one platform.",
    bad: "FROM --platform=linux/arm64 example/amd64-only AS tools-arm64\nRUN true\n",
    good: "FROM --platform=linux/amd64 example/amd64-only AS tools-amd64\nRUN true\n",
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
