//! What the role of a connection must be allowed to do, and the SQL that allows it. It need be no superuser: PostgreSQL's
//! manual, "Predefined Roles" and "System Administration Functions", says what can be granted. What cannot is needed in a
//! restore only, of the server that it has started behind a socket of its own
//! ([`superuser_session`](super::recovery::superuser_session)).

use sheetanchor_core::error::Result;
use sheetanchor_core::identity::NodeId;
use sheetanchor_core::refusal::{Code, Refusal};

use super::session::Session;

/// Marks a cut of one node alone.
pub(super) const RESTORE_POINT: &str = "pg_create_restore_point(text)";

/// Finishes a segment for a cut, where WAL is read from the folder.
pub(super) const SWITCH: &str = "pg_switch_wal()";

/// Begin and end a backup whose files are read from the folder.
pub(super) const fn backup(major: u32) -> [&'static str; 2] {
    if major < 15 {
        ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"]
    } else {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    }
}

/// Settings tell where the folder is and which library is loaded. Statistics tell one life of the server from another: to
/// others its processes have no start.
const MISSING: &str = "SELECT string_agg(statement, '; ' ORDER BY place, statement), current_user::text, \
    current_database()::text FROM ( \
    SELECT 1 AS place, format('ALTER ROLE %I REPLICATION', rolname) AS statement FROM pg_roles \
        WHERE rolname = current_user AND NOT rolsuper AND NOT rolreplication \
    UNION ALL SELECT 2, format('GRANT %I TO %I', name, current_user) \
        FROM unnest(ARRAY['pg_read_all_settings', 'pg_read_all_stats']) AS name \
        WHERE NOT pg_has_role(name::name, 'USAGE') \
    UNION ALL SELECT 3, format('GRANT EXECUTE ON FUNCTION pg_catalog.%s TO %I', name, current_user) \
        FROM unnest($1::text[]) AS name WHERE NOT has_function_privilege('pg_catalog.' || name, 'EXECUTE') \
    ) AS missing";

/// What of the extension is not granted: it lets nobody but superusers hold commits back.
const FENCE_MISSING: &str = "SELECT string_agg(statement, '; ' ORDER BY place, statement) FROM ( \
    SELECT 1 AS place, format('GRANT USAGE ON SCHEMA %I TO %I', nspname, current_user) AS statement \
        FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace \
        WHERE extname = 'sheetanchor_fence' AND NOT has_schema_privilege(pg_namespace.oid, 'USAGE') \
    UNION ALL SELECT 2, format('GRANT EXECUTE ON FUNCTION %I.%I(%s) TO %I', nspname, proname, \
            pg_get_function_identity_arguments(pg_proc.oid), current_user) \
        FROM pg_extension JOIN pg_depend ON refclassid = 'pg_extension'::regclass \
            AND refobjid = pg_extension.oid AND deptype = 'e' AND classid = 'pg_proc'::regclass \
        JOIN pg_proc ON pg_proc.oid = objid JOIN pg_namespace ON pg_namespace.oid = pronamespace \
        WHERE extname = 'sheetanchor_fence' AND NOT has_function_privilege(pg_proc.oid, 'EXECUTE') \
    ) AS missing";

/// Refuses a role that lacks a privilege, these functions among them, and says what to run.
///
/// # Errors
/// `SA115`; faults.
pub(super) async fn check(node: NodeId, session: &Session, functions: &[&str]) -> Result<()> {
    if session.facts().superuser {
        return Ok(());
    }
    let row = session.row(MISSING, &[&functions]).await?;
    let Some(statements) = row.maybe(0)? else { return Ok(()) };
    let (role, database) = (row.text(1)?, row.text(2)?);
    let message = format!(
        "the role `{role}` of node {node} may not do all that backups need: run `{statements}` in database `{database}`"
    );
    Err(Refusal::new(Code::PrivilegeMissing, message).into())
}

/// The SQL after which the role of `session` may use the fence's extension, which is there; nothing if it may.
///
/// # Errors
/// Faults.
pub(super) async fn of_fence(session: &Session) -> Result<Option<String>> {
    session.row(FENCE_MISSING, &[]).await?.maybe(0)
}
