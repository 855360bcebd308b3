//! Arbitrary bytes, and garbage that is sealed as well as any object: no decoder panics, and what is no object is refused
//! with the code that says so.
#![allow(clippy::unwrap_used, reason = "tests may be blunt")]

use proptest::prelude::*;
use serde_json::{Value, json};
use sheetanchor_core::format::catalog::{
    Cluster, Condemned, IncarnationObject, Members, NameClaim, NodeOpened, Outcome, Registered, Resolutions, Term,
};
use sheetanchor_core::format::digest;
use sheetanchor_core::format::files::FileList;
use sheetanchor_core::format::manifest::{Manifest, Plan};
use sheetanchor_core::format::wal::{self, WalHeader};
use sheetanchor_core::format::{self, Object};
use sheetanchor_core::identity::{ContentHash, Epoch, Nonce};
use sheetanchor_core::refusal::Code;
use sheetanchor_core::wire::{self, Answered, Asked};

/// The same of digests, which have a spelling of their own.
fn refused_as_digest(bytes: &[u8]) -> Result<(), TestCaseError> {
    match digest::read("x", bytes) {
        Ok(digest) => prop_assert_eq!(digest::write(&digest), bytes),
        Err(refusal) => prop_assert_eq!(refusal.code, Code::Damaged),
    }
    Ok(())
}

/// What no honest writer wrote is refused as damage, whatever kind it is read as.
fn refused<T: Object>(bytes: &[u8]) -> Result<(), TestCaseError> {
    match format::read::<T>("x", bytes) {
        // Garbage that spells a whole object is that object.
        Ok(object) => prop_assert_eq!(format::write(&object), bytes),
        Err(refusal) => prop_assert_eq!(refusal.code, Code::Damaged),
    }
    Ok(())
}

fn refused_as_any_kind(bytes: &[u8]) -> Result<(), TestCaseError> {
    refused_as_digest(bytes)?;
    refused_as_digest(&[&[0], bytes].concat())?;
    refused::<Cluster>(bytes)?;
    refused::<Members>(bytes)?;
    refused::<Registered>(bytes)?;
    refused::<Term>(bytes)?;
    refused::<Condemned>(bytes)?;
    refused::<NameClaim>(bytes)?;
    refused::<NodeOpened>(bytes)?;
    refused::<Resolutions>(bytes)?;
    refused::<Outcome>(bytes)?;
    refused::<IncarnationObject>(bytes)?;
    refused::<Manifest>(bytes)?;
    refused::<Plan>(bytes)?;
    refused::<FileList>(bytes)?;
    refused::<WalHeader>(bytes)
}

/// An object of our version, with its checksum, around any body.
fn sealed(kind: &str, body: &Value) -> Vec<u8> {
    let checksum = ContentHash::of(format!("{} {kind} {body}", format::VERSION).as_bytes());
    let pretty = serde_json::to_string_pretty(body).unwrap().replace('\n', "\n  ");
    let version = format::VERSION;
    format!("{{\n  \"format_version\": {version},\n  \"body\": {pretty},\n  \"checksum\": \"{checksum}\",\n  \"kind\": \"{kind}\"\n}}\n")
        .into_bytes()
}

/// Values of the kinds and under the names that objects have, in the wrong places.
fn bodies() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,40}".prop_map(Value::from),
        Just(json!("backup-0190f3a2c4d5-9f31a2b7")),
        Just(json!("1/2000")),
        Just(json!(ContentHash::of(b"x").to_string())),
    ];
    let keys = prop::sample::select(vec![
        "cluster",
        "created_ms",
        "cut",
        "engine",
        "entries",
        "epoch",
        "from",
        "hash",
        "id",
        "incarnation",
        "length",
        "name",
        "nodes",
        "nonce",
        "operation",
        "packs",
        "resolved",
        "result",
        "state",
        "stored",
        "thread",
        "threads",
        "timeline",
        "until",
        "1",
    ]);
    leaf.prop_recursive(4, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn kinds() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        Cluster::KIND,
        Members::KIND,
        Registered::KIND,
        Term::KIND,
        Condemned::KIND,
        NameClaim::KIND,
        NodeOpened::KIND,
        Resolutions::KIND,
        Outcome::KIND,
        IncarnationObject::KIND,
        Manifest::KIND,
        Plan::KIND,
        FileList::KIND,
        WalHeader::KIND,
    ])
}

#[test]
fn what_is_sealed_here_is_sealed_as_an_object_is() {
    let operation = "backup-0190f3a2c4d5-9f31a2b7".parse().unwrap();
    let term = Term { epoch: Epoch::new(2), nonce: Nonce::new(3), operation };
    assert_eq!(sealed(Term::KIND, &serde_json::to_value(&term).unwrap()), format::write(&term));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_object(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        refused_as_any_kind(&bytes)?;
    }

    #[test]
    fn a_whole_object_with_an_arbitrary_body_is_refused(kind in kinds(), body in bodies()) {
        refused_as_any_kind(&sealed(kind, &body))?;
    }

    #[test]
    fn arbitrary_bytes_are_no_piece_of_wal(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0_u32..5_000) {
        let mut piece = wal::MAGIC.to_vec();
        piece.extend_from_slice(&length.to_le_bytes());
        piece.extend_from_slice(&bytes);
        for piece in [&bytes[..], &piece] {
            prop_assert_eq!(wal::split("x", piece).unwrap_err().code, Code::WalDamaged);
        }
    }

    #[test]
    fn a_whole_header_with_an_arbitrary_body_is_no_piece_of_wal(body in bodies()) {
        let header = sealed(WalHeader::KIND, &body);
        let mut piece = wal::MAGIC.to_vec();
        piece.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
        piece.extend_from_slice(&header);
        prop_assert_eq!(wal::split("x", &piece).unwrap_err().code, Code::WalDamaged);
    }

    #[test]
    fn a_frame_with_an_arbitrary_body_is_read_or_refused(message in prop::collection::vec(any::<u8>(), 0..300)) {
        let body = [&[wire::VERSION][..], &message].concat();
        let checksum = crc32c::crc32c(&body);
        if let Err(refusal) = wire::decode::<Asked>(&body, checksum) {
            prop_assert_eq!(refusal.code, Code::FrameDamaged);
        }
        if let Err(refusal) = wire::decode::<Answered>(&body, checksum) {
            prop_assert_eq!(refusal.code, Code::FrameDamaged);
        }
        prop_assert_eq!(wire::decode::<Asked>(&body, !checksum).unwrap_err().code, Code::FrameDamaged);
    }

    #[test]
    fn a_prefix_promises_no_more_than_a_message_may_have(prefix in any::<[u8; wire::PREFIX_BYTES]>()) {
        match wire::decode_prefix(prefix) {
            Ok((length, _)) => prop_assert!(length <= wire::FRAME_BYTES_MAX),
            Err(refusal) => prop_assert_eq!(refusal.code, Code::FrameTooLarge),
        }
    }
}
