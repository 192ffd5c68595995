//! The built-in rules: the files of `policies/detectors` and their cases.

/// The file whose lists every other file can use.
pub(super) const LISTS: &str = "lists.toml";

macro_rules! text {
    ($name:literal) => {
        (
            concat!($name, ".toml"),
            include_str!(concat!("../../../../policies/detectors/", $name, ".toml")),
            include_str!(concat!("../../../../policies/detectors/", $name, ".cases.toml")),
        )
    };
}

/// Name, rules and cases of each file. The cases are only read by tests and by `apex-probe rules test`.
pub const FILES: &[(&str, &str, &str)] = &[
    text!("lists"),
    text!("processes"),
    text!("shells"),
    text!("secrets"),
    text!("files"),
    text!("network"),
    text!("dns"),
    text!("exec"),
    text!("code"),
    text!("system"),
];
