//! What lies in the repository. Small objects are JSON: `format_version` first, the other keys sorted, readable with jq,
//! with a checksum over kind and body. They are written in one spelling and read in that spelling only, so that every
//! flipped byte is noticed, even one between the fields. `docs/format/repository.md` shows each.

pub mod catalog;
pub mod digest;
pub mod files;
pub mod hole;
pub mod keys;
pub mod manifest;
pub mod wal;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::identity::ContentHash;
use crate::refusal::{Code, Refusal};

/// The version of every object of this repository. 0 may change until the repository format is closed as 1.
pub const VERSION: u64 = 0;

/// An object with a name of its own.
pub trait Object: Serialize + DeserializeOwned {
    /// What the object says that it is; objects of two kinds never pass for each other.
    const KIND: &'static str;
}

/// The one spelling of an object.
pub fn write<T: Object>(object: &T) -> Vec<u8> {
    let body = serde_json::to_value(object).unwrap_or(Value::Null);
    assert!(!body.is_null(), "{} objects are plain data and always have a JSON form", T::KIND);
    spell(T::KIND, &body).into_bytes()
}

/// Reads an object, in its one spelling. `name` is for the message.
///
/// # Errors
/// `SA001` if a newer version wrote it, `SA002` if it is not what was written.
pub fn read<T: Object>(name: &str, bytes: &[u8]) -> Result<T, Refusal> {
    let damaged = |what: &str| Refusal::new(Code::Damaged, format!("{name} {what}"));
    let text = core::str::from_utf8(bytes).map_err(|_| damaged("is no text"))?;
    let value: Value = serde_json::from_str(text).map_err(|_| damaged("is no JSON"))?;
    let version =
        value.get("format_version").and_then(Value::as_u64).ok_or_else(|| damaged("has no format_version"))?;
    if version > VERSION && is_whole(&value) {
        return Err(Refusal::new(
            Code::FormatNewer,
            format!("{name} has format {version}, this version reads up to {VERSION}"),
        ));
    }
    let body = value.get("body").ok_or_else(|| damaged("has no body"))?;
    if spell(T::KIND, body) != text {
        return Err(damaged(&format!("is not a whole {} object", T::KIND)));
    }
    let object: T =
        serde_json::from_value(body.clone()).map_err(|error| damaged(&format!("cannot be read: {error}")))?;
    if serde_json::to_value(&object).ok().as_ref() != Some(body) {
        return Err(damaged("holds a value in a second spelling"));
    }
    Ok(object)
}

/// Whether an object of any version agrees with its own checksum: a damaged one must not pass for a newer one.
fn is_whole(value: &Value) -> bool {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(ToString::to_string);
    let (Some(kind), Some(checksum), Some(body), Some(version)) =
        (text("kind"), text("checksum"), value.get("body"), value.get("format_version").and_then(Value::as_u64))
    else {
        return false;
    };
    checksum_of(version, &kind, body) == checksum
}

fn checksum_of(version: u64, kind: &str, body: &Value) -> String {
    ContentHash::of(format!("{version} {kind} {body}").as_bytes()).to_string()
}

fn spell(kind: &str, body: &Value) -> String {
    let pretty = serde_json::to_string_pretty(body).unwrap_or_default().replace('\n', "\n  ");
    let checksum = checksum_of(VERSION, kind, body);
    format!(
        "{{\n  \"format_version\": {VERSION},\n  \"body\": {pretty},\n  \"checksum\": \"{checksum}\",\n  \"kind\": \"{kind}\"\n}}\n"
    )
}
