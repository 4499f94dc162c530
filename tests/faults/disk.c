/* A disk that tells what happens to it, and fails or dies on demand.
 *
 * Preloaded (LD_PRELOAD) into the real binary by tests/power. It watches the files below one folder and passes everything
 * else on. Each watched operation gets the next number, in the order in which it was done: one lock is held around
 * operation, record and counter, across threads and processes.
 *
 *   OPIK_DISK_ROOT      the folder, as an absolute path without symbolic links
 *   OPIK_DISK_COUNTERS  a file of COUNTERS numbers (64 bit, native order), mapped by every process and by the test
 *   OPIK_DISK_JOURNAL   when set, every operation that changes something is appended here with its bytes
 *   OPIK_DISK_FAIL      KIND:N:ERRNO:GOOD, KIND one of write, sync, open, truncate: the N-th of them fails with this error
 *                       and, with GOOD 1, all that follow it
 *   OPIK_DISK_KILL      N: the process kills itself instead of doing operation N
 *   OPIK_DISK_OUTAGE    SUFFIX:FROM:OPERATIONS:LASTING:SEED: from operation FROM on, for this many operations, nothing that
 *                       is written back of files whose name ends with SUFFIX (* for all files) reaches the disk. The outage
 *                       is over, too, LASTING milliseconds after the first loss: an agent that waits does no operations.
 *
 * A watched sync only counts: what is durable is decided from the journal, and the tests need no real disk to wait for.
 *
 * Failures are the kernel's. A failing write has taken a part of its bytes. A failing sync, and a writeback that fails in
 * the background of an outage, leave a record (LOST): the dirty pages read as written, are clean, and are not written
 * again by a later sync. The error of a writeback in the background is reported once to each descriptor, by its next sync,
 * and not to a descriptor that was opened after somebody had seen it (errseq_t).
 * SQLite's `-shm` files are no part of the journal, because nothing in them is meant to survive; they count and fail.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum counter { OPERATIONS, WRITES, SYNCS, OPENS, TRUNCATES, FAILED, COUNTERS };
/* As tests/power/journal.rs reads them. */
enum record { CREATE = 1, WRITE, TRUNCATE, SYNC, SYNC_FOLDER, UNLINK, RENAME, MAKE_FOLDER, REMOVE_FOLDER, LOST };

struct header {
    uint64_t operation, inode, offset;
    uint32_t kind, path_bytes, other_bytes, data_bytes;
};

#define FILES_MAX 65536
/* Kept per descriptor: the inode that was opened there, with the top bit set. */
#define WATCHED (UINT64_C(1) << 63)

/* What the kernel keeps about the pages of a file that an outage is about. Shared by all processes, after the counters. */
struct mapping { uint64_t inode, dirty, errors, seen; };
/* As tests/power/layer.rs makes room for them. */
#define MAPPINGS_MAX 64

struct outage { uint64_t lost_ms, is_over; };

static uint64_t watched[FILES_MAX];
/* Kept per descriptor: whether the outage is about its file, and which error of it the descriptor knows. */
static unsigned char fails_in_outage[FILES_MAX];
static uint64_t known_error[FILES_MAX];
static struct mapping *mappings;
static struct outage *outage;
static char outage_suffix[64];
static uint64_t outage_from, outage_operations, outage_lasting, outage_seed;
static char root[PATH_MAX];
static uint64_t *counters;
static int journal = -1, lock_file = -1;
static int fail_kind = -1, fail_errno, fail_for_good;
static uint64_t fail_at, kill_at;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(returns, name, ...)                                     \
    static returns (*real)(__VA_ARGS__);                             \
    if (!real)                                                       \
        real = (returns(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static void broken(const char *what) {
    fprintf(stderr, "disk.c: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static int plain_open(const char *path, int flags, mode_t mode) {
    REAL(int, open64, const char *, int, ...);
    return real(path, flags, mode);
}

static ssize_t plain_write(int file, const void *bytes, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    return real(file, bytes, count);
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("OPIK_DISK_ROOT"), *numbers = getenv("OPIK_DISK_COUNTERS");
    if (!folder || !numbers)
        return;
    snprintf(root, sizeof root, "%s", folder);
    int file = plain_open(numbers, O_RDWR | O_CLOEXEC, 0);
    if (file < 0)
        broken(numbers);
    size_t bytes = COUNTERS * sizeof *counters + MAPPINGS_MAX * sizeof *mappings + sizeof *outage;
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        broken(numbers);
    lock_file = file;
    counters = map;
    mappings = (struct mapping *)(counters + COUNTERS);
    outage = (struct outage *)(mappings + MAPPINGS_MAX);
    const char *path = getenv("OPIK_DISK_JOURNAL");
    if (path && (journal = plain_open(path, O_WRONLY | O_APPEND | O_CLOEXEC, 0)) < 0)
        broken(path);
    const char *fail = getenv("OPIK_DISK_FAIL");
    if (fail) {
        static const char *names[] = { "", "write", "sync", "open", "truncate" };
        char name[16];
        unsigned long n;
        if (sscanf(fail, "%15[a-z]:%lu:%d:%d", name, &n, &fail_errno, &fail_for_good) != 4)
            broken(fail);
        for (int kind = WRITES; kind <= TRUNCATES; kind++)
            if (!strcmp(name, names[kind]))
                fail_kind = kind;
        if (fail_kind < 0)
            broken(fail);
        fail_at = n;
    }
    const char *when = getenv("OPIK_DISK_OUTAGE");
    if (when && sscanf(when, "%63[^:]:%lu:%lu:%lu:%lu", outage_suffix, &outage_from, &outage_operations, &outage_lasting,
                       &outage_seed) != 5)
        broken(when);
    const char *kill = getenv("OPIK_DISK_KILL");
    if (kill)
        kill_at = strtoull(kill, NULL, 10);
}

static int lies_below(const char *path) {
    size_t n = strlen(root);
    return counters && !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}

static int ends_with(const char *path, const char *suffix) {
    size_t n = strlen(path), m = strlen(suffix);
    return n > m && !strcmp(path + n - m, suffix);
}

static int is_shared_memory(const char *path) { return ends_with(path, "-shm"); }

/* Makes a path absolute; what it is relative to is the working folder, or `folder`. */
static const char *absolute(int folder, const char *path, char *to) {
    if (path[0] == '/')
        return path;
    char link[64], at[PATH_MAX];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, at, sizeof at - 1);
    if (n < 0)
        return path;
    at[n] = 0;
    if (snprintf(to, PATH_MAX, "%s/%s", at, path) >= PATH_MAX)
        return path;
    return to;
}

static uint64_t now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * UINT64_C(1000) + time.tv_nsec / 1000000;
}

static int in_outage(void) {
    uint64_t now = counters[OPERATIONS] + 1;
    if (!outage_suffix[0] || now < outage_from || now - outage_from >= outage_operations || outage->is_over)
        return 0;
    outage->is_over = outage->lost_ms && now_ms() - outage->lost_ms > outage_lasting;
    return !outage->is_over;
}

/* Begins an operation; returns 0 when it has to fail, with errno set. */
static int enter(int kind) {
    pthread_mutex_lock(&mutex);
    while (flock(lock_file, LOCK_EX) < 0)
        if (errno != EINTR)
            broken("the lock");
    if (kill_at && counters[OPERATIONS] + 1 >= kill_at)
        raise(SIGKILL);
    in_outage();
    if (kind > OPERATIONS) {
        uint64_t n = ++counters[kind];
        if (kind == fail_kind && (n == fail_at || (fail_for_good && n > fail_at))) {
            counters[FAILED]++;
            errno = fail_errno;
            return 0;
        }
    }
    return 1;
}

static void leave(void) {
    int kept = errno;
    __atomic_add_fetch(&counters[OPERATIONS], 1, __ATOMIC_SEQ_CST);
    flock(lock_file, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = kept;
}

static void note(enum record kind, uint64_t inode, uint64_t offset, const char *path, const char *other,
                 const void *data, size_t bytes) {
    if (journal < 0 || (path && is_shared_memory(path)))
        return;
    int kept = errno;
    struct header head = { counters[OPERATIONS] + 1, inode, offset, kind, path ? strlen(path) : 0,
                           other ? strlen(other) : 0, bytes };
    struct iovec parts[] = { { &head, sizeof head }, { (void *)path, head.path_bytes },
                             { (void *)other, head.other_bytes }, { (void *)data, bytes } };
    for (int i = 0; i < 4; i++)
        for (size_t done = 0; done < parts[i].iov_len;) {
            ssize_t n = plain_write(journal, (char *)parts[i].iov_base + done, parts[i].iov_len - done);
            if (n < 0)
                broken("the journal");
            done += n;
        }
    errno = kept;
}

/* Returns the inode of a watched file, or 0. A descriptor that was closed and used again is another file. */
static uint64_t inode_of(int file, mode_t kind) {
    struct stat64 now;
    if (!counters || file < 0 || file >= FILES_MAX || !watched[file])
        return 0;
    int kept = errno;
    int known = !fstat64(file, &now) && now.st_ino == (watched[file] & ~WATCHED) && (now.st_mode & S_IFMT) == kind;
    errno = kept;
    return known ? now.st_ino : 0;
}

static void name_of(int file, char *to) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, to, PATH_MAX - 1);
    to[n < 0 ? 0 : n] = 0;
}

static int in_shared_memory(int file) {
    char name[PATH_MAX];
    name_of(file, name);
    return is_shared_memory(name);
}

/* Dice that fall the same at the same operation (splitmix64). */
static uint64_t dice(uint64_t salt) {
    uint64_t x = outage_seed * UINT64_C(0x9e3779b97f4a7c15) + (counters[OPERATIONS] + 1) * UINT64_C(0xd1342543de82ef95) + salt;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* Returns what is kept about a file that the outage is about, or NULL. */
static struct mapping *mapping_of(int file, uint64_t inode) {
    if (!fails_in_outage[file])
        return NULL;
    for (int i = 0; i < MAPPINGS_MAX; i++) {
        if (!mappings[i].inode)
            mappings[i].inode = inode;
        if (mappings[i].inode == inode)
            return &mappings[i];
    }
    errno = ENOSPC;
    broken("too many files in an outage");
    return NULL;
}

/* The dirty pages of a file are written back and don't reach the disk. Which of them is for the dice to say. */
static void lose(uint64_t inode, struct mapping *mapping) {
    note(LOST, inode, dice(1), NULL, NULL, NULL, 0);
    if (mapping) {
        if (!outage->lost_ms)
            outage->lost_ms = now_ms();
        mapping->dirty = 0;
        mapping->errors++;
        mapping->seen = 0;
        counters[FAILED]++;
    }
}

static void note_opened(int file, uint64_t inode, const char *name, int is_new) {
    int is_whole = !strcmp(outage_suffix, "*") && !is_shared_memory(name);
    fails_in_outage[file] = outage_suffix[0] && (is_whole || ends_with(name, outage_suffix));
    struct mapping *mapping = mapping_of(file, inode);
    if (!mapping)
        return;
    if (is_new)
        *mapping = (struct mapping){ .inode = inode };
    /* An error that nobody has seen is for the new descriptor, too. */
    known_error[file] = mapping->seen ? mapping->errors : 0;
}

static int opened(int folder, const char *given, int flags, mode_t mode) {
    REAL(int, openat64, int, const char *, int, ...);
    char buffer[PATH_MAX], name[PATH_MAX];
    const char *path = absolute(folder, given, buffer);
    if (!lies_below(path)) {
        int file = real(folder, given, flags, mode);
        if (file >= 0 && file < FILES_MAX)
            watched[file] = 0;
        return file;
    }
    struct stat64 found;
    int file = -1;
    if (enter(OPENS)) {
        int is_new = (flags & O_CREAT) && stat64(path, &found) < 0;
        file = real(folder, given, flags, mode);
        if (file >= 0 && file < FILES_MAX && !fstat64(file, &found)) {
            watched[file] = found.st_ino | WATCHED;
            name_of(file, name);
            note_opened(file, found.st_ino, name, is_new);
            if (is_new)
                note(CREATE, found.st_ino, 0, name, NULL, NULL, 0);
            else if ((flags & O_TRUNC) && !is_shared_memory(name))
                note(TRUNCATE, found.st_ino, 0, NULL, NULL, NULL, 0);
        }
    }
    leave();
    return file;
}

#define MODE_OF(flags)                                               \
    mode_t mode = 0;                                                 \
    if ((flags) & (O_CREAT | (__O_TMPFILE & ~O_DIRECTORY))) {        \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(AT_FDCWD, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(folder, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    MODE_OF(flags)
    return opened(folder, path, flags, mode);
}

static void note_write(int file, uint64_t inode, uint64_t offset, const void *bytes, ssize_t written) {
    if (written <= 0 || in_shared_memory(file))
        return;
    note(WRITE, inode, offset, NULL, NULL, bytes, written);
    struct mapping *mapping = mapping_of(file, inode);
    if (!mapping)
        return;
    mapping->dirty = 1;
    /* The kernel may write dirty pages back whenever it likes. */
    if (in_outage() && dice(2) % 8 == 0)
        lose(inode, mapping);
}

/* What a failing write takes: half of its bytes. Its caller can't tell this from a short write that is followed by one that
 * fails. */
static size_t part_of(size_t count) { return count / 2; }

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    uint64_t inode = inode_of(file, S_IFREG);
    if (!inode)
        return real(file, bytes, count, offset);
    ssize_t written = -1;
    if (enter(WRITES)) {
        written = real(file, bytes, count, offset);
        note_write(file, inode, offset, bytes, written);
    } else {
        int kept = errno;
        note_write(file, inode, offset, bytes, real(file, bytes, part_of(count), offset));
        errno = kept;
    }
    leave();
    return written;
}

ssize_t write(int file, const void *bytes, size_t count) {
    uint64_t inode = inode_of(file, S_IFREG);
    if (!inode)
        return plain_write(file, bytes, count);
    ssize_t written = -1;
    if (enter(WRITES)) {
        written = plain_write(file, bytes, count);
        note_write(file, inode, lseek64(file, 0, SEEK_CUR) - (written > 0 ? written : 0), bytes, written);
    } else {
        int kept = errno;
        ssize_t taken = plain_write(file, bytes, part_of(count));
        note_write(file, inode, lseek64(file, 0, SEEK_CUR) - (taken > 0 ? taken : 0), bytes, taken);
        errno = kept;
    }
    leave();
    return written;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (!inode_of(file, S_IFREG))
        return real(file, parts, count);
    /* Fewer bytes than asked for is an answer that every caller has to take. */
    for (int i = 0; i < count; i++)
        if (parts[i].iov_len)
            return write(file, parts[i].iov_base, parts[i].iov_len);
    return 0;
}

static int synced(int file, int (*real)(int)) {
    uint64_t inode = inode_of(file, S_IFREG), folder = inode ? 0 : inode_of(file, S_IFDIR);
    if (!inode && !folder)
        return real(file);
    int result = -1;
    struct mapping *mapping = inode ? mapping_of(file, inode) : NULL;
    if (enter(SYNCS)) {
        char name[PATH_MAX];
        name_of(file, name);
        if (mapping && mapping->dirty && in_outage())
            lose(inode, mapping);
        else
            note(inode ? SYNC : SYNC_FOLDER, inode, 0, name, NULL, NULL, 0);
        result = 0;
        if (mapping) {
            mapping->dirty = 0;
            if (mapping->errors != known_error[file]) {
                known_error[file] = mapping->errors;
                mapping->seen = 1;
                errno = EIO;
                result = -1;
            }
        }
    } else if (inode && !in_shared_memory(file)) {
        lose(inode, NULL);
    }
    leave();
    return result;
}

int fsync(int file) {
    REAL(int, fsync, int);
    return synced(file, real);
}

int fdatasync(int file) {
    REAL(int, fdatasync, int);
    return synced(file, real);
}

int ftruncate64(int file, off64_t size) {
    REAL(int, ftruncate64, int, off64_t);
    uint64_t inode = inode_of(file, S_IFREG);
    if (!inode)
        return real(file, size);
    int result = -1;
    if (enter(TRUNCATES)) {
        result = real(file, size);
        if (!result && !in_shared_memory(file))
            note(TRUNCATE, inode, size, NULL, NULL, NULL, 0);
        struct mapping *mapping = mapping_of(file, inode);
        if (!result && !size && mapping)
            mapping->dirty = 0;
    }
    leave();
    return result;
}

static int removed(int folder, const char *given, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char buffer[PATH_MAX];
    const char *path = absolute(folder, given, buffer);
    if (!lies_below(path))
        return real(folder, given, flags);
    enter(OPERATIONS);
    int result = real(folder, given, flags);
    if (!result)
        note(flags & AT_REMOVEDIR ? REMOVE_FOLDER : UNLINK, 0, 0, path, NULL, NULL, 0);
    leave();
    return result;
}

int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }

int rename(const char *given_from, const char *given_to) {
    REAL(int, rename, const char *, const char *);
    char from_buffer[PATH_MAX], to_buffer[PATH_MAX];
    const char *from = absolute(AT_FDCWD, given_from, from_buffer), *to = absolute(AT_FDCWD, given_to, to_buffer);
    if (!lies_below(from) && !lies_below(to))
        return real(given_from, given_to);
    enter(OPERATIONS);
    int result = real(given_from, given_to);
    if (!result)
        note(RENAME, 0, 0, from, to, NULL, 0);
    leave();
    return result;
}

int mkdir(const char *given, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    char buffer[PATH_MAX];
    const char *path = absolute(AT_FDCWD, given, buffer);
    if (!lies_below(path))
        return real(given, mode);
    enter(OPERATIONS);
    int result = real(given, mode);
    if (!result)
        note(MAKE_FOLDER, 0, 0, path, NULL, NULL, 0);
    leave();
    return result;
}
