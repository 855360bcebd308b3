//! Whether a connection reaches the server itself, and one that this code knows. Behind a pooler sessions change hands: a
//! fence, a backup or a setting would end up in somebody else's.

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::refusal::{Code, Refusal};
use tokio_postgres::config::Host;

use super::database::same_folder;
use super::session::Facts;
use super::target::{Called, Target};

/// The major versions whose functions and WAL are known.
const MAJORS: std::ops::RangeInclusive<u32> = 14..=18;

/// Refuses a release that is not known.
///
/// # Errors
/// `0A000`.
pub(super) fn check_release(facts: &Facts) -> Result<()> {
    if MAJORS.contains(&facts.major()) {
        return Ok(());
    }
    let (first, last) = (MAJORS.start(), MAJORS.end());
    let message = format!("the server is PostgreSQL {}, and {first} to {last} are supported", facts.version);
    Err(Refusal::new(Code::NotSupported, message).into())
}

/// Refuses a connection that is not to the server itself: the port at which the server was reached, or the folder and port
/// of its Unix socket, must be what was called. Addresses are not compared: a name has several, and a host may translate
/// them.
///
/// # Errors
/// `SA101`.
pub(super) fn check(node: NodeId, target: &Target, facts: &Facts) -> Result<()> {
    let is_there = |place: Called<'_>| match place.host {
        Host::Tcp(_) => facts.reached_at == Some(place.port),
        Host::Unix(folder) => {
            let folders = facts.socket_folders.split(',').map(|folder| folder.trim().trim_matches('"'));
            facts.reached_at.is_none()
                && facts.port == place.port
                && folder.to_str().is_some_and(|called| folders.into_iter().any(|folder| same_folder(folder, called)))
        }
    };
    if target.places().any(is_there) {
        return Ok(());
    }
    let reached = match facts.reached_at {
        Some(port) => format!("on port {port}"),
        None => format!("through a Unix socket of port {} in {}", facts.port, facts.socket_folders),
    };
    let message = format!(
        "the connection of node {node} leads through something else, such as a pooler: the server was reached {reached}; \
         name that place itself"
    );
    Err(Refusal::new(Code::ConfigInvalid, message).into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A server as others have it, too.
    pub(in super::super) fn facts(port: u16, reached_at: Option<u16>) -> Facts {
        Facts {
            version_number: 150_018,
            version: "15.18".to_owned(),
            system: 1,
            data: "/srv/pg".to_owned(),
            segment_bytes: 16 << 20,
            checksums: true,
            usual_sizes: true,
            port,
            reached_at,
            socket_folders: "\"/tmp\", /nonexistent".to_owned(),
            superuser: true,
        }
    }

    fn code(outcome: Result<()>) -> Option<Code> {
        outcome.err().map(|error| error.refusal().unwrap().code)
    }

    #[test]
    fn what_is_not_the_place_that_was_called_is_refused() {
        let checked = |target: &str, facts: &Facts| code(check(NodeId::new(1), &Target::parse(target).unwrap(), facts));
        for (target, port, reached_at) in [
            ("host=127.0.0.1", 5432, Some(5432)),
            ("host=localhost port=6000", 6000, Some(6000)),
            ("host=/tmp", 5432, None),
            ("host=/nonexistent,/tmp port=1,6000", 6000, None),
        ] {
            assert_eq!(checked(target, &facts(port, reached_at)), None, "{target}");
        }
        for (target, port, reached_at) in [
            ("host=127.0.0.1 port=6432", 5432, Some(5432)),
            ("host=127.0.0.1 port=6432", 5432, None),
            ("host=/tmp port=6432", 5432, None),
            ("host=/var port=5432", 5432, None),
            ("host=/tmp", 5432, Some(5432)),
        ] {
            assert_eq!(checked(target, &facts(port, reached_at)), Some(Code::ConfigInvalid), "{target}");
        }
    }

    #[test]
    fn a_release_that_is_not_known_is_refused() {
        for (version_number, expected) in
            [(130_012, Some(Code::NotSupported)), (140_000, None), (180_006, None), (190_000, Some(Code::NotSupported))]
        {
            assert_eq!(
                code(check_release(&Facts { version_number, ..facts(5432, None) })),
                expected,
                "{version_number}"
            );
        }
    }
}
