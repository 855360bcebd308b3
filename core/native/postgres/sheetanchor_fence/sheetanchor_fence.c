/*
 * sheetanchor_fence: holds the commits of a PostgreSQL server back while a cluster of servers is cut.
 *
 * How it works. Every transaction that has a transaction id takes a shared lock at its commit, before the commit record
 * is written, and keeps it until the commit is durable and visible. So does COMMIT PREPARED and ROLLBACK PREPARED, for
 * which PostgreSQL calls no commit callback. Whoever closes the fence takes the same lock exclusively. A lock's queue is
 * served in turn, hence new commits wait from the moment in which the closer waits, and the closer has the lock when the
 * commits in flight have finished: closing and draining are one wait.
 *
 * Why a relation's lock. Among the modes that do not conflict with each other, a relation's lock in one's own database
 * can be taken without the shared lock table: some tens of nanoseconds a commit. It can be cancelled, obeys
 * statement_timeout and lock_timeout, and is seen in pg_locks. pg_advisory_unlock_all and DISCARD ALL do not touch it. The
 * lock is per database, so the closer takes it in each, and looks again for databases that were created meanwhile. The
 * relation does not exist; should its number ever be given to one, commits and DDL on it would wait for each other.
 *
 * Why PREPARE passes. A lock that is taken there stays with the prepared transaction, and the fence would never close.
 * Prepared transactions are in doubt at the cut, and are resolved after a restore.
 *
 * Why it never outlives its lease. The lock belongs to the session that closed, and goes when that session ends or a
 * transaction of it aborts. A background worker ends the session at the deadline, on the monotonic clock: a session whose client is
 * cut off, paused or confused cannot keep it, and no code path has to run in it. Without that worker nothing is closed.
 *
 * Why callbacks are registered again and again. They run in the reverse order of registration, and postgres_fdw commits
 * its remote transactions in its own, which it registers at its first use: it would run before ours, and a remote effect
 * could be in a cut that its local cause is not in.
 *
 * What it does not see: a subscription with two_phase = on ends prepared transactions without a command. Whoever asks for
 * the fence checks that there is none.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_database.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include <signal.h>

PG_MODULE_MAGIC;

/* Raised with every change that the agent must know of. */
#define FENCE_VERSION 1

/* The number of a relation that is not there. */
#define FENCE_RELATION ((Oid) 0xFFFF5A46)

#define TOKEN_BYTES_MAX 63
#define LEASE_MS_MAX 60000

/* How often the watchdog looks while nothing is closed. Whoever closes wakes it. */
#define WATCH_IDLE_MS 60000L
/* How often it ends a session that has not ended yet. */
#define WATCH_AGAIN_MS 10L

/* What all processes share. */
typedef struct FenceShared
{
	slock_t		mutex;
	/* The hold: empty if there is none. */
	char		token[TOKEN_BYTES_MAX + 1];
	pid_t		holder;
	double		deadline_ms;
	/* Of the newest cut in this life of the server. */
	uint64		scn_last;
	/* NULL while the watchdog does not run. */
	Latch	   *watchdog;
} FenceShared;

static FenceShared *shared = NULL;
static bool preloaded = false;

/* The databases whose lock this session holds, in TopMemoryContext. */
static List *locked = NIL;
static bool exit_registered = false;

/* The transaction that has the fence's lock for its commit, while it is being committed. */
static TransactionId passed = InvalidTransactionId;

static ProcessUtility_hook_type utility_before = NULL;
static ExecutorEnd_hook_type executor_end_before = NULL;
static shmem_startup_hook_type shmem_startup_before = NULL;
#if PG_VERSION_NUM >= 150000
static shmem_request_hook_type shmem_request_before = NULL;
#endif

static bool unlock_all(void);
static bool forget_hold(void);

void		_PG_init(void);
PGDLLEXPORT void sheetanchor_fence_watch(Datum argument);

/* ---- what a commit does ---- */

static inline void
fence_tag(LOCKTAG *tag, Oid database)
{
	SET_LOCKTAG_RELATION(*tag, database, FENCE_RELATION);
}

/* PostgreSQL ends a statement's timeout before it commits, so here it begins anew. */
static void
wait_at_the_fence(const LOCKTAG *tag)
{
	bool		timed = StatementTimeout > 0 && !get_timeout_active(STATEMENT_TIMEOUT);

	if (timed)
		enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
	(void) LockAcquire(tag, RowExclusiveLock, false, false);
	/* An error ends all timeouts by itself. */
	if (timed)
		disable_timeout(STATEMENT_TIMEOUT, false);
}

/* Waits while the fence is closed; the lock goes with the transaction. The closer's own commits pass. */
static inline void
pass_the_fence(void)
{
	LOCKTAG		tag;

	fence_tag(&tag, MyDatabaseId);
	if (LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		wait_at_the_fence(&tag);
}

static void
on_transaction(XactEvent event, void *argument)
{
	TransactionId transaction = GetTopTransactionIdIfAny();

	/* Locked once: what is taken at a commit, outside of any subtransaction, stays until the transaction has ended. */
	if (event == XACT_EVENT_PRE_COMMIT && TransactionIdIsValid(transaction) && transaction != passed)
	{
		pass_the_fence();
		passed = transaction;
	}
	else if (event != XACT_EVENT_PRE_COMMIT)
		passed = InvalidTransactionId;
	if (event == XACT_EVENT_ABORT && locked != NIL)
	{
		/* A transaction that aborts takes its session's locks along. The hold ends with them, and says so. */
		(void) unlock_all();
		(void) forget_hold();
	}
}

/* The same, as the one that is moved. The one above stays where it is: whatever another callback does meanwhile, no
 * commit record is written without the lock. */
static void
on_transaction_first(XactEvent event, void *argument)
{
	on_transaction(event, argument);
}

/* Makes our callback the first to run. Only a transaction that writes here can be torn from its remote half. */
static inline void
run_first(void)
{
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
	{
		UnregisterXactCallback(on_transaction_first, NULL);
		RegisterXactCallback(on_transaction_first, NULL);
	}
}

static void
on_executor_end(QueryDesc *query)
{
	if (executor_end_before)
		executor_end_before(query);
	else
		standard_ExecutorEnd(query);
	run_first();
}

static void
on_utility(PlannedStmt *statement, const char *text, bool read_only_tree, ProcessUtilityContext context,
		   ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *receiver, QueryCompletion *completion)
{
	Node	   *node = statement->utilityStmt;

	if (node && IsA(node, TransactionStmt))
	{
		TransactionStmtKind kind = ((TransactionStmt *) node)->kind;

		if (kind == TRANS_STMT_COMMIT_PREPARED || kind == TRANS_STMT_ROLLBACK_PREPARED)
			pass_the_fence();
	}
	if (utility_before)
		utility_before(statement, text, read_only_tree, context, parameters, environment, receiver, completion);
	else
		standard_ProcessUtility(statement, text, read_only_tree, context, parameters, environment, receiver, completion);
	/* COPY into a foreign table opens a remote transaction, too. */
	if (IsTransactionState())
		run_first();
}

/* ---- the hold ---- */

static double
monotonic_ms(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MILLISEC(now);
}

/* Forgets the hold if it is this session's; whether its lease had not run out. */
static bool
forget_hold(void)
{
	bool		stood = false;

	SpinLockAcquire(&shared->mutex);
	if (shared->holder == MyProcPid)
	{
		stood = monotonic_ms() < shared->deadline_ms;
		shared->holder = 0;
		shared->token[0] = '\0';
	}
	SpinLockRelease(&shared->mutex);
	return stood;
}

static void
on_session_end(int code, Datum argument)
{
	/* PostgreSQL gives back a session's locks on relations only when a transaction aborts. */
	LockErrorCleanup();
	(void) unlock_all();
	(void) forget_hold();
}

static bool
lock_is_held(const LOCKTAG *tag)
{
#if PG_VERSION_NUM >= 170000
	return LockHeldByMe(tag, ExclusiveLock, false);
#else
	return LockHeldByMe(tag, ExclusiveLock);
#endif
}

/* Whether this session has the hold, whether or not its lease has run out. */
static bool
hold_is_ours(const char *token, bool *in_time)
{
	bool		ours;

	SpinLockAcquire(&shared->mutex);
	ours = shared->holder == MyProcPid && strcmp(shared->token, token) == 0;
	*in_time = monotonic_ms() < shared->deadline_ms;
	SpinLockRelease(&shared->mutex);
	return ours;
}

static bool
hold_stands(const char *token)
{
	bool		in_time;
	ListCell   *cell;

	foreach(cell, locked)
	{
		LOCKTAG		tag;

		fence_tag(&tag, lfirst_oid(cell));
		if (!lock_is_held(&tag))
			return false;
	}
	return locked != NIL && hold_is_ours(token, &in_time) && in_time;
}

static void
require_hold(const char *token, const char *when)
{
	if (!hold_stands(token))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("hold \"%s\" does not stand %s", token, when)));
}

/* Whether every lock was really held. */
static bool
unlock_all(void)
{
	bool		all = locked != NIL;
	ListCell   *cell;

	foreach(cell, locked)
	{
		LOCKTAG		tag;

		fence_tag(&tag, lfirst_oid(cell));
		all = lock_is_held(&tag) && LockRelease(&tag, ExclusiveLock, true) && all;
	}
	list_free(locked);
	locked = NIL;
	return all;
}

/* All databases, and 0 for processes that are in none. In one order for all closers. */
static List *
all_databases(void)
{
	List	   *databases = list_make1_oid(InvalidOid);
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	/* A catalog's snapshot may be an old one. */
	AcceptInvalidationMessages();
	InvalidateCatalogSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
		databases = lappend_oid(databases, ((Form_pg_database) GETSTRUCT(tuple))->oid);
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	list_sort(databases, list_oid_cmp);
	return databases;
}

static void
lock_within(Oid database, double until_ms)
{
	LOCKTAG		tag;
	MemoryContext before;
	char		wait_ms[32];
	int			level = NewGUCNestLevel();
	double		left_ms = until_ms - monotonic_ms();

	/* Rounded up: nobody gives up before all of its time is over. */
	snprintf(wait_ms, sizeof(wait_ms), "%d", left_ms < 0.0 ? 1 : (int) left_ms + 1);
	(void) set_config_option("lock_timeout", wait_ms, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	before = MemoryContextSwitchTo(TopMemoryContext);
	fence_tag(&tag, database);
	/* First into the list: one that is granted in the moment in which we give up would not be released. */
	locked = lappend_oid(locked, database);
	MemoryContextSwitchTo(before);
	(void) LockAcquire(&tag, ExclusiveLock, true, false);
	AtEOXact_GUC(true, level);
}

/* Locks every database, again and again until none has come in between. */
static void
lock_all(double until_ms)
{
	bool		found;

	do
	{
		List	   *databases = all_databases();
		ListCell   *cell;

		found = false;
		foreach(cell, databases)
		{
			if (list_member_oid(locked, lfirst_oid(cell)))
				continue;
			found = true;
			lock_within(lfirst_oid(cell), until_ms);
		}
		list_free(databases);
	} while (found);
}

static void
require_preload(void)
{
	if (!preloaded || shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sheetanchor_fence is loaded for this session only, and would not hold others back"),
				 errhint("Add it to shared_preload_libraries and restart the server.")));
}

/* Enters the hold, under which the watchdog counts. */
static void
enter_hold(const char *token, double deadline_ms)
{
	Latch	   *watchdog;
	pid_t		holder;

	SpinLockAcquire(&shared->mutex);
	holder = shared->holder;
	watchdog = shared->watchdog;
	if (holder == 0 && watchdog != NULL)
	{
		strlcpy(shared->token, token, sizeof(shared->token));
		shared->holder = MyProcPid;
		shared->deadline_ms = deadline_ms;
	}
	SpinLockRelease(&shared->mutex);
	if (holder != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("process %d has closed the fence already", (int) holder)));
	if (watchdog == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the watchdog of sheetanchor_fence does not run"),
				 errhint("It starts again within a second; if it does not, raise max_worker_processes.")));
	SetLatch(watchdog);
}

/* ---- functions ---- */

PG_FUNCTION_INFO_V1(sheetanchor_fence_version);
Datum
sheetanchor_fence_version(PG_FUNCTION_ARGS)
{
	TupleDesc	shape;
	Datum		values[2];
	bool		nulls[2] = {false, false};

	if (get_call_result_type(fcinfo, NULL, &shape) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "sheetanchor_fence_version is declared otherwise than version %d has it", FENCE_VERSION);
	values[0] = Int32GetDatum(FENCE_VERSION);
	values[1] = BoolGetDatum(preloaded);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(shape), values, nulls)));
}

PG_FUNCTION_INFO_V1(sheetanchor_close);
Datum
sheetanchor_close(PG_FUNCTION_ARGS)
{
	char	   *token = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int32		lease_ms = PG_GETARG_INT32(1);
	double		begun_ms = monotonic_ms();

	require_preload();
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("a standby has no commits to hold back")));
	if (token[0] == '\0' || strlen(token) > TOKEN_BYTES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a token has 1 to %d bytes", TOKEN_BYTES_MAX)));
	if (lease_ms < 2 || lease_ms > LEASE_MS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a lease is of 2 to %d ms", LEASE_MS_MAX)));
	if (locked != NIL && hold_stands(token))
		PG_RETURN_FLOAT8(0.0);
	if (!exit_registered)
	{
		before_shmem_exit(on_session_end, (Datum) 0);
		exit_registered = true;
	}
	enter_hold(token, begun_ms + lease_ms);
	PG_TRY();
	{
		lock_all(begun_ms + lease_ms / 2.0);
		require_hold(token, "any more when commits in flight have finished");
	}
	PG_CATCH();
	{
		/* We may still stand in the queue. */
		LockErrorCleanup();
		(void) unlock_all();
		(void) forget_hold();
		PG_RE_THROW();
	}
	PG_END_TRY();
	PG_RETURN_FLOAT8(monotonic_ms() - begun_ms);
}

PG_FUNCTION_INFO_V1(sheetanchor_drain);
Datum
sheetanchor_drain(PG_FUNCTION_ARGS)
{
	char	   *token = text_to_cstring(PG_GETARG_TEXT_PP(0));
	XLogRecPtr	end;

	require_preload();
	end = GetXLogInsertRecPtr();
	require_hold(token, "when commits have drained");
	PG_RETURN_LSN(end);
}

PG_FUNCTION_INFO_V1(sheetanchor_cut);
Datum
sheetanchor_cut(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	uint64		scn = (uint64) PG_GETARG_INT64(1);
	char	   *token = text_to_cstring(PG_GETARG_TEXT_PP(2));
	XLogRecPtr	end;
	uint64		scn_last;

	require_preload();
	if (!XLogIsNeeded())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("WAL level not sufficient for creating a restore point")));
	if (name[0] == '\0' || strlen(name) >= MAXFNAMELEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a record's name has 1 to %d bytes", MAXFNAMELEN - 1)));
	require_hold(token, "before the cut");
	SpinLockAcquire(&shared->mutex);
	scn_last = shared->scn_last;
	if (scn >= scn_last)
		shared->scn_last = scn;
	SpinLockRelease(&shared->mutex);
	if (scn < scn_last)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("SCN " UINT64_FORMAT " lies below " UINT64_FORMAT ", at which this server was cut", scn, scn_last)));
	end = XLogRestorePoint(name);
	/* Only a hold that stood until the record was written makes it a cut. */
	require_hold(token, "any more when the record is written");
	PG_RETURN_LSN(end);
}

PG_FUNCTION_INFO_V1(sheetanchor_release);
Datum
sheetanchor_release(PG_FUNCTION_ARGS)
{
	char	   *token = text_to_cstring(PG_GETARG_TEXT_PP(0));
	bool		in_time;
	bool		stood = false;

	require_preload();
	if (hold_is_ours(token, &in_time))
	{
		stood = unlock_all();
		stood = forget_hold() && stood;
	}
	PG_RETURN_BOOL(stood);
}

/* ---- the watchdog ---- */

static void
on_watchdog_end(int code, Datum argument)
{
	SpinLockAcquire(&shared->mutex);
	shared->watchdog = NULL;
	SpinLockRelease(&shared->mutex);
}

/* Ends the session whose lease has run out. How long it may sleep until it looks again, in milliseconds. */
static long
end_overdue(void)
{
	pid_t		holder;
	double		left_ms;

	SpinLockAcquire(&shared->mutex);
	holder = shared->holder;
	left_ms = shared->deadline_ms - monotonic_ms();
	/* Under the mutex, which a holder needs before it can end: this is no other process. */
	if (holder != 0 && left_ms <= 0.0)
		(void) kill(holder, SIGTERM);
	SpinLockRelease(&shared->mutex);
	if (holder == 0)
		return WATCH_IDLE_MS;
	if (left_ms > 0.0)
		return (long) left_ms + 1;
	ereport(LOG, (errmsg("the lease of the fence has run out: ending process %d", (int) holder)));
	return WATCH_AGAIN_MS;
}

void
sheetanchor_fence_watch(Datum argument)
{
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SIG_IGN);
	BackgroundWorkerUnblockSignals();
	before_shmem_exit(on_watchdog_end, (Datum) 0);
	SpinLockAcquire(&shared->mutex);
	shared->watchdog = MyLatch;
	SpinLockRelease(&shared->mutex);
	while (!ShutdownRequestPending)
	{
		long		wait_ms = end_overdue();

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait_ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	proc_exit(0);
}

/* ---- loading ---- */

static void
on_shmem_request(void)
{
#if PG_VERSION_NUM >= 150000
	if (shmem_request_before)
		shmem_request_before();
#endif
	RequestAddinShmemSpace(MAXALIGN(sizeof(FenceShared)));
}

static void
on_shmem_startup(void)
{
	bool		found;

	if (shmem_startup_before)
		shmem_startup_before();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("sheetanchor_fence", sizeof(FenceShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(FenceShared));
		SpinLockInit(&shared->mutex);
	}
	LWLockRelease(AddinShmemInitLock);
}

static void
register_watchdog(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS;
	worker.bgw_start_time = BgWorkerStart_PostmasterStart;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "sheetanchor_fence", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "sheetanchor_fence_watch", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "sheetanchor fence watchdog", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "sheetanchor fence watchdog", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

void
_PG_init(void)
{
	/* For one session alone it would be a fence with holes: then only the functions are there, and refuse. */
	if (!process_shared_preload_libraries_in_progress)
		return;
	preloaded = true;
#if PG_VERSION_NUM >= 150000
	shmem_request_before = shmem_request_hook;
	shmem_request_hook = on_shmem_request;
#else
	on_shmem_request();
#endif
	shmem_startup_before = shmem_startup_hook;
	shmem_startup_hook = on_shmem_startup;
	utility_before = ProcessUtility_hook;
	ProcessUtility_hook = on_utility;
	executor_end_before = ExecutorEnd_hook;
	ExecutorEnd_hook = on_executor_end;
	RegisterXactCallback(on_transaction, NULL);
	RegisterXactCallback(on_transaction_first, NULL);
	register_watchdog();
}
