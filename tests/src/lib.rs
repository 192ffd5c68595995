//! Shared test harness.

pub mod programs;

/// Ends a test that cannot run here: `skip!("no delegated cgroup")`, or `skip!("...", Ok(()))` where the test returns something.
///
/// Prints the line that `cargo xtask test` counts and compares with `tests/expected-skips.toml`.
#[macro_export]
macro_rules! skip {
    ($reason:expr) => {
        $crate::skip!($reason, ())
    };
    ($reason:expr, $result:expr) => {{
        fn here() {}
        println!("SKIP {}: {}", $crate::name_of(&here), $reason);
        return $result;
    }};
}

/// The full name of the test in which `here` is defined. Runners that use one thread per process give that thread no useful name.
pub fn name_of<T>(here: &T) -> String {
    let _ = here;
    let path = std::any::type_name::<T>();
    path.trim_end_matches("::here").replace("::{{closure}}", "")
}
