/*
 * What a host's processes are told by their system, where the run has something else in mind: a wall clock that is ahead,
 * and a folder whose files cannot be opened. Loaded before the C library by LD_PRELOAD; what it does is read from a file
 * that is mapped, so that the run changes it while processes run.
 *
 * The monotonic clock is left alone: nobody can set that.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* As it lies in the file. */
struct told
{
	volatile int64_t ahead_s;
	volatile uint32_t failing_percent;
};

static const struct told *told;
static const char *failing;
static size_t failing_length;

__attribute__((constructor)) static void
look(void)
{
	const char *path = getenv("SHEETANCHOR_HOST");
	int			file = path ? (int) syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
	void	   *mapped;
	struct timeval now;

	/* Found before any handler of a signal asks for the time. */
	gettimeofday(&now, NULL);
	time(NULL);
	if (file < 0)
		return;
	mapped = mmap(NULL, sizeof(struct told), PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (mapped == MAP_FAILED)
		return;
	failing = getenv("SHEETANCHOR_HOST_FAILING");
	failing_length = failing ? strlen(failing) : 0;
	told = mapped;
}

/* The same function of whoever comes after us. */
#define NEXT(type, name) \
	static __typeof__(type) next; \
	if (next == NULL) \
		next = (__typeof__(next)) dlsym(RTLD_NEXT, name)

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	NEXT(int (*)(clockid_t, struct timespec *), "clock_gettime");
	int			outcome = next(clock, now);

	if (outcome == 0 && told != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += told->ahead_s;
	return outcome;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	NEXT(int (*)(struct timeval *restrict, void *restrict), "gettimeofday");
	int			outcome = next(now, zone);

	if (outcome == 0 && told != NULL)
		now->tv_sec += told->ahead_s;
	return outcome;
}

time_t
time(time_t *now)
{
	struct timespec precise;

	clock_gettime(CLOCK_REALTIME, &precise);
	if (now != NULL)
		*now = precise.tv_sec;
	return precise.tv_sec;
}

/* So many of a hundred calls fail, evenly. */
static int
fails(const char *path)
{
	static atomic_uint calls;
	uint32_t	percent = told != NULL ? told->failing_percent : 0;

	if (percent == 0 || failing_length == 0 || strncmp(path, failing, failing_length) != 0)
		return 0;
	if (atomic_fetch_add(&calls, 37) % 100 >= percent)
		return 0;
	errno = EIO;
	return 1;
}

/* A mode is given only with flags that may make a file. */
#define MODE_OF(flags) \
	mode_t		mode = 0; \
	if (((flags) & O_CREAT) != 0 || ((flags) & O_TMPFILE) == O_TMPFILE) \
	{ \
		va_list		rest; \
		va_start(rest, flags); \
		mode = va_arg(rest, mode_t); \
		va_end(rest); \
	}

#define OPEN(name) \
	int \
	name(const char *path, int flags, ...) \
	{ \
		NEXT(int (*)(const char *, int, ...), #name); \
		MODE_OF(flags) \
		return fails(path) ? -1 : next(path, flags, mode); \
	}

#define OPEN_AT(name) \
	int \
	name(int folder, const char *path, int flags, ...) \
	{ \
		NEXT(int (*)(int, const char *, int, ...), #name); \
		MODE_OF(flags) \
		return fails(path) ? -1 : next(folder, path, flags, mode); \
	}

OPEN(open)
OPEN(open64)

/* What programs call that were built with checks of their arguments. */
int
__open_2(const char *path, int flags)
{
	return open(path, flags);
}

int
__open64_2(const char *path, int flags)
{
	return open64(path, flags);
}

OPEN_AT(openat)
OPEN_AT(openat64)

DIR *
opendir(const char *path)
{
	NEXT(DIR *(*)(const char *), "opendir");
	return fails(path) ? NULL : next(path);
}

int
mkdir(const char *path, mode_t mode)
{
	NEXT(int (*)(const char *, mode_t), "mkdir");
	return fails(path) ? -1 : next(path, mode);
}
