//! Every insta snapshot of the workspace lies in this package's folder, under the name of its kind: `timelines`,
//! `formats`, `artefacts`, `cli`. A snapshot is read by a person before it is accepted, and is never redacted.

pub use insta;

/// The absolute path of the folder of one kind of snapshot.
pub fn folder(kind: &str) -> String {
    format!("{}/{kind}", env!("CARGO_MANIFEST_DIR"))
}

/// Compares `$text` with the snapshot `$name` of kind `$kind` (`timelines`, `formats`, `artefacts`, `cli`).
#[macro_export]
macro_rules! assert_snapshot {
    ($kind:expr, $name:expr, $text:expr) => {{
        let mut settings = $crate::insta::Settings::new();
        settings.set_snapshot_path($crate::folder($kind));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| $crate::insta::assert_snapshot!($name, $text));
    }};
}
