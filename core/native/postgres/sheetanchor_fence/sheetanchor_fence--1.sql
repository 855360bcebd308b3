\echo Use "CREATE EXTENSION sheetanchor_fence" to load this file. \quit

-- The version of the library that runs, and whether the server loaded it when it started.
CREATE FUNCTION sheetanchor_fence_version(OUT version int, OUT preloaded boolean)
    AS 'MODULE_PATHNAME' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

-- Holds commits back for at most lease_ms, and returns once those in flight have finished: how long that took, in
-- milliseconds. Waits at most half of the lease (55P03). 55006 while another token's hold stands.
CREATE FUNCTION sheetanchor_close(token text, lease_ms int) RETURNS float8
    AS 'MODULE_PATHNAME' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

-- The end of WAL under a hold that stands. 55000 if it does not.
CREATE FUNCTION sheetanchor_drain(token text) RETURNS pg_lsn
    AS 'MODULE_PATHNAME' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

-- Writes a restore point record and returns its end. 55000 if the hold did not stand until the record was written; 22023
-- for an SCN below one that this server has cut at.
CREATE FUNCTION sheetanchor_cut(name text, scn bigint, token text) RETURNS pg_lsn
    AS 'MODULE_PATHNAME' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

-- Lets commits flow again; whether the hold stood until now.
CREATE FUNCTION sheetanchor_release(token text) RETURNS boolean
    AS 'MODULE_PATHNAME' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

REVOKE ALL ON FUNCTION sheetanchor_close(text, int), sheetanchor_drain(text), sheetanchor_cut(text, bigint, text),
    sheetanchor_release(text) FROM PUBLIC;
